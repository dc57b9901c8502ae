"""Samples of a graph with any inputs: read from files, and run through a session in batches."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from edgecv.data import spread
from edgecv.errors import InputError, one_line
from edgecv.preprocess import Preprocess
from edgecv.runtimes.session import Session
from edgecv.tensors import Array, TensorSpec

__all__ = ["Sample", "batch_of", "feeds", "open_tensors", "run_samples"]

Sample = Mapping[str, Array]
"""One item for every input, by name: a frame of any size, or an array without the batch dimension. Other names in it
are left alone."""


def run_samples(
    session: Session, preprocess: Mapping[str, Preprocess], samples: Sequence[Sample], *, batch: int
) -> dict[str, Array]:
    """Run samples and return every output, ``[len(samples), …]`` by name.

    ``batch`` of them run at a time. A graph with a fixed batch decides itself; its last batch is filled up with copies
    of the last sample, whose answers are dropped.

    Args:
        preprocess: how frames are brought to the inputs that take them, by the input's name.

    Raises:
        InputError: there is no sample, one does not fit the inputs, or an output does not have the batch first.
    """
    if len(samples) == 0:
        raise InputError("at least one sample is needed, got none")
    fixed = batch_of(session.inputs)
    size = fixed or batch
    parts = []
    for start in range(0, len(samples), size):
        indices = range(start, min(start + size, len(samples)))
        arrays = feeds(session.inputs, preprocess, {index: samples[index] for index in indices})
        if fixed and len(indices) < fixed:
            arrays = {name: _filled(values, fixed) for name, values in arrays.items()}
        parts.append(_answers(session.run(arrays), len(indices), fixed or len(indices)))
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def batch_of(inputs: Sequence[TensorSpec]) -> int | None:
    """The batch that all inputs share; ``None`` where it is free.

    Raises:
        InputError: an input has no batch dimension, or two are fixed to different ones.
    """
    for spec in inputs:
        if not spec.shape:
            raise InputError(f"every input needs the batch as its first dimension, {spec.name!r} is {spec}")
    fixed = {spec.shape[0]: spec.name for spec in inputs if spec.shape and spec.shape[0] is not None}
    if len(fixed) > 1:
        found = ", ".join(f"{name!r} {size}" for size, name in fixed.items())
        raise InputError(f"all inputs share one batch, here it is {found}")
    return next(iter(fixed), None)


def feeds(
    inputs: Sequence[TensorSpec], preprocess: Mapping[str, Preprocess], samples: Mapping[int, Sample]
) -> dict[str, Array]:
    """What a session takes for samples, ``[len(samples), …]`` by input; a sample's key is its number in messages."""
    for index, sample in samples.items():
        if not isinstance(sample, Mapping):
            raise InputError(f"sample {index} is a mapping from inputs' names to arrays, got {type(sample).__name__}")
    found = {}
    for spec in inputs:
        items = [_item(spec, preprocess.get(spec.name), sample, index) for index, sample in samples.items()]
        if len({item.shape for item in items}) > 1:
            raise InputError(f"samples of input {spec.name!r} must be of one size, got {items[0].shape} and others")
        found[spec.name] = np.stack(items)
    return found


def open_tensors(source: str | Path, limit: int | None = None) -> Sequence[Sample]:
    """Open ``.npz`` files as samples: one file, or all of a folder by name, each read when it is asked for.

    A file is one sample: an array for each input, by its name, without the batch dimension or with a batch of 1.
    ``limit`` keeps that many, spread evenly over the whole.

    Raises:
        InputError: there is none, or, once asked for, one is no such file.
    """
    path = Path(source)
    files = [path] if path.suffix == ".npz" and path.is_file() else sorted(path.glob("*.npz"))
    if not files:
        raise InputError(f"{path} holds no .npz file: one for each sample is wanted, with an array for each input")
    return _Files([files[index] for index in spread(len(files), limit)])


class _Files(Sequence[Sample]):
    def __init__(self, paths: list[Path]) -> None:
        self._paths = paths

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> Sample:  # type: ignore[override]  # no slices
        path = self._paths[index]
        try:
            with path.open("rb") as file:
                return dict(np.lib.npyio.NpzFile(file, allow_pickle=False))
        except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise InputError(f"cannot read {path} as an .npz file of arrays: {one_line(error)}") from error


def _item(spec: TensorSpec, preprocess: Preprocess | None, sample: Sample, index: int) -> Array:
    """What a sample holds for one input, without the batch dimension."""
    where = f"sample {index}, input {spec.name!r}"
    if spec.name not in sample:
        raise InputError(f"{where}: the sample lacks it, it has {', '.join(map(repr, sample)) or 'nothing'}")
    value = sample[spec.name]
    if not isinstance(value, np.ndarray | np.generic):
        raise InputError(f"{where}: a numpy array is wanted, got {type(value).__name__}")
    shape = (None, None, None, 3) if preprocess else spec.shape or ()
    item = value[0] if value.ndim == len(shape) and len(value) == 1 else value
    if preprocess:
        try:
            return preprocess(item)
        except InputError as error:
            raise InputError(f"{where}: {error}") from error
    wanted = TensorSpec(spec.name, spec.dtype, shape[1:])
    if not wanted.accepts(item):
        raise InputError(f"{where}: it takes {wanted}, got {value.dtype}{list(value.shape)}")
    return item


def _filled(values: Array, count: int) -> Array:
    return np.concatenate([values, np.repeat(values[-1:], count - len(values), axis=0)])


def _answers(outputs: Mapping[str, Array], count: int, batch: int) -> dict[str, Array]:
    for name, values in outputs.items():
        if values.shape[:1] != (batch,):
            raise InputError(
                f"the batch of {batch} must be the first dimension of output {name!r}, {list(values.shape)}"
            )
    return {name: values[:count] for name, values in outputs.items()}

"""What a conversion starts from: a network, or an ONNX file that someone else made."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from torch import nn

from edgecv.compression.placement import is_quantized
from edgecv.converters.onnx_batch import free_batch
from edgecv.converters.onnx_check import checked
from edgecv.converters.onnx_from_torch import OnnxOptions, onnx_from_torch
from edgecv.converters.onnx_prepend import with_frames
from edgecv.errors import BackendUnavailable, ConversionError, InputError, one_line
from edgecv.files import write_file
from edgecv.models.recipe import recipe_of
from edgecv.preprocess import Preprocess
from edgecv.runtimes.pt import TorchSession
from edgecv.runtimes.registry import session_class
from edgecv.runtimes.session import Session, SessionOptions
from edgecv.schema import encode
from edgecv.tensors import Array, TensorSpec

__all__ = [
    "OUTPUTS", "FileSource", "NetworkSource", "Source", "normalized", "read_onnx", "source_of", "with_batch",
]  # fmt: skip

OUTPUTS = {"classification": "logits", "embedding": "embedding"}


class Source(Protocol):
    """Where answers come from that every variant is compared with, and the graph that the variants are made of."""

    @property
    def task(self) -> str:
        """Whether it gives class scores or vectors."""

    @property
    def reference(self) -> Session:
        """What frames give, as it is."""

    @property
    def recipe(self) -> dict[str, Any] | None:
        """What rebuilds the network, where that is known."""

    @property
    def precision(self) -> str:
        """What its graph computes in: ``"fp32"``, or ``"int8"`` of a quantized one."""

    def export(self, path: Path, metadata: Mapping[str, str]) -> Path:
        """Write the graph, which takes frames."""


class NetworkSource:
    """A network on PyTorch."""

    def __init__(self, network: nn.Module, preprocess: Preprocess, task: str | None, options: OnnxOptions) -> None:
        recipe = recipe_of(network)
        guess = "embedding" if recipe and recipe.architecture == "embedding" else "classification"
        self.task = task or guess
        self.recipe = encode(recipe) if recipe else None
        self.precision = "int8" if is_quantized(network) else "fp32"
        self._network, self._preprocess, self._options = network, preprocess, options
        try:
            self.reference: Session = TorchSession.from_network(network, preprocess, output=OUTPUTS[self.task])
        except InputError as error:
            raise ConversionError(str(error)) from error
        _check_output(self.reference.outputs[0], self.task, type(network).__name__)

    def export(self, path: Path, metadata: Mapping[str, str]) -> Path:
        output = OUTPUTS[self.task]
        return onnx_from_torch(
            self._network, path, self._preprocess, output=output, options=self._options, metadata=metadata
        )


class FileSource:
    """An ONNX file: normalized images in, logits or vectors out; or one that takes frames already.

    The reference is the file itself on ONNX Runtime, with the normalization done outside, in numpy.
    """

    recipe = None

    def __init__(self, path: Path, preprocess: Preprocess, task: str | None, options: OnnxOptions) -> None:
        self.task = task or "classification"
        model = read_onnx(path)
        framed = with_frames(model, preprocess, output=OUTPUTS[self.task])
        self._model = with_batch(framed, options.batch)
        quantized = any(node.op_type == "DequantizeLinear" for node in self._model.graph.node)
        self.precision = "int8" if quantized else "fp32"
        self.reference: Session = _Outside(path, preprocess, OUTPUTS[self.task])
        _check_output(self.reference.outputs[0], self.task, path.name)

    def export(self, path: Path, metadata: Mapping[str, str]) -> Path:
        del self._model.metadata_props[:]
        for key, value in metadata.items():
            self._model.metadata_props.add(key=key, value=value)
        write_file(path, self._model.SerializeToString(deterministic=True))
        return path


class _Outside(Session):
    """Frames through a graph that wants them normalized, or takes them as they are; its one output by another name."""

    backend = "onnxruntime"

    def __init__(self, path: Path, preprocess: Preprocess, output: str) -> None:
        try:
            self._inner = session_class("onnxruntime").open(path, SessionOptions())
        except BackendUnavailable as error:
            raise BackendUnavailable(f"an ONNX file is compared with itself on ONNX Runtime: {error}") from error
        self._preprocess = preprocess
        found, given = self._inner.inputs[0], self._inner.outputs[0]
        batch = found.shape[0] if found.shape else None
        image = TensorSpec("image", "uint8", (batch, *preprocess.size, 3))
        super().__init__([image], [TensorSpec(output, given.dtype, given.shape)])

    @classmethod
    def open(cls, path: Path, options: SessionOptions) -> Session:
        raise InputError(f"{path}: open it with onnxruntime; this session is made for one conversion")

    def _run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        frames, wanted = inputs["image"], self._inner.inputs[0]
        if wanted.dtype != "uint8":
            frames = normalized(frames, self._preprocess).astype(wanted.dtype)
        (answer,) = self._inner.run({wanted.name: frames}).values()
        return {self.outputs[0].name: answer}

    def _close(self) -> None:
        self._inner.close()


def normalized(frames: Array, preprocess: Preprocess) -> Array:
    """Frames as a network of ``preprocess`` takes them: float32, channels first."""
    mean, std = (np.array(numbers, np.float32) for numbers in (preprocess.mean, preprocess.std))
    values: Array = (frames.astype(np.float32) / 255 - mean) / std
    if preprocess.color == "bgr":
        values = values[..., ::-1]
    return np.ascontiguousarray(values.transpose(0, 3, 1, 2), np.float32)


def read_onnx(path: Path) -> onnx.ModelProto:
    """Read an ONNX file; ``InputError`` where it is none."""
    try:
        return onnx.load(str(path))
    except (OSError, DecodeError, ValueError) as error:
        raise InputError(f"cannot read {path} as an ONNX file: {one_line(error)}") from error


def with_batch(model: onnx.ModelProto, batch: int | None) -> onnx.ModelProto:
    """Fix the batch, the first dimension of every input; or free it, where the graph lets it be freed."""
    if batch is None:
        try:
            return free_batch(model)
        except ConversionError:
            return model
    for value in model.graph.input:
        held = value.type.tensor_type.shape.dim[0]
        if held.HasField("dim_value") and held.dim_value != batch:
            raise ConversionError(f"the graph's batch is fixed to {held.dim_value}, {batch} was asked for")
        held.dim_value = batch
    for value in model.graph.output:
        value.type.tensor_type.shape.dim[0].dim_value = batch
    del model.graph.value_info[:]
    return checked(model)


def _check_output(found: TensorSpec, task: str, name: str) -> None:
    if found.shape is None or len(found.shape) != 2 or found.numpy.kind != "f":
        wanted = "an embedder gives float vectors [batch, dims]"
        if task == "classification":
            wanted = "a classifier gives float logits [batch, classes]"
        raise ConversionError(f"{wanted}, {name} gives {found}")


def source_of(
    network: nn.Module | str | Path, preprocess: Preprocess, task: str | None, options: OnnxOptions
) -> Source:
    """A network, or the file of one, as what a conversion starts from.

    Raises:
        ConversionError: the network or graph does not give what the task wants, or is not valid.
        InputError: it does not take images of this preprocessing, or the file cannot be read.
    """
    if isinstance(network, nn.Module):
        return NetworkSource(network, preprocess, task, options)
    return FileSource(Path(network), preprocess, task, options)

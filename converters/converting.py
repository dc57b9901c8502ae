"""``convert``: from a network to a bundle whose every variant was compared with it."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from torch import nn

import edgecv
from edgecv.bundle import LABELS, Bundle, write_manifest
from edgecv.converters.onnx_from_torch import OnnxOptions, metadata_for, onnx_from_torch
from edgecv.converters.registry import converter
from edgecv.errors import ConversionError, InputError, ParityError
from edgecv.files import new_folder, write_file
from edgecv.manifest import FORMAT, Accuracy, Graph, Manifest, Parity, Source, Variant
from edgecv.models.recipe import recipe_of
from edgecv.parity import BATCH, worst_gate
from edgecv.pipelines.classifier import Activation, Scores
from edgecv.pipelines.frames import run_frames
from edgecv.preprocess import Preprocess
from edgecv.progress import Progress, silent
from edgecv.runtimes.pt import TorchSession
from edgecv.runtimes.registry import session_class
from edgecv.runtimes.session import SessionOptions
from edgecv.schema import decode, encode
from edgecv.tensors import Array, TensorSpec

__all__ = ["ConvertOptions", "convert"]

BACKENDS = ("onnxruntime", "openvino")
GRAPH = "model"
OUTPUTS = {"classification": "logits", "embedding": "embedding"}
PRECISION = "fp32"


@dataclass(frozen=True, slots=True)
class ConvertOptions:
    """The rarer settings of a conversion.

    Args:
        name: what the bundle calls itself; the output folder's name by default.
        onnx: opset and fixed batch.
        activation: how the network's outputs become scores: ``"softmax"`` for logits, ``"none"`` for probabilities.
        dataset, accuracy: what the network was trained and measured on, for the manifest.
        task: ``"classification"`` or ``"embedding"``; by default what the network's recipe says, else classification.
        parity: ``False`` writes the bundle without comparing anything; the manifest says so.
    """

    name: str | None = None
    onnx: OnnxOptions = field(default_factory=OnnxOptions)
    activation: Activation = "softmax"
    dataset: str | None = None
    accuracy: Accuracy | None = None
    task: Literal["classification", "embedding"] | None = None
    parity: bool = True

    def __post_init__(self) -> None:
        if self.task not in (None, *OUTPUTS):
            raise InputError(f"task is {' or '.join(map(repr, OUTPUTS))}, got {self.task!r}")
        decode(Scores, {"activation": self.activation}, "options")


def convert(
    network: nn.Module,
    out: str | Path,
    *,
    preprocess: Preprocess,
    labels: Sequence[str] = (),
    backends: Sequence[str] = BACKENDS,
    samples: Sequence[NDArray[np.uint8]] | None = None,
    options: ConvertOptions | None = None,
    progress: Progress = silent,
) -> Bundle:
    """Convert a network for several backends and write one bundle, if their answers agree with the network's.

    Args:
        network: any ``nn.Module``: float images ``[batch, 3, height, width]`` in; logits ``[batch, classes]`` out, or
            vectors ``[batch, dims]`` for an embedding.
        out: a folder that does not exist yet, or is empty; it appears whole or not at all.
        preprocess: what the network was trained with; its normalization becomes part of the graph.
        labels: one per class.
        samples: real images (uint8 RGB frames of any size) on which every variant must agree with the network.

    Raises:
        ConversionError: the network, or its graph on one of the backends, cannot be converted.
        ParityError: a variant's answers differ; nothing is written.
        InputError: an argument is wrong, or ``out`` holds something.
        BackendUnavailable: a backend's library is not installed.
    """
    options = options or ConvertOptions()
    if options.parity and (samples is None or len(samples) == 0):
        raise InputError(
            "convert needs samples: some real images, to compare every variant with the network on (or parity=False)"
        )
    steps = {backend: converter(backend) for backend in _distinct(backends)}
    job = _Job(network, preprocess, labels, samples if options.parity else None, options)
    with new_folder(out) as folder, tempfile.TemporaryDirectory() as scratch:
        name = options.name or Path(out).name
        progress("export to ONNX", 0, 1)
        graph = job.export(Path(scratch, f"{GRAPH}.onnx"), name)
        progress("export to ONNX", 1, 1)
        variants = {}
        for done, (backend, step) in enumerate(steps.items(), 1):
            key = f"{step.format}-{PRECISION}"
            (folder / key).mkdir()
            file = step.convert(graph, folder / key)
            parity = job.parity(key, backend, file)
            main = file.relative_to(folder).as_posix()
            variants[key] = Variant(backend, PRECISION, {GRAPH: main}, dict(step.requires), parity)
            progress("convert and compare", done, len(steps))
        if labels:
            write_file(folder / LABELS, "".join(f"{label}\n" for label in labels))
        write_manifest(folder, job.manifest(name, variants))
    return Bundle.load(out)


class _Job:
    """One network on its way into a bundle, with the reference session that everything is compared with."""

    def __init__(
        self,
        network: nn.Module,
        preprocess: Preprocess,
        labels: Sequence[str],
        samples: Sequence[NDArray[np.uint8]] | None,
        options: ConvertOptions,
    ) -> None:
        self._network = network
        self._preprocess = preprocess
        self._labels = tuple(labels)
        self._samples = samples
        self._options = options
        self._task = options.task or _task_of(network)
        self._reference = _reference(network, preprocess, self._task)
        self._wanted: dict[str, Array] | None = None
        _check_labels(labels, self._reference.outputs[0], self._task)

    def export(self, path: Path, name: str) -> Path:
        return onnx_from_torch(
            self._network,
            path,
            self._preprocess,
            output=OUTPUTS[self._task],
            options=self._options.onnx,
            metadata=metadata_for(name, self._task, self._preprocess, self._labels),
        )

    def parity(self, variant: str, backend: str, file: Path) -> Parity | None:
        """Run a variant on the samples; refuse it where its answers are not the network's."""
        if self._samples is None:
            return None
        if self._wanted is None:
            self._wanted = run_frames(self._reference, self._preprocess, self._samples, batch=BATCH)
        with session_class(backend).open(file, SessionOptions()) as session:
            got = run_frames(session, self._preprocess, self._samples, batch=BATCH)
        found = worst_gate(self._wanted, got, PRECISION, self._task)
        if not found.ok:
            raise ParityError(
                f"{variant} does not agree with the network on {found.parity.samples} images, nothing was written: "
                + "; ".join(found.failures),
                found,
            )
        return found.parity

    def manifest(self, name: str, variants: dict[str, Variant]) -> Manifest:
        batch, recipe = self._options.onnx.batch, recipe_of(self._network)
        inputs, outputs = (
            tuple(TensorSpec(spec.name, spec.dtype, (batch, *(spec.shape or ())[1:])) for spec in specs)
            for specs in (self._reference.inputs, self._reference.outputs)
        )
        return Manifest(
            format=FORMAT,
            name=name,
            task=self._task,
            graphs={GRAPH: Graph(inputs, outputs)},
            preprocess=self._preprocess,
            postprocess={"normalize": True} if self._task == "embedding" else {"activation": self._options.activation},
            labels=LABELS if self._labels else None,
            variants=variants,
            source=Source(
                edgecv.__version__, encode(recipe) if recipe else None, self._options.dataset, self._options.accuracy
            ),
            files={},
        )


def _task_of(network: nn.Module) -> str:
    recipe = recipe_of(network)
    return "embedding" if recipe and recipe.architecture == "embedding" else "classification"


def _reference(network: nn.Module, preprocess: Preprocess, task: str) -> TorchSession:
    try:
        reference = TorchSession.from_network(network, preprocess, output=OUTPUTS[task])
    except InputError as error:
        raise ConversionError(str(error)) from error
    found = reference.outputs[0]
    if found.shape is None or len(found.shape) != 2 or found.numpy.kind != "f":
        wanted = "an embedder gives float vectors [batch, dims]"
        if task == "classification":
            wanted = "a classifier gives float logits [batch, classes]"
        raise ConversionError(f"{wanted}, {type(network).__name__} gives {found}")
    return reference


def _distinct(backends: Sequence[str]) -> list[str]:
    if isinstance(backends, str) or not backends or len(set(backends)) != len(backends):
        raise InputError(f"backends is a list of different names, at least one, got {backends!r}")
    return list(backends)


def _check_labels(labels: Sequence[str], logits: TensorSpec, task: str) -> None:
    if labels and task == "embedding":
        raise InputError(f"an embedding has no labels, {len(labels)} were given")
    classes = (logits.shape or (0, 0))[1]
    if isinstance(labels, str) or (labels and len(labels) != classes):
        raise InputError(f"labels is one name per class: {len(labels)} were given for {classes} classes")
    for label in labels:
        if not isinstance(label, str) or not label.strip() or "\n" in label or "\r" in label:
            raise InputError(f"a label is one line of text, got {label!r}")

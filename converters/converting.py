"""``convert``: from a network to a bundle whose every variant was compared with it."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from torch import nn

import edgecv
from edgecv.bundle import LABELS, Bundle, write_manifest
from edgecv.converters.onnx_from_torch import OnnxOptions, metadata_for
from edgecv.converters.onnx_to_fp16 import fp16_from_onnx
from edgecv.converters.packing import pack_files
from edgecv.converters.qdq_cpu import cpu_layout
from edgecv.converters.qdq_layouts import to_tensorrt_layout
from edgecv.converters.registry import Converter, converter
from edgecv.converters.sources import OUTPUTS, NetworkSource, Source, source_of
from edgecv.converters.speed import with_speed
from edgecv.errors import InputError, ParityError
from edgecv.files import new_folder, write_file
from edgecv.manifest import FORMAT, Accuracy, Graph, Manifest, Parity, Variant
from edgecv.manifest import Source as Origin
from edgecv.parity import BATCH, worst_gate
from edgecv.pipelines.classifier import Activation, Scores
from edgecv.pipelines.frames import run_frames
from edgecv.preprocess import Preprocess
from edgecv.progress import Progress, silent
from edgecv.runtimes.registry import session_class
from edgecv.runtimes.session import SessionOptions
from edgecv.schema import decode
from edgecv.suspects import Sides
from edgecv.tensors import Array, TensorSpec

__all__ = ["ConvertOptions", "convert"]

BACKENDS = ("onnxruntime", "openvino")
GRAPH = "model"
PRECISIONS = ("fp32", "fp16", "int8")


@dataclass(frozen=True, slots=True)
class ConvertOptions:
    """The rarer settings of a conversion.

    Args:
        name: what the bundle calls itself; the output folder's name by default.
        onnx: opset and fixed batch.
        activation: how the network's outputs become scores: ``"softmax"`` for logits, ``"none"`` for probabilities.
        licence: of the weights, for the manifest and the model card: an SPDX identifier.
        dataset, accuracy: what the network was trained and measured on, for the manifest.
        task: ``"classification"`` or ``"embedding"``; by default what the network's recipe says, else classification.
        precisions: ``"fp32"``, ``"fp16"`` and ``"int8"``, one variant of each for every backend; the first is what a
            backend picks. By default what there is: ``("int8",)`` of a quantized network, ``("int8", "fp32")`` of a
            network and its quantized twin.
        compare_speed: where a backend has int8 and a float variant, time them on this machine, and let ``auto`` prefer
            the float one where int8 is no faster; ``False`` leaves the order as it is, and the same inputs give the
            same bytes.
        parity: ``False`` writes the bundle without comparing anything; the manifest says so.
        pack: store the graphs packed where that saves a quarter at least, see ``edgecv.pack``.
    """

    name: str | None = None
    onnx: OnnxOptions = field(default_factory=OnnxOptions)
    activation: Activation = "softmax"
    licence: str | None = None
    dataset: str | None = None
    accuracy: Accuracy | None = None
    task: Literal["classification", "embedding"] | None = None
    precisions: tuple[str, ...] = ()
    compare_speed: bool = True
    parity: bool = True
    pack: bool = False

    def __post_init__(self) -> None:
        if self.task not in (None, *OUTPUTS):
            raise InputError(f"task is {' or '.join(map(repr, OUTPUTS))}, got {self.task!r}")
        if self.precisions:
            _distinct("precisions", self.precisions)
        if wrong := [name for name in self.precisions if name not in PRECISIONS]:
            raise InputError(f"precisions are {', '.join(map(repr, PRECISIONS))}, got {wrong[0]!r}")
        decode(Scores, {"activation": self.activation}, "options")


def convert(
    network: nn.Module | str | Path,
    out: str | Path,
    *,
    preprocess: Preprocess,
    labels: Sequence[str] = (),
    quantized: nn.Module | None = None,
    backends: Sequence[str] = BACKENDS,
    samples: Sequence[NDArray[np.uint8]] | None = None,
    options: ConvertOptions | None = None,
    progress: Progress = silent,
) -> Bundle:
    """Convert a network for several backends and write one bundle, if their answers agree with the network's.

    Args:
        network: any ``nn.Module``: float images ``[batch, 3, height, width]`` in; logits ``[batch, classes]`` out, or
            vectors ``[batch, dims]`` for an embedding. Or an ``.onnx`` file of such a network. A quantized one, of
            ``edgecv.quantize`` or a file with Q/DQ nodes, becomes int8 variants.
        out: a folder that does not exist yet, or is empty; it appears whole or not at all.
        preprocess: what the network was trained with; its normalization becomes part of the graph.
        labels: one per class.
        quantized: what ``edgecv.quantize`` made of ``network``, for a bundle that holds both; its variants too are
            compared with ``network``.
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
    steps = {backend: converter(backend) for backend in _distinct("backends", backends)}
    for step in steps.values():
        if step.ready is not None:
            step.ready()
    source = source_of(network, preprocess, options.task, options.onnx)
    sources = _by_precision(source, quantized, preprocess, options)
    pairs = [(backend, precision) for precision in sources for backend in steps]
    for backend, precision in pairs:
        if precision not in steps[backend].precisions:
            raise InputError(f"{backend} holds {' and '.join(steps[backend].precisions)}, {precision} was asked for")
    job = _Job(source, sources, list(steps.values()), preprocess, labels, samples if options.parity else None, options)
    with new_folder(out) as folder, tempfile.TemporaryDirectory() as scratch:
        name = options.name or Path(out).name
        progress("export to ONNX", 0, 1)
        graphs = job.export(Path(scratch), name)
        progress("export to ONNX", 1, 1)
        variants = {}
        for done, (backend, precision) in enumerate(pairs, 1):
            key = f"{steps[backend].format}-{precision}"
            variants[key] = job.variant(backend, precision, graphs, folder / key)
            progress("convert and compare", done, len(pairs))
        if options.compare_speed:
            variants = with_speed(variants, folder, preprocess)
        if labels:
            write_file(folder / LABELS, "".join(f"{label}\n" for label in labels))
        manifest = job.manifest(name, variants, next(iter(graphs.values())))
        write_manifest(folder, replace(manifest, packed=pack_files(folder) if options.pack else {}))
    return Bundle.load(out)


class _Job:
    """One source on its way into a bundle: its graph in each precision, and each variant compared with it.

    ``sources`` holds what the graph of each precision is made of.
    """

    def __init__(
        self,
        source: Source,
        sources: dict[str, Source],
        steps: Sequence[Converter],
        preprocess: Preprocess,
        labels: Sequence[str],
        samples: Sequence[NDArray[np.uint8]] | None,
        options: ConvertOptions,
    ) -> None:
        self._source, self._sources, self._steps = source, sources, steps
        self._preprocess = preprocess
        self._labels = tuple(labels)
        self._samples = samples
        self._options = options
        self._wanted: dict[str, Array] | None = None
        _check_labels(labels, source.reference.outputs[0], source.task)

    def export(self, folder: Path, name: str) -> dict[str, Path]:
        """The graph in each precision that is asked for; float32 too where float16 is made of it."""
        metadata = metadata_for(name, self._source.task, self._preprocess, self._labels)
        wanted = [{"fp16": "fp32"}.get(precision, precision) for precision in self._sources]
        graphs = {precision: folder / precision / f"{GRAPH}.onnx" for precision in dict.fromkeys(wanted)}
        for precision, path in graphs.items():
            path.parent.mkdir()
            self._sources.get(precision, self._source).export(path, metadata)
        if "fp16" in self._sources:
            graphs["fp16"] = _written(fp16_from_onnx(onnx.load(str(graphs["fp32"]))), folder / "fp16")
        if "int8" in graphs:
            model = onnx.load(str(graphs["int8"]))
            graphs["int8"] = _written(cpu_layout(model), folder / "cpu")
            if any(step.layout == "tensorrt" for step in self._steps):
                graphs["int8 for tensorrt"] = _written(to_tensorrt_layout(model), folder / "tensorrt")
        return graphs

    def variant(self, backend: str, precision: str, graphs: dict[str, Path], folder: Path) -> Variant:
        """Write one variant into ``folder``, which is named as it, and compare it with the source."""
        step = converter(backend)
        own = step.fp16 if precision == "fp16" else None
        laid_out = "int8 for tensorrt" if precision == "int8" and step.layout == "tensorrt" else precision
        folder.mkdir()
        file = own(graphs["fp32"], folder) if own else step.convert(graphs[laid_out], folder)
        runs_on = step.backend or backend
        parity = self.parity(folder.name, runs_on, precision, file)
        return Variant(runs_on, precision, {GRAPH: f"{folder.name}/{file.name}"}, dict(step.requires), parity)

    def parity(self, variant: str, backend: str, precision: str, file: Path) -> Parity | None:
        """Run a variant on the samples; refuse it where its answers are not the source's."""
        if self._samples is None:
            return None
        if self._wanted is None:
            self._wanted = run_frames(self._source.reference, self._preprocess, self._samples, batch=BATCH)
        with session_class(backend).open(file, SessionOptions()) as session:
            got = run_frames(session, self._preprocess, self._samples, batch=BATCH)
            sides = Sides(self._source.reference, session, self._preprocess, self._samples)
            found = worst_gate(self._wanted, got, precision, self._source.task, sides)
        if not found.ok:
            raise ParityError(
                f"{variant} does not agree with the network on {found.parity.samples} images, nothing was written: "
                + found.reason,
                found,
            )
        return found.parity

    def manifest(self, name: str, variants: dict[str, Variant], graph: Path) -> Manifest:
        task, options = self._source.task, self._options
        batch = onnx.load(str(graph)).graph.input[0].type.tensor_type.shape.dim[0].dim_value or None
        inputs, outputs = (
            tuple(TensorSpec(spec.name, spec.dtype, (batch, *(spec.shape or ())[1:])) for spec in specs)
            for specs in (self._source.reference.inputs, self._source.reference.outputs)
        )
        return Manifest(
            format=FORMAT,
            name=name,
            task=task,
            graphs={GRAPH: Graph(inputs, outputs)},
            preprocess=self._preprocess,
            postprocess={"normalize": True} if task == "embedding" else {"activation": options.activation},
            labels=LABELS if self._labels else None,
            variants=variants,
            source=Origin(edgecv.__version__, self._source.recipe, options.dataset, options.accuracy, options.licence),
            files={},
        )


def _by_precision(
    source: Source, quantized: nn.Module | None, preprocess: Preprocess, options: ConvertOptions
) -> dict[str, Source]:
    """What the graph of each precision asked for is made of, in the order of preference."""
    held = {source.precision: source}
    if quantized is not None:
        twin = NetworkSource(quantized, preprocess, source.task, options.onnx)
        if (source.precision, twin.precision) != ("fp32", "int8"):
            raise InputError("quantized= takes what edgecv.quantize made of the network, beside the network itself")
        held = {"int8": twin, "fp32": source}
    found = {}
    for precision in options.precisions or held:
        made_of = "fp32" if precision == "fp16" else precision
        if made_of not in held and made_of == "int8":
            raise InputError("int8 takes a quantized network: give quantized=edgecv.quantize(network, calibration)")
        if made_of not in held:
            raise InputError(f"the network is quantized, {precision} was asked for: give the float network as well")
        found[precision] = held[made_of]
    return found


def _written(model: onnx.ModelProto, folder: Path) -> Path:
    folder.mkdir()
    write_file(folder / f"{GRAPH}.onnx", model.SerializeToString(deterministic=True))
    return folder / f"{GRAPH}.onnx"


def _distinct(name: str, values: Sequence[str]) -> list[str]:
    if isinstance(values, str) or not values or len(set(values)) != len(values):
        raise InputError(f"{name} is a list of different names, at least one, got {values!r}")
    return list(values)


def _check_labels(labels: Sequence[str], logits: TensorSpec, task: str) -> None:
    if labels and task == "embedding":
        raise InputError(f"an embedding has no labels, {len(labels)} were given")
    classes = (logits.shape or (0, 0))[1]
    if isinstance(labels, str) or (labels and len(labels) != classes):
        raise InputError(f"labels is one name per class: {len(labels)} were given for {classes} classes")
    for label in labels:
        if not isinstance(label, str) or not label.strip() or "\n" in label or "\r" in label:
            raise InputError(f"a label is one line of text, got {label!r}")

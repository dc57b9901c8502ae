"""``convert_graph``: from a network of any inputs and outputs to a bundle whose every variant was compared with it."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import onnx
from torch import nn

import edgecv
from edgecv.bundle import Bundle, write_manifest
from edgecv.converters.graph_sources import GraphSource, Input, graph_source
from edgecv.converters.onnx_from_torch import OnnxOptions
from edgecv.converters.onnx_to_fp16 import fp16_from_onnx
from edgecv.converters.packing import pack_files
from edgecv.converters.registry import Converter, converter
from edgecv.errors import InputError, ParityError
from edgecv.files import new_folder, write_file
from edgecv.manifest import FORMAT, TENSORS, Graph, Manifest, Parity, Source, Variant
from edgecv.parity import BATCH, gate, worst_gate
from edgecv.pipelines.tensors import Sample, run_samples
from edgecv.progress import Progress, silent
from edgecv.runtimes.registry import session_class
from edgecv.runtimes.session import SessionOptions

__all__ = ["GraphOptions", "convert_graph"]

GRAPH = "model"
PRECISIONS = ("fp32", "fp16")


@dataclass(frozen=True, slots=True)
class GraphOptions:
    """The rarer settings of ``convert_graph``.

    Args:
        name: what the bundle calls itself; the output folder's name by default.
        onnx: opset and fixed batch; a file keeps its own opset.
        precisions: ``"fp32"`` and ``"fp16"``, one variant of each for every backend; the first is what a backend picks.
        licence: of the weights, for the manifest and the model card: an SPDX identifier.
        dataset: what the network was trained on, for the manifest.
        parity: ``False`` writes the bundle without comparing anything; the manifest says so.
        pack: store the graphs packed where that saves a quarter at least, see ``edgecv.pack``.
    """

    name: str | None = None
    onnx: OnnxOptions = field(default_factory=OnnxOptions)
    precisions: tuple[str, ...] = ("fp32",)
    licence: str | None = None
    dataset: str | None = None
    parity: bool = True
    pack: bool = False

    def __post_init__(self) -> None:
        _check_distinct("precisions", self.precisions)
        if wrong := [name for name in self.precisions if name not in PRECISIONS]:
            raise InputError(f"convert_graph writes fp32 and fp16, got {wrong[0]!r}; int8 is for edgecv.convert")


def convert_graph(
    network: nn.Module | str | Path,
    out: str | Path,
    *,
    inputs: Mapping[str, Input] | None = None,
    outputs: Sequence[str] = (),
    backends: Sequence[str] = ("onnxruntime", "openvino"),
    samples: Sequence[Sample] | None = None,
    options: GraphOptions | None = None,
    progress: Progress = silent,
) -> Bundle:
    """Convert a network of any inputs and outputs, and write one bundle if all variants answer as the network does.

    Nothing is known of what the outputs mean, so ``edgecv.load`` opens the bundle as a session, and parity compares
    numbers, no decisions. All inputs and outputs have the batch as their first dimension, free or fixed alike.

    Args:
        network: any ``nn.Module``, called with the inputs in their order, that gives a tensor or a tuple, list or dict
            of tensors. Or an ``.onnx`` file.
        out: a folder that does not exist yet, or is empty; it appears whole or not at all.
        inputs: by name. With a ``Preprocess`` the graph takes uint8 RGB frames ``[batch, height, width, 3]`` of its
            size and normalizes them inside; with a dtype and a shape, such as ``("float32", (None, 4))``, it takes
            arrays as they are. Of a file, only the inputs that are to take frames are named.
        outputs: their names; by default ``output``, ``output0``, ``output1``… of several, or a dict's keys. A file's
            keep theirs.
        samples: mappings from inputs' names to a frame of any size, or to an array without the batch dimension, on
            which every variant must agree with the network.

    Raises:
        ConversionError: the network, or its graph on one of the backends, cannot be converted.
        ParityError: a variant's answers differ; nothing is written.
        InputError: an argument or a sample is wrong, or ``out`` holds something.
        BackendUnavailable: a backend's library is not installed.
    """
    options = options or GraphOptions()
    if options.parity and not samples:
        raise InputError("convert_graph needs samples, to compare every variant with the network on (or parity=False)")
    steps = _steps(backends, options.precisions)
    source = graph_source(network, inputs, outputs, options.onnx)
    comparison = _Comparison(source, samples) if options.parity and samples else None
    pairs = [(backend, precision) for precision in options.precisions for backend in steps]
    with new_folder(out) as folder, tempfile.TemporaryDirectory() as scratch:
        name = options.name or Path(out).name
        progress("export to ONNX", 0, 1)
        graph, files = _export(source, Path(scratch), name, options.precisions)
        progress("export to ONNX", 1, 1)
        variants = {}
        for done, (backend, precision) in enumerate(pairs, 1):
            step = steps[backend]
            key, runs_on = f"{step.format}-{precision}", step.backend or backend
            file = _file(step, precision, files, folder / key)
            parity = comparison.parity(key, runs_on, precision, file) if comparison else None
            variants[key] = Variant(runs_on, precision, {GRAPH: f"{key}/{file.name}"}, dict(step.requires), parity)
            progress("convert and compare", done, len(pairs))
        manifest = _manifest(name, graph, variants, source, options)
        write_manifest(folder, replace(manifest, packed=pack_files(folder) if options.pack else {}))
    return Bundle.load(out)


class _Comparison:
    """What the network answers to samples, which a variant must answer too."""

    def __init__(self, source: GraphSource, samples: Sequence[Sample]) -> None:
        self._preprocess, self._samples = source.preprocess, samples
        self._wanted = run_samples(source.reference, source.preprocess, samples, batch=BATCH)

    def parity(self, variant: str, backend: str, precision: str, file: Path) -> Parity:
        """Run a variant; refuse it, naming the outputs that differ, where its answers are not the network's."""
        with session_class(backend).open(file, SessionOptions()) as session:
            got = run_samples(session, self._preprocess, self._samples, batch=BATCH)
        found = worst_gate(self._wanted, got, precision, TENSORS)
        if not found.ok:
            apart = ", ".join(
                name for name, item in self._wanted.items() if not gate(item, got[name], precision, TENSORS).ok
            )
            raise ParityError(
                f"{variant} does not agree with the network on {found.parity.samples} samples in {apart}, nothing was "
                f"written: {found.reason}",
                found,
            )
        return found.parity


def _steps(backends: Sequence[str], precisions: Sequence[str]) -> dict[str, Converter]:
    _check_distinct("backends", backends)
    steps = {backend: converter(backend) for backend in backends}
    for backend, step in steps.items():
        if wrong := [name for name in precisions if name not in step.precisions]:
            raise InputError(f"{backend} holds {' and '.join(step.precisions)}, {wrong[0]} was asked for")
        if step.ready is not None:
            step.ready()
    return steps


def _export(source: GraphSource, folder: Path, name: str, precisions: Sequence[str]) -> tuple[Graph, dict[str, Path]]:
    """What the graph takes and gives, and its file in float32, and in float16 where that is asked for."""
    files = {precision: folder / precision / f"{GRAPH}.onnx" for precision in ("fp32", *precisions)}
    for path in files.values():
        path.parent.mkdir()
    graph = source.export(files["fp32"], {"description": name, "task": TENSORS})
    if "fp16" in files:
        halved = fp16_from_onnx(onnx.load(str(files["fp32"])))
        write_file(files["fp16"], halved.SerializeToString(deterministic=True))
    return graph, files


def _file(step: Converter, precision: str, graphs: Mapping[str, Path], folder: Path) -> Path:
    folder.mkdir()
    if precision == "fp16" and step.fp16 is not None:
        return step.fp16(graphs["fp32"], folder)
    return step.convert(graphs[precision], folder)


def _manifest(
    name: str, graph: Graph, variants: dict[str, Variant], source: GraphSource, options: GraphOptions
) -> Manifest:
    return Manifest(
        format=FORMAT,
        name=name,
        task=TENSORS,
        graphs={GRAPH: graph},
        preprocess=None,
        postprocess={},
        labels=None,
        variants=variants,
        source=Source(edgecv.__version__, source.recipe, options.dataset, licence=options.licence),
        files={},
    )


def _check_distinct(name: str, values: Sequence[str]) -> None:
    if isinstance(values, str) or not values or len(set(values)) != len(values):
        raise InputError(f"{name} is a list of different names, at least one, got {values!r}")

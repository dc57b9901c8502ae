"""``convert_tracker``: from a Siamese network to a bundle of two graphs whose every variant was compared with it."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import onnx
import torch
from torch import Tensor

import edgecv
from edgecv.bundle import Bundle, write_manifest
from edgecv.compression.trackers import QuantizedTracker
from edgecv.converters.onnx_compact import compact
from edgecv.converters.onnx_from_torch import EXAMPLE_BATCH, OnnxOptions, metadata_for, write_graph
from edgecv.converters.onnx_to_fp16 import fp16_from_onnx
from edgecv.converters.packing import pack_files
from edgecv.converters.qdq_cpu import cpu_layout
from edgecv.converters.qdq_layouts import to_tensorrt_layout
from edgecv.converters.registry import Converter, converter
from edgecv.converters.tracker_speed import with_search_speed
from edgecv.errors import ConversionError, InputError, ParityError, one_line
from edgecv.files import new_folder, write_file
from edgecv.manifest import FORMAT, Graph, Manifest, Parity, Source, Variant
from edgecv.models.recipe import recipe_of
from edgecv.models.siamese import SearchBranch, Siamese, TemplateBranch
from edgecv.pipelines.tracking.samples import Crops, Sample, answers, cut_crops
from edgecv.pipelines.tracking.settings import TrackerSettings
from edgecv.preprocess import Preprocess
from edgecv.progress import Progress, silent
from edgecv.runtimes.pt import TorchSession
from edgecv.runtimes.registry import session_class
from edgecv.runtimes.session import SessionOptions
from edgecv.schema import encode
from edgecv.tensors import TensorSpec
from edgecv.tracker_parity import TASK, gate_tracker

__all__ = ["TASK", "TrackerOptions", "convert_tracker"]

TEMPLATE, SEARCH = "template", "search"
PRECISIONS = ("fp32", "fp16", "int8")
Branch = TemplateBranch | SearchBranch
Change = Callable[[onnx.ModelProto], onnx.ModelProto]


@dataclass(frozen=True, slots=True)
class TrackerOptions:
    """The rarer settings of a tracker's conversion.

    Args:
        name: what the bundle calls itself; the output folder's name by default.
        onnx: the opset; the batch stays free.
        settings: how a tracker reads the answers, where not as the network itself says.
        dataset: what the network was trained on, for the manifest.
        precisions: ``"fp32"``, ``"fp16"`` and ``"int8"``, one variant of each for every backend; the first is what a
            backend picks. By default what there is: ``("fp32",)`` of a network, ``("int8",)`` of a quantized one,
            ``("int8", "fp32")`` of a network and its quantized twin.
        compare_speed: where a backend has int8 and a float variant, time their search graphs on this machine, and let
            ``auto`` prefer the float one where int8 is no faster; ``False`` leaves the order as it is.
        parity: ``False`` writes the bundle without comparing anything; the manifest says so.
        limit: the most targets that are compared.
        pack: store the graphs packed where that saves a quarter at least, see ``edgecv.pack``.
    """

    name: str | None = None
    onnx: OnnxOptions = field(default_factory=OnnxOptions)
    settings: TrackerSettings | None = None
    dataset: str | None = None
    precisions: tuple[str, ...] = ()
    compare_speed: bool = True
    parity: bool = True
    limit: int = 32
    pack: bool = False

    def __post_init__(self) -> None:
        if self.onnx.batch is not None:
            raise InputError("a tracker's batch is free: it runs one target or several at a time")
        if len(set(self.precisions)) != len(self.precisions):
            raise InputError(f"precisions is a list of different names, got {self.precisions!r}")
        if wrong := [name for name in self.precisions if name not in PRECISIONS]:
            raise InputError(f"precisions are {', '.join(map(repr, PRECISIONS))}, got {wrong[0]!r}")
        if self.limit < 1:
            raise InputError(f"limit is 1 target or more, got {self.limit}")


def convert_tracker(
    network: Siamese,
    out: str | Path,
    *,
    quantized: QuantizedTracker | None = None,
    backends: Sequence[str] = ("onnxruntime", "openvino"),
    samples: Sequence[Sample] | None = None,
    options: TrackerOptions | None = None,
    progress: Progress = silent,
) -> Bundle:
    """Convert a tracker for several backends and write one bundle, if their answers agree with the network's.

    The bundle holds two graphs with a free batch: ``template`` (``template`` -> ``features``), which runs once for a
    target, and ``search`` (``features``, ``search`` -> ``score`` and most often ``box``). Both take uint8 RGB crops.

    Args:
        network: one of ``edgecv.models.siamese``, or a sibling of them. What ``quantize_tracker`` gave becomes int8.
        quantized: what ``quantize_tracker`` made of ``network``, for a bundle that holds both; its variants too are
            compared with ``network``.
        out: a folder that does not exist yet, or is empty; it appears whole or not at all.
        samples: annotated sequences, or pairs of a frame and a box, on which every variant must agree with the network:
            in its maps, and in the boxes that are read from them; int8 variants in these alone, since what a map says
            of cells that are never chosen does not matter.

    Raises:
        ConversionError: a graph cannot be converted for one of the backends.
        ParityError: a variant's answers differ; nothing is written.
        InputError: an argument is wrong, or ``out`` holds something.
        BackendUnavailable: a backend's library is not installed.
    """
    options = options or TrackerOptions()
    if options.parity and not samples:
        raise InputError("convert needs samples: sequences, or frames with a box, to compare on (or parity=False)")
    sources = _by_precision(network, quantized, options.precisions)
    steps = _steps(backends, tuple(sources))
    settings = _settings(network, options.settings)
    crops = cut_crops(samples, settings, options.limit) if options.parity and samples else None
    job = _Job(network, sources, settings, options, crops)
    pairs = [(backend, precision) for precision in sources for backend in steps]
    with new_folder(out) as folder, tempfile.TemporaryDirectory() as scratch:
        name = options.name or Path(out).name
        graphs = job.export(Path(scratch), name, progress)
        variants = {}
        for done, (backend, precision) in enumerate(pairs, 1):
            key = f"{steps[backend].format}-{precision}"
            variants[key] = job.variant(backend, precision, graphs, folder / key)
            progress("convert and compare", done, len(pairs))
        if options.compare_speed:
            variants = with_search_speed(variants, folder, job.graphs[SEARCH])
        manifest = job.manifest(name, variants)
        write_manifest(folder, dataclasses.replace(manifest, packed=pack_files(folder) if options.pack else {}))
    return Bundle.load(out)


class _Job:
    """One network on its way into a bundle: two graphs in each precision, each variant compared with it.

    ``sources`` holds what the graphs of each precision are made of.
    """

    def __init__(
        self,
        network: Siamese,
        sources: dict[str, Siamese],
        settings: TrackerSettings,
        options: TrackerOptions,
        crops: Crops | None,
    ) -> None:
        self._network, self._sources, self._settings = network, sources, settings
        self._options, self._crops = options, crops
        branches = _branches(network)
        self._examples, outputs = _trace(branches)
        self.graphs = {
            name: Graph(_sized(branch.inputs, self._examples[name]), _sized(branch.outputs, outputs[name]))
            for name, branch in branches.items()
        }
        template, search = (TorchSession(part, part.inputs, part.outputs) for part in branches.values())
        self._wanted = answers((template, search), settings, crops) if crops else None

    def export(self, folder: Path, name: str, progress: Progress) -> dict[str, dict[str, Path]]:
        """Each graph in each precision that is asked for: by precision, as float32 is where float16 is made of it."""
        wanted = dict.fromkeys({"fp16": "fp32"}.get(precision, precision) for precision in self._sources)
        graphs = {}
        for done, precision in enumerate(wanted):
            progress("export to ONNX", done, len(wanted))
            network = self._sources.get(precision, self._network)
            graphs[precision] = self._exported(network, folder / precision, name)
        progress("export to ONNX", len(wanted), len(wanted))
        if "fp16" in self._sources:
            graphs["fp16"] = _rewritten(graphs["fp32"], fp16_from_onnx, folder / "fp16")
        if "int8" in graphs:
            plain = graphs["int8"]
            graphs["int8"] = _rewritten(plain, lambda model: compact(cpu_layout(model)), folder / "cpu")
            graphs["int8 for tensorrt"] = _rewritten(plain, to_tensorrt_layout, folder / "tensorrt")
        return graphs

    def variant(self, backend: str, precision: str, graphs: dict[str, dict[str, Path]], folder: Path) -> Variant:
        """Write one variant into ``folder``, which is named as it, and compare it with the network."""
        step = converter(backend)
        own = step.fp16 if precision == "fp16" else None
        laid_out = "int8 for tensorrt" if precision == "int8" and step.layout == "tensorrt" else precision
        folder.mkdir()
        files = {}
        for graph, path in graphs["fp32" if own else laid_out].items():
            files[graph] = (own or step.convert)(path, folder)
        runs_on = step.backend or backend
        parity = self._parity(folder.name, runs_on, precision, files)
        named = {graph: f"{folder.name}/{file.name}" for graph, file in files.items()}
        return Variant(runs_on, precision, named, dict(step.requires), parity)

    def manifest(self, name: str, variants: dict[str, Variant]) -> Manifest:
        recipe = recipe_of(self._network)
        return Manifest(
            format=FORMAT,
            name=name,
            task=TASK,
            graphs=self.graphs,
            preprocess=self._preprocess(TEMPLATE),
            postprocess=encode(self._settings),
            labels=None,
            variants=variants,
            source=Source(edgecv.__version__, encode(recipe) if recipe else None, self._options.dataset),
            files={},
        )

    def _exported(self, network: Siamese, folder: Path, name: str) -> dict[str, Path]:
        folder.mkdir()
        graphs = {}
        for graph, branch in _branches(network).items():
            metadata = metadata_for(name, TASK, self._preprocess(graph), ())
            outputs, graphs[graph] = [spec.name for spec in branch.outputs], folder / f"{graph}.onnx"
            example = self._examples[graph]
            write_graph(branch, example, outputs, graphs[graph], options=self._options.onnx, metadata=metadata)
        return graphs

    def _preprocess(self, graph: str) -> Preprocess:
        side = self._settings.exemplar if graph == TEMPLATE else self._settings.search
        return dataclasses.replace(self._network.preprocess, size=(side, side))

    def _parity(self, variant: str, backend: str, precision: str, files: dict[str, Path]) -> Parity | None:
        if self._crops is None or self._wanted is None:
            return None
        create = session_class(backend).open
        with (
            create(files[TEMPLATE], SessionOptions()) as template,
            create(files[SEARCH], SessionOptions()) as search,
        ):
            got = answers((template, search), self._settings, self._crops)
        found = gate_tracker(self._wanted, got, precision, self._settings)
        if not found.ok:
            raise ParityError(
                f"{variant} does not agree with the network on {found.parity.samples} targets, nothing was written: "
                + found.reason,
                found,
            )
        return found.parity


def _branches(network: Siamese) -> dict[str, Branch]:
    return {TEMPLATE: TemplateBranch(network), SEARCH: SearchBranch(network)}


def _rewritten(graphs: dict[str, Path], change: Change, folder: Path) -> dict[str, Path]:
    folder.mkdir()
    for path in graphs.values():
        model = change(onnx.load(str(path)))
        write_file(folder / path.name, model.SerializeToString(deterministic=True))
    return {graph: folder / path.name for graph, path in graphs.items()}


def _by_precision(
    network: Siamese, quantized: QuantizedTracker | None, precisions: tuple[str, ...]
) -> dict[str, Siamese]:
    """What the graphs of each precision asked for are made of, in the order of preference."""
    held: dict[str, Siamese] = {"int8" if isinstance(network, QuantizedTracker) else "fp32": network}
    if quantized is not None:
        if "int8" in held or not isinstance(quantized, QuantizedTracker):
            raise InputError("quantized= takes what quantize_tracker made of the network, beside the network itself")
        held = {"int8": quantized, "fp32": network}
    made_of = {precision: {"fp16": "fp32"}.get(precision, precision) for precision in precisions or held}
    for precision, source in made_of.items():
        if source not in held and source == "int8":
            raise InputError("int8 takes a quantized tracker: give quantized=quantize_tracker(network, samples)")
        if source not in held:
            raise InputError(f"the tracker is quantized, {precision} was asked for: give the float one as well")
    return {precision: held[source] for precision, source in made_of.items()}


def _steps(backends: Sequence[str], precisions: Sequence[str]) -> dict[str, Converter]:
    if isinstance(backends, str) or not backends or len(set(backends)) != len(backends):
        raise InputError(f"backends is a list of different names, at least one, got {backends!r}")
    steps = {backend: converter(backend) for backend in backends}
    for backend, step in steps.items():
        for precision in precisions:
            if precision not in step.precisions:
                raise InputError(f"{backend} holds {' and '.join(step.precisions)}, {precision} was asked for")
    return steps


def _settings(network: Siamese, settings: TrackerSettings | None) -> TrackerSettings:
    """Those given, if they are for the graphs that this network gives."""
    own = network.settings
    for name in ("head", "exemplar", "search", "stride", "ratios"):
        given, wanted = getattr(settings or own, name), getattr(own, name)
        if given != wanted:
            raise InputError(f"settings say {name} {given!r}, the network has {wanted!r}")
    return settings or own


def _trace(branches: dict[str, Branch]) -> tuple[dict[str, dict[str, Tensor]], dict[str, list[Tensor]]]:
    """An example of every graph's inputs, and what they give."""
    examples: dict[str, dict[str, Tensor]] = {}
    outputs: dict[str, list[Tensor]] = {}
    features: dict[str, Tensor] = {}
    for name, branch in branches.items():
        frames = branch.inputs[-1]
        shape = (EXAMPLE_BATCH, *(side or 1 for side in (frames.shape or ())[1:]))
        examples[name] = {**features, frames.name: torch.zeros(shape, dtype=torch.uint8)}
        outputs[name] = _run(branch, examples[name])
        features = {"features": outputs[name][0]}
    return examples, outputs


def _run(branch: Branch, example: dict[str, Tensor]) -> list[Tensor]:
    session = TorchSession(branch, branch.inputs, branch.outputs)
    try:
        found = session.run({name: value.numpy() for name, value in example.items()})
    except InputError as error:
        raise ConversionError(f"{type(branch.network).__name__}: {one_line(error)}") from error
    return [torch.from_numpy(value) for value in found.values()]


def _sized(specs: Sequence[TensorSpec], values: dict[str, Tensor] | list[Tensor]) -> tuple[TensorSpec, ...]:
    """Specs with the sizes that are known now; only the batch stays free."""
    tensors = values.values() if isinstance(values, dict) else values
    return tuple(
        TensorSpec(spec.name, spec.dtype, (None, *value.shape[1:])) for spec, value in zip(specs, tensors, strict=True)
    )

"""``convert_tracker``: from a Siamese network to a bundle of two graphs whose every variant was compared with it."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import onnx
import torch
from torch import Tensor

import edgecv
from edgecv.bundle import Bundle, write_manifest
from edgecv.converters.onnx_from_torch import EXAMPLE_BATCH, OnnxOptions, metadata_for, write_graph
from edgecv.converters.onnx_to_fp16 import fp16_from_onnx
from edgecv.converters.registry import Converter, converter
from edgecv.errors import ConversionError, InputError, ParityError, one_line
from edgecv.files import new_folder, write_file
from edgecv.manifest import FORMAT, Graph, Manifest, Parity, Source, Variant
from edgecv.models.recipe import recipe_of
from edgecv.models.siamese import SearchBranch, Siamese, TemplateBranch
from edgecv.parity import BOUNDS, Gate, mean_iou, worst_gate
from edgecv.pipelines.tracking.samples import Crops, Sample, answers, cut_crops
from edgecv.pipelines.tracking.settings import TrackerSettings
from edgecv.preprocess import Preprocess
from edgecv.progress import Progress, silent
from edgecv.runtimes.pt import TorchSession
from edgecv.runtimes.registry import session_class
from edgecv.runtimes.session import SessionOptions
from edgecv.schema import encode
from edgecv.tensors import TensorSpec

__all__ = ["TASK", "TrackerOptions", "convert_tracker"]

TASK = "tracking"
TEMPLATE, SEARCH = "template", "search"
PRECISIONS = ("fp32", "fp16")
Branch = TemplateBranch | SearchBranch


@dataclass(frozen=True, slots=True)
class TrackerOptions:
    """The rarer settings of a tracker's conversion.

    Args:
        name: what the bundle calls itself; the output folder's name by default.
        onnx: the opset; the batch stays free.
        settings: how a tracker reads the answers, where not as the network itself says.
        dataset: what the network was trained on, for the manifest.
        precisions: ``"fp32"`` and ``"fp16"``, one variant of each for every backend; the first is what a backend picks.
        parity: ``False`` writes the bundle without comparing anything; the manifest says so.
        limit: the most targets that are compared.
    """

    name: str | None = None
    onnx: OnnxOptions = field(default_factory=OnnxOptions)
    settings: TrackerSettings | None = None
    dataset: str | None = None
    precisions: tuple[str, ...] = ("fp32",)
    parity: bool = True
    limit: int = 32

    def __post_init__(self) -> None:
        if self.onnx.batch is not None:
            raise InputError("a tracker's batch is free: it runs one target or several at a time")
        if wrong := [name for name in self.precisions if name not in PRECISIONS]:
            raise InputError(f"precisions are {' and '.join(map(repr, PRECISIONS))}, got {wrong[0]!r}")
        if self.limit < 1:
            raise InputError(f"limit is 1 target or more, got {self.limit}")


def convert_tracker(
    network: Siamese,
    out: str | Path,
    *,
    backends: Sequence[str] = ("onnxruntime", "openvino"),
    samples: Sequence[Sample] | None = None,
    options: TrackerOptions | None = None,
    progress: Progress = silent,
) -> Bundle:
    """Convert a tracker for several backends and write one bundle, if their answers agree with the network's.

    The bundle holds two graphs with a free batch: ``template`` (``template`` -> ``features``), which runs once for a
    target, and ``search`` (``features``, ``search`` -> ``score`` and most often ``box``). Both take uint8 RGB crops.

    Args:
        network: one of ``edgecv.models.siamese``, or a sibling of them.
        out: a folder that does not exist yet, or is empty; it appears whole or not at all.
        samples: annotated sequences, or pairs of a frame and a box, on which every variant must agree with the network:
            in its maps, and in the boxes that are read from them.

    Raises:
        ConversionError: a graph cannot be converted for one of the backends.
        ParityError: a variant's answers differ; nothing is written.
        InputError: an argument is wrong, or ``out`` holds something.
        BackendUnavailable: a backend's library is not installed.
    """
    options = options or TrackerOptions()
    if options.parity and not samples:
        raise InputError("convert needs samples: sequences, or frames with a box, to compare on (or parity=False)")
    steps = _steps(backends, options.precisions)
    settings = _settings(network, options.settings)
    crops = cut_crops(samples, settings, options.limit) if options.parity and samples else None
    job = _Job(network, settings, options, crops)
    pairs = [(backend, precision) for precision in options.precisions for backend in steps]
    with new_folder(out) as folder, tempfile.TemporaryDirectory() as scratch:
        name = options.name or Path(out).name
        graphs = job.export(Path(scratch), name, progress)
        variants = {}
        for done, (backend, precision) in enumerate(pairs, 1):
            key = f"{steps[backend].format}-{precision}"
            variants[key] = job.variant(backend, precision, graphs, folder / key)
            progress("convert and compare", done, len(pairs))
        write_manifest(folder, job.manifest(name, variants))
    return Bundle.load(out)


class _Job:
    """One network on its way into a bundle: two graphs in each precision, each variant compared with it."""

    def __init__(
        self, network: Siamese, settings: TrackerSettings, options: TrackerOptions, crops: Crops | None
    ) -> None:
        self._network, self._settings, self._options, self._crops = network, settings, options, crops
        self._branches: dict[str, Branch] = {TEMPLATE: TemplateBranch(network), SEARCH: SearchBranch(network)}
        self._examples, outputs = _trace(self._branches)
        self._graphs = {
            name: Graph(_sized(branch.inputs, self._examples[name]), _sized(branch.outputs, outputs[name]))
            for name, branch in self._branches.items()
        }
        template, search = (TorchSession(part, part.inputs, part.outputs) for part in self._branches.values())
        self._wanted = answers((template, search), settings, crops) if crops else None

    def export(self, folder: Path, name: str, progress: Progress) -> dict[str, dict[str, Path]]:
        """Each graph in each precision that is asked for, and float32 always: by precision, then by graph."""
        graphs: dict[str, dict[str, Path]] = {}
        for precision in ("fp32", *(kind for kind in self._options.precisions if kind != "fp32")):
            (folder / precision).mkdir()
            graphs[precision] = {graph: folder / precision / f"{graph}.onnx" for graph in self._branches}
        for done, (graph, branch) in enumerate(self._branches.items()):
            progress("export to ONNX", done, len(self._branches))
            metadata = metadata_for(name, TASK, self._preprocess(graph), ())
            outputs = [spec.name for spec in branch.outputs]
            path = graphs["fp32"][graph]
            write_graph(branch, self._examples[graph], outputs, path, options=self._options.onnx, metadata=metadata)
            if "fp16" in graphs:
                half = fp16_from_onnx(onnx.load(str(path)))
                write_file(graphs["fp16"][graph], half.SerializeToString(deterministic=True))
        progress("export to ONNX", len(self._branches), len(self._branches))
        return graphs

    def variant(self, backend: str, precision: str, graphs: dict[str, dict[str, Path]], folder: Path) -> Variant:
        """Write one variant into ``folder``, which is named as it, and compare it with the network."""
        step = converter(backend)
        own = step.fp16 if precision == "fp16" else None
        folder.mkdir()
        files = {}
        for graph, path in graphs["fp32" if own else precision].items():
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
            graphs=self._graphs,
            preprocess=self._preprocess(TEMPLATE),
            postprocess=encode(self._settings),
            labels=None,
            variants=variants,
            source=Source(edgecv.__version__, encode(recipe) if recipe else None, self._options.dataset),
            files={},
        )

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
            got, boxes = answers((template, search), self._settings, self._crops)
        outputs, wanted = self._wanted
        found = _with_boxes(worst_gate(outputs, got, precision, TASK), mean_iou(wanted, boxes), precision)
        if not found.ok:
            raise ParityError(
                f"{variant} does not agree with the network on {len(boxes)} targets, nothing was written: "
                + "; ".join(found.failures),
                found,
            )
        return dataclasses.replace(found.parity, samples=len(boxes))


def _with_boxes(gate: Gate, iou: float, precision: str) -> Gate:
    """The gate of the maps, and of the boxes that are read from them."""
    bound, failures = BOUNDS[precision].iou, gate.failures
    if iou < bound:
        failures = (*failures, f"mean IoU of the boxes is {iou:.3f}, {bound:g} wanted")
    return Gate(dataclasses.replace(gate.parity, mean_iou=iou), failures)


def _steps(backends: Sequence[str], precisions: Sequence[str]) -> dict[str, Converter]:
    for name, values in (("backends", backends), ("precisions", precisions)):
        if isinstance(values, str) or not values or len(set(values)) != len(values):
            raise InputError(f"{name} is a list of different names, at least one, got {values!r}")
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

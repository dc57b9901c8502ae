"""What every network of a chain has become: counted, scored, and timed in turns with the first one."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import onnx
from torch import nn

import edgecv
from edgecv.bundle import Bundle
from edgecv.chain.images import Images
from edgecv.chain.recipe import Chain
from edgecv.chain.steps import score_network
from edgecv.compression.placement import is_quantized
from edgecv.converters.onnx_from_torch import onnx_from_torch
from edgecv.converters.qdq_cpu import cpu_layout
from edgecv.converters.speed import speed_ratio
from edgecv.evaluation import evaluate
from edgecv.manifest import Accuracy
from edgecv.models.checkpoint import Card
from edgecv.models.counting import Counts, count
from edgecv.preprocess import Preprocess
from edgecv.profiling import Profile, example_inputs, profile
from edgecv.progress import Progress, silent
from edgecv.runtimes.opening import open_session
from edgecv.runtimes.registry import BACKENDS, availability
from edgecv.runtimes.session import Session
from edgecv.verification import EmbeddingScores

__all__ = ["Latency", "Measurer", "Row", "measured_backends"]

USUAL = ("onnxruntime", "openvino")


@dataclass(frozen=True, slots=True)
class Latency:
    """A profile, and how many times as fast as the first network this one is; ``None`` where that was not timed."""

    profile: Profile
    ratio: float | None


@dataclass(frozen=True, slots=True)
class Row:
    """One network of a chain, or one variant of its bundle, which has no counts of its own.

    ``size_bytes`` is of the ONNX file, or of what the variant stores. A network is scored in PyTorch, a variant on its
    backend.
    """

    name: str
    size_bytes: int
    scores: Accuracy | EmbeddingScores
    latencies: Mapping[str, Latency]
    counts: Counts | None = None


def measured_backends(chain: Chain) -> tuple[str, ...]:
    """The backends that a chain's networks are timed on.

    Raises:
        InputError: a name that the recipe has is no backend.
        BackendUnavailable: the library of one is not installed.
    """
    for name in chain.measure.backends:
        BACKENDS.load(name)
    return chain.measure.backends or tuple(name for name in USUAL if availability(name).available)


@dataclass
class Measurer:
    """Measures networks against the first that it is given; a ``with`` closes what it holds open."""

    chain: Chain
    card: Card
    preprocess: Preprocess
    images: Images
    backends: Sequence[str]
    progress: Progress = silent
    _held: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)
    _first: dict[str, Session] = field(default_factory=dict)
    _files: dict[str, tuple[Path, Path]] = field(default_factory=dict)

    def __enter__(self) -> Measurer:
        return self

    def __exit__(self, *_: object) -> None:
        self._held.close()

    def network(self, name: str, network: nn.Module) -> Row:
        """Measure a network as the file that each backend would get."""
        scores = score_network(network, self.card, self.preprocess, self.images.test, self._named(name))
        folder = Path(self._held.enter_context(tempfile.TemporaryDirectory()))
        exported, file = _export(network, folder, self.preprocess)
        self._files[name] = exported, file
        latencies = {}
        for backend in self.backends:
            session = self._held.enter_context(open_session(file, backend=backend, threads=1))
            latencies[backend] = self._latency(session, f"{name}, {backend}")
            if self._first.setdefault(backend, session) is not session:
                session.close()
        return Row(name, file.stat().st_size, scores, latencies, _counts(network, self.preprocess))

    def exported(self, name: str) -> onnx.ModelProto:
        """The graph of a network that was measured, as ``onnx_from_torch`` writes it."""
        return onnx.load(str(self._files[name][0]))

    def ratios(self, one: str, other: str) -> dict[str, float]:
        """How many times as fast as ``one`` ``other`` is on each backend, timed in turns."""
        found = {}
        for backend in self.backends:
            with open_session(self._files[one][1], backend=backend, threads=1) as first:
                with open_session(self._files[other][1], backend=backend, threads=1) as second:
                    found[backend] = speed_ratio(first, second, example_inputs(first.inputs))
        return found

    def variant(self, bundle: Bundle, name: str) -> Row:
        """Measure a variant of the chain's bundle."""
        backend = bundle.manifest.variants[name].backend
        size = sum(held.size_bytes for file, held in bundle.manifest.files.items() if file.startswith(f"{name}/"))
        with edgecv.load(bundle, backend=backend, variant=name, threads=1) as pipeline:
            latency = self._latency(pipeline.session, name)
            scores = evaluate(pipeline, self.images.test, progress=self._named(name))
        return Row(name, size, scores, {backend: latency})

    def _latency(self, session: Session, name: str) -> Latency:
        found = profile(session, duration_s=self.chain.measure.seconds, progress=self._named(name))
        first = self._first.get(session.backend)
        if first is None:
            return Latency(found, 1.0 if session.backend in self.backends else None)
        return Latency(found, speed_ratio(first, session, example_inputs(session.inputs)))

    def _named(self, name: str) -> Progress:
        return lambda stage, done, total: self.progress(f"{stage} {name}", done, total)


def _export(network: nn.Module, folder: Path, preprocess: Preprocess) -> tuple[Path, Path]:
    """The graph as it is exported, and as a CPU runs it."""
    exported = onnx_from_torch(network, folder / "exported.onnx", preprocess)
    if not is_quantized(network):
        return exported, exported
    laid_out = folder / "network.onnx"
    onnx.save(cpu_layout(onnx.load(str(exported))), str(laid_out))
    return exported, laid_out


def _counts(network: nn.Module, preprocess: Preprocess) -> Counts:
    """Without the ranges that quantizers learn, which no file has as weights."""
    learned = sum(item.numel() for name, item in network.named_parameters() if "_quantizers." in name)
    found = count(network, preprocess.size)
    return Counts(found.parameters - learned, found.macs)

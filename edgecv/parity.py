"""Parity: how far a graph's answers are from a reference's on the same real inputs. Needs no torch."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from edgecv.bundle import Bundle
from edgecv.errors import BackendUnavailable, InputError
from edgecv.evaluation import wilson_interval
from edgecv.manifest import Parity
from edgecv.pipelines.frames import run_frames
from edgecv.pipelines.tensors import Sample, run_samples
from edgecv.pipelines.tracking.boxes import overlaps
from edgecv.preprocess import Preprocess
from edgecv.progress import Progress, silent
from edgecv.runtimes.opening import open_session
from edgecv.runtimes.session import Session
from edgecv.suspects import Sides, likely_cause
from edgecv.tensors import Array

__all__ = [
    "BOUNDS",
    "Bounds",
    "Gate",
    "Verification",
    "compare",
    "gate",
    "mean_iou",
    "reference_variant",
    "verify",
    "worst_gate",
]

Floats = NDArray[np.float64]

BATCH = 16  # frames at a time
FLOOR = 1e-300  # below it a difference is none


@dataclass(frozen=True, slots=True)
class Bounds:
    """What answers of one precision must keep.

    Args:
        difference: the largest allowed, as a share of the reference's standard deviation over the samples.
        within: the least share of samples that keep to it. Ranges of int8 clip what calibration has not seen: on a few
            images the largest answers shrink, and their decisions stay.
        psnr_db, cosine, iou: the smallest allowed; the cosine of embeddings, the mean IoU of boxes.
        agreement: the least share of the same decisions: best class, five best classes, nearest neighbour.
        tie: classes are equal whose scores differ by this share of the sample's largest, neighbours whose cosines
            differ by it.
    """

    difference: float
    psnr_db: float
    cosine: float
    agreement: float
    tie: float
    iou: float
    within: float = 1.0


# Measured on 100 ImageNet photos against PyTorch, SqueezeNet 1.1 / MobileNetV2 with published weights; differences as
# shares of the deviation:
#   fp32  ONNX Runtime, OpenVINO: 4e-6 / 1.2e-5 (1e-6 of the largest score), 147 / 139 dB, no class changed.
#   fp16  the same two, and PyTorch itself in half precision: 0.006 / 0.054, 81 / 66 dB, one class of 100 changed where
#         the two best were 0.002 of the largest score apart, top-5 100 / 98.8 %.
#   int8  ONNX Runtime's quantizer, 7-bit weights per channel: 0.39 / 3.5, 44 / 31 dB, top-1 88 / 84 %. SqueezeNet
#         passes; MobileNetV2, which loses its accuracy without bias correction, does not. Nor does SqueezeNet with
#         8-bit weights on a CPU without VNNI, which saturates (4.6, 30 dB, 69 %). edgecv.quantize, calibrated on 50
#         other photos, SqueezeNet on 50: two photos at 1.4 and 1.2, the others below 0.8; no class changed.
# Faults in fp32: red and blue exchanged 6.6 / 7.1 at 27 / 28 dB, stretched frames 4.8 / 5.4 at 27 / 28 dB, height and
# width exchanged 5.4 / 8.6 at 25 dB, a mean off by 0.1 1.8 / 1.9, bicubic frames 0.72 / 0.57. A mean off by 0.04
# (0.64 / 1.3) may be less than the noise of int8: the fp32 and fp16 variants of the same network show it.
BOUNDS = {
    "fp32": Bounds(difference=1e-3, psnr_db=90, cosine=0.99999, agreement=1.0, tie=5e-5, iou=0.999),
    "fp16": Bounds(difference=0.15, psnr_db=50, cosine=0.999, agreement=0.99, tie=1e-2, iou=0.98),
    "int8": Bounds(difference=1.0, psnr_db=30, cosine=0.98, agreement=0.85, tie=1e-2, iou=0.85, within=0.95),
}


FAR = 2.0  # times the difference allowed is too much on a single sample, whatever the precision


@dataclass(frozen=True, slots=True)
class Gate:
    """Whether answers agree well enough; ``failures`` names each bound that does not hold, ``cause`` the likely reason.

    ``cause`` is ``None`` where nothing failed or nobody looked for it.
    """

    parity: Parity
    failures: tuple[str, ...]
    cause: str | None = None

    @property
    def ok(self) -> bool:
        """No bound is broken."""
        return not self.failures

    @property
    def reason(self) -> str:
        """The failures and their likely cause in one line; empty where there are none."""
        return "; ".join((*self.failures, *((self.cause,) if self.cause else ())))


@dataclass(frozen=True, slots=True)
class Verification:
    """The answers of a bundle's variants, compared with a reference's on the same frames.

    ``gates`` holds one entry per variant that ran here, ``skipped`` the reason for each that could not.
    """

    bundle_sha256: str
    reference: str
    samples: int
    gates: dict[str, Gate]
    skipped: dict[str, str]

    @property
    def ok(self) -> bool:
        """Every variant that was compared agrees."""
        return all(gate.ok for gate in self.gates.values())


def compare(reference: Array, answer: Array, precision: str = "fp32", task: str = "classification") -> Parity:
    """Measure how far ``answer[samples, …]`` is from ``reference`` of the same shape.

    Decisions are compared where a row is the scores of classes (``task`` is ``"classification"``), an embedding
    (``"embedding"``) or a box x, y, w, h (``"boxes"``).
    """
    if reference.shape != answer.shape:
        raise InputError(f"answers of shape {list(answer.shape)} cannot be compared with {list(reference.shape)}")
    bounds = BOUNDS[precision]
    wanted = reference.astype(np.float64).reshape(len(reference), -1)
    got = answer.astype(np.float64).reshape(len(answer), -1)
    with np.errstate(invalid="ignore", over="ignore"):  # answers may be infinite
        difference = np.abs(wanted - got)
        return Parity(
            samples=len(reference),
            max_abs=_number(difference.max()),
            mean_abs=_number(difference.mean()),
            cosine=_cosine(wanted, got),
            tolerance=bounds.difference * _spread(wanted),
            psnr_db=_psnr(wanted, difference),
            **{"top1_agreement": None, **(_decisions(wanted, got, bounds.tie, task) if reference.ndim == 2 else {})},
        )


def mean_iou(reference: Array, answer: Array) -> float:
    """The mean IoU of boxes x, y, w, h, ``[boxes, 4]``, each with the box of the same row; equal ones count 1."""
    same = (np.asarray(reference) == np.asarray(answer)).all(axis=-1)
    return float(np.where(same, 1.0, overlaps(reference, answer)).mean())


def gate(reference: Array, answer: Array, precision: str, task: str = "classification") -> Gate:
    """Compare answers and say which bounds for ``precision`` they break; arguments as for ``compare``.

    Shares of decisions come from a few samples, so one breaks its bound where Wilson's 95 % interval lies below it: one
    changed class in 20 may be chance for a bound of 99 %, three are not. A bound of 100 %, that of fp32, allows none.
    """
    parity, bounds = compare(reference, answer, precision, task), BOUNDS[precision]
    failures = []
    if not np.isfinite(answer.astype(np.float64)).all():
        failures.append("some answers are not finite")
    elif parity.max_abs > parity.tolerance:
        failures += _differences(reference, answer, parity, bounds.within)
    if parity.psnr_db is not None and parity.psnr_db < bounds.psnr_db:
        failures.append(f"PSNR is {parity.psnr_db:.1f} dB, {bounds.psnr_db:g} wanted")
    if task == "embedding" and parity.cosine < bounds.cosine:
        failures.append(f"smallest cosine is {parity.cosine:.5f}, {bounds.cosine:g} wanted")
    if parity.mean_iou is not None and parity.mean_iou < bounds.iou:
        failures.append(f"mean IoU of the boxes is {parity.mean_iou:.3f}, {bounds.iou:g} wanted")
    return Gate(parity, (*failures, *_changed_decisions(parity, bounds.agreement)))


def _differences(reference: Array, answer: Array, parity: Parity, within: float) -> Iterator[str]:
    """Too large a difference, or too many samples with one."""
    told = f"largest difference {parity.max_abs:.3g}, at most {parity.tolerance:.3g} allowed"
    if within == 1 or parity.max_abs > FAR * parity.tolerance:
        yield told
        return
    difference = np.abs(reference.astype(np.float64) - answer.astype(np.float64)).reshape(len(reference), -1)
    kept = int((difference.max(axis=1) <= parity.tolerance).sum())
    if kept < within * parity.samples and wilson_interval(kept, parity.samples)[1] < within:
        yield f"{told} on {within:.0%} of the samples; {parity.samples - kept} of {parity.samples} have more"


def _changed_decisions(parity: Parity, bound: float) -> Iterator[str]:
    shares = {
        "top-1": (parity.top1_agreement, parity.samples),
        "top-5": (parity.top5_agreement, parity.samples * 5),
        "nearest neighbour": (parity.rank1_agreement, parity.samples),
    }
    for name, (share, trials) in shares.items():
        if share is not None and share < bound and wilson_interval(round(share * trials), trials)[1] < bound:
            yield f"{name} agrees on {share:.1%} of the samples, {bound:.0%} wanted"


def verify(
    bundle: str | Path,
    *,
    samples: Sequence[NDArray[np.uint8]] | Sequence[Sample],
    reference: Session | None = None,
    reference_preprocess: Preprocess | None = None,
    threads: int | None = None,
    progress: Progress = silent,
) -> Verification:
    """Check a bundle on the machine it will run on: every byte against the manifest, every variant against a reference.

    Args:
        samples: real uint8 RGB frames of any size; of a bundle of ``convert_graph`` mappings as it takes them.
        reference: what the answers must agree with, such as a torch session of the network; by default the bundle's
            first fp32 variant that runs here.
        reference_preprocess: what the network was trained with, so that a wrong resize of the bundle is found too; by
            default the reference's frames are prepared as the bundle says.

    Raises:
        BundleError: the bundle itself is broken.
        BackendUnavailable: no variant can run here.
    """
    opened = Bundle.load(bundle)
    if opened.manifest.task == "tracking":
        raise InputError(f"{opened.path} is a tracker: edgecv.tracker_parity.verify_tracker compares it on sequences")
    if opened.manifest.preprocess is None and reference_preprocess is not None:
        raise InputError(f"{opened.path} has no frames of its own to prepare: leave reference_preprocess out")
    sessions, skipped = _open_variants(opened, threads)
    try:
        chosen = "the given session"
        if reference is None:
            chosen = reference_variant(opened, sessions)
            reference = sessions[chosen]
        preprocess = opened.manifest.preprocess
        wanted = _answers(opened, reference, reference_preprocess or preprocess, samples)
        gates = {}
        for done, (name, session) in enumerate(sessions.items(), 1):
            if name != chosen:
                got = _answers(opened, session, preprocess, samples)
                precision = opened.manifest.variants[name].precision
                sides = None
                if preprocess is not None:
                    frames = cast(Sequence[NDArray[np.uint8]], samples)
                    sides = Sides(reference, session, preprocess, frames, reference_preprocess)
                gates[name] = worst_gate(wanted, got, precision, opened.manifest.task, sides)
            progress("verify", done, len(sessions))
    finally:
        for session in sessions.values():
            session.close()
    return Verification(opened.sha256, chosen, len(samples), gates, skipped)


def _answers(
    bundle: Bundle, session: Session, preprocess: Preprocess | None, samples: Sequence[Any]
) -> dict[str, Array]:
    """What a session answers to frames; or, where a bundle has no preprocessing of its own, to arrays by input."""
    if preprocess is not None:
        return run_frames(session, preprocess, samples, batch=BATCH)
    (graph,) = bundle.manifest.graphs.values()
    return run_samples(session, graph.preprocess, samples, batch=BATCH)


def worst_gate(
    wanted: dict[str, Array],
    got: dict[str, Array],
    precision: str,
    task: str = "classification",
    sides: Sides | None = None,
) -> Gate:
    """The gate of the output that is furthest off; one that breaks a bound comes first.

    Where one does, and ``sides`` are given, they are run again to find the likely cause.
    """
    if missing := set(wanted) - set(got):
        raise InputError(f"the reference gives {', '.join(wanted)}, the variant {', '.join(got)}: no {missing.pop()!r}")
    gates = [gate(wanted[name], got[name], precision, task) for name in wanted]
    worst = max(gates, key=lambda item: (len(item.failures), item.parity.max_abs / item.parity.tolerance))
    if worst.ok or sides is None:
        return worst
    cause = likely_cause(sides, wanted, got, lambda one, other: worst_gate(one, other, precision, task).ok)
    return dataclasses.replace(worst, cause=cause)


def _open_variants(bundle: Bundle, threads: int | None) -> tuple[dict[str, Session], dict[str, str]]:
    """The variants that run here, opened, and why the others do not."""
    opened, skipped = {}, {}
    for name, variant in bundle.manifest.variants.items():
        try:
            opened[name] = open_session(bundle, backend=variant.backend, variant=name, threads=threads)
        except BackendUnavailable as error:
            skipped[name] = str(error)
    if not opened:
        raise BackendUnavailable(f"{bundle.path}: no variant can run here: {'; '.join(skipped.values())}")
    return opened, skipped


def reference_variant(bundle: Bundle, opened: Collection[str]) -> str:
    """The variant that others are compared with: the first in fp32 of those that run here, or else the first of them.

    Raises:
        InputError: only one runs here.
    """
    if len(opened) == 1:
        raise InputError(
            f"{bundle.path}: every file is intact, but only {next(iter(opened))} runs here, so there is nothing to "
            "compare it with; give the network as the reference"
        )
    precisions = bundle.manifest.variants
    return next((name for name in opened if precisions[name].precision == "fp32"), next(iter(opened)))


def _decisions(wanted: Floats, got: Floats, tie: float, task: str) -> dict[str, Any]:
    """The figures of the task's decision, by the names of ``Parity``'s fields."""
    count, width = wanted.shape
    found: dict[str, Any] = {}
    if task == "classification" and width > 1:
        top1 = _kept(wanted, got, 1, tie)
        found["top1_agreement"] = float(top1.mean())
        found["top1_interval"] = wilson_interval(int(top1.sum()), count)
        found["top5_agreement"] = float(_kept(wanted, got, 5, tie).mean()) if width > 5 else None
    elif task == "embedding" and count > 2:
        found["rank1_agreement"] = float(_same_neighbour(wanted, got, tie).mean())
    elif task == "boxes" and width == 4:
        found["mean_iou"] = mean_iou(wanted, got)
    return found


def _kept(wanted: Floats, got: Floats, best: int, tie: float) -> Floats:
    """Per sample, the share of the ``best`` classes of ``got`` that ``wanted`` scores among its own, or as high."""
    picked = np.argsort(-got, axis=1, kind="stable")[:, :best]
    least = np.sort(wanted, axis=1)[:, -best] - tie * np.abs(wanted).max(axis=1)
    return np.asarray((np.take_along_axis(wanted, picked, axis=1) >= least[:, None]).mean(axis=1))


def _same_neighbour(wanted: Floats, got: Floats, tie: float) -> NDArray[np.bool_]:
    near, found = _cosines(wanted), _cosines(got)
    picked = np.take_along_axis(near, found.argmax(axis=1)[:, None], axis=1)[:, 0]
    return np.asarray(picked >= near.max(axis=1) - tie)


def _cosines(values: Floats) -> Floats:
    """Between all samples; with itself none has any."""
    norms = np.linalg.norm(values, axis=1, keepdims=True)
    units = values / np.where(norms == 0, 1, norms)
    cosines = np.nan_to_num(units @ units.T, nan=-1.0)
    np.fill_diagonal(cosines, -np.inf)
    return np.asarray(cosines)


def _spread(wanted: Floats) -> float:
    """The standard deviation; 1 where there is none."""
    spread = float(wanted.std())
    return spread if math.isfinite(spread) and spread > 0 else 1.0


def _psnr(wanted: Floats, difference: Floats) -> float | None:
    """In dB to one decimal; ``None`` where it is infinite: nothing differs, or all answers of the reference are one."""
    span, error = float(np.ptp(wanted)), float(np.sqrt((difference**2).mean()))
    if not (math.isfinite(error) and math.isfinite(span)) or min(span, error) < FLOOR:
        return None
    return round(20 * math.log10(span / error), 1)


def _cosine(wanted: Floats, got: Floats) -> float:
    """The smallest cosine over the samples; 0 where one side is all zeros and the other is not."""
    norms = np.linalg.norm(wanted, axis=1) * np.linalg.norm(got, axis=1)
    same = (wanted == got).all(axis=1)
    cosines = np.where(same, 1.0, (wanted * got).sum(axis=1) / np.where(norms == 0, np.inf, norms))
    return round(float(np.clip(np.nan_to_num(cosines), -1, 1).min()), 9)


def _number(value: np.floating) -> float:
    """Three significant digits, so that figures repeat; overflow and NaN become the largest float JSON can hold."""
    return float(f"{value:.3g}") if math.isfinite(value) else float(np.finfo(np.float64).max)

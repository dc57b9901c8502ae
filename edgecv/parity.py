"""Parity: how far a graph's answers are from a reference's on the same real inputs. Needs no torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgecv.bundle import Bundle
from edgecv.errors import BackendUnavailable, InputError
from edgecv.manifest import Parity
from edgecv.pipelines.frames import run_frames
from edgecv.progress import Progress, silent
from edgecv.runtimes.opening import open_session
from edgecv.runtimes.session import Session
from edgecv.tensors import Array

__all__ = ["TOLERANCE", "Gate", "Verification", "compare", "gate", "verify", "worst_gate"]

# The largest difference allowed, as a share of the reference's own spread (its standard deviation over the samples),
# by precision. fp32 graphs differ from PyTorch by rounding alone: 1e-7 to 2e-5 of the largest value was measured.
TOLERANCE = {"fp32": 1e-3, "fp16": 5e-2, "int8": 1.0}
BATCH = 16  # frames at a time
TOP1_AGREEMENT = 0.99  # of the samples; fp32 variants reach 1 unless two classes tie


@dataclass(frozen=True, slots=True)
class Gate:
    """Whether answers agree well enough; ``failures`` names each bound that does not hold."""

    parity: Parity
    failures: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """No bound is broken."""
        return not self.failures


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


def compare(reference: Array, answer: Array, tolerance: float, classes: bool = True) -> Parity:
    """Measure how far ``answer[samples, …]`` is from ``reference`` of the same shape.

    ``tolerance`` is recorded beside the figures, in the output's own unit. Top-1 is compared where a row is scores of
    ``classes``.
    """
    if reference.shape != answer.shape:
        raise InputError(f"answers of shape {list(answer.shape)} cannot be compared with {list(reference.shape)}")
    wanted = reference.astype(np.float64).reshape(len(reference), -1)
    got = answer.astype(np.float64).reshape(len(answer), -1)
    with np.errstate(invalid="ignore"):  # answers may be infinite
        difference = np.abs(wanted - got)
    scores = classes and reference.ndim == 2 and reference.shape[1] > 1
    top1 = float((wanted.argmax(1) == got.argmax(1)).mean()) if scores else None
    return Parity(
        samples=len(reference),
        max_abs=_number(difference.max()),
        mean_abs=_number(difference.mean()),
        cosine=_cosine(wanted, got),
        top1_agreement=top1,
        tolerance=tolerance,
    )


def gate(reference: Array, answer: Array, precision: str, classes: bool = True) -> Gate:
    """Compare answers and say which bounds for ``precision`` they break."""
    spread = float(reference.astype(np.float64).std()) or 1.0
    parity = compare(reference, answer, TOLERANCE[precision] * spread, classes)
    failures = []
    if not np.isfinite(answer.astype(np.float64)).all():
        failures.append("some answers are not finite")
    elif parity.max_abs > parity.tolerance:
        failures.append(f"largest difference {parity.max_abs:.3g}, at most {parity.tolerance:.3g} allowed")
    if parity.top1_agreement is not None and parity.top1_agreement < TOP1_AGREEMENT:
        failures.append(f"top-1 agrees on {parity.top1_agreement:.1%} of the samples, {TOP1_AGREEMENT:.0%} wanted")
    return Gate(parity, tuple(failures))


def verify(
    bundle: str | Path,
    *,
    samples: Sequence[NDArray[np.uint8]],
    reference: Session | None = None,
    threads: int | None = None,
    progress: Progress = silent,
) -> Verification:
    """Check a bundle on the machine it will run on: every byte against the manifest, every variant against a reference.

    Args:
        samples: real uint8 RGB frames of any size.
        reference: what the answers must agree with, such as a torch session of the network; by default the bundle's
            first fp32 variant that runs here.

    Raises:
        BundleError: the bundle itself is broken.
        BackendUnavailable: no variant can run here.
    """
    opened = Bundle.load(bundle)
    sessions, skipped = _open_variants(opened, threads)
    try:
        chosen = "the given session"
        if reference is None:
            chosen = _reference_variant(opened, sessions)
            reference = sessions[chosen]
        preprocess = opened.manifest.preprocess
        wanted = run_frames(reference, preprocess, samples, batch=BATCH)
        gates = {}
        for done, (name, session) in enumerate(sessions.items(), 1):
            if name != chosen:
                got = run_frames(session, preprocess, samples, batch=BATCH)
                precision = opened.manifest.variants[name].precision
                gates[name] = worst_gate(wanted, got, precision, opened.manifest.task)
            progress("verify", done, len(sessions))
    finally:
        for session in sessions.values():
            session.close()
    return Verification(opened.sha256, chosen, len(samples), gates, skipped)


def worst_gate(wanted: dict[str, Array], got: dict[str, Array], precision: str, task: str = "classification") -> Gate:
    """The gate of the output that is furthest off; one that breaks a bound comes first."""
    gates = [gate(wanted[name], got[name], precision, task == "classification") for name in wanted]
    return max(gates, key=lambda item: (len(item.failures), item.parity.max_abs / item.parity.tolerance))


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


def _reference_variant(bundle: Bundle, opened: dict[str, Session]) -> str:
    if len(opened) == 1:
        raise InputError(
            f"{bundle.path}: every file is intact, but only {next(iter(opened))} runs here, so there is nothing to "
            "compare it with; give the network as the reference"
        )
    precisions = bundle.manifest.variants
    return next((name for name in opened if precisions[name].precision == "fp32"), next(iter(opened)))


def _cosine(wanted: NDArray[np.float64], got: NDArray[np.float64]) -> float:
    """The smallest cosine over the samples; 0 where one side is all zeros and the other is not."""
    norms = np.linalg.norm(wanted, axis=1) * np.linalg.norm(got, axis=1)
    same = (wanted == got).all(axis=1)
    with np.errstate(invalid="ignore"):  # answers may be infinite
        cosines = np.where(same, 1.0, (wanted * got).sum(axis=1) / np.where(norms == 0, np.inf, norms))
    return round(float(np.nan_to_num(cosines).min()), 9)


def _number(value: np.floating) -> float:
    """Three significant digits, so that figures repeat; overflow and NaN become the largest float JSON can hold."""
    return float(f"{value:.3g}") if math.isfinite(value) else float(np.finfo(np.float64).max)

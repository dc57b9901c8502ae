"""``profile``: measure the latency of one session, keep the raw samples and the conditions."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgecv.errors import InputError, one_line
from edgecv.files import write_file
from edgecv.profiling.statistics import doubts, is_steady
from edgecv.profiling.system import Machine, library_versions, load_average, machine
from edgecv.progress import Progress, silent
from edgecv.runtimes.opening import open_session
from edgecv.runtimes.session import Session
from edgecv.schema import decode, dumps, loads
from edgecv.tensors import Array, TensorSpec

__all__ = ["FORMAT", "Conditions", "Profile", "conditions_of", "example_inputs", "profile", "sampled"]

FORMAT = 1
WARMUP_SHARE = 0.3  # of the measuring time, at most, is spent on warming up
ANY_SIZE = 224  # what a free height or width is measured at
Clock = Callable[[], int]
Step = Callable[[], float]


@dataclass(frozen=True, slots=True)
class Conditions:
    """All that a latency depends on. Two profiles compare only where these agree."""

    machine: Machine
    backend: str
    device: str
    threads: int | None
    inputs: dict[str, tuple[str, tuple[int, ...]]]
    versions: dict[str, str]
    bundle_sha256: str | None
    load_average: float | None


@dataclass(frozen=True, slots=True)
class Profile:
    """Raw latency samples and the conditions they were taken under; all times in milliseconds.

    ``load_ms`` is opening the session, ``first_ms`` the first inference (``None`` where they happened before measuring
    began); neither they nor the warm-up are among the samples. ``doubts`` are reasons not to trust the result.
    """

    format: int
    samples_ms: tuple[float, ...]
    warmup_runs: int
    load_ms: float | None
    first_ms: float | None
    doubts: tuple[str, ...]
    conditions: Conditions

    def __post_init__(self) -> None:
        if not self.samples_ms:
            raise InputError("a profile needs at least one sample")

    def percentile(self, share: float) -> float:
        """The latency that ``share`` percent of the runs stayed at or below, interpolated between samples."""
        return float(np.percentile(self.samples_ms, share))

    @property
    def p50_ms(self) -> float:
        """Median latency."""
        return self.percentile(50)

    @property
    def p90_ms(self) -> float:
        """Nine runs in ten were at least this fast."""
        return self.percentile(90)

    @property
    def p99_ms(self) -> float:
        """Ninety-nine runs in a hundred were at least this fast."""
        return self.percentile(99)

    @property
    def mean_ms(self) -> float:
        """Mean latency."""
        return float(np.mean(self.samples_ms))

    @property
    def batch(self) -> int:
        """Items per run: the first size of the first input."""
        shape = next(iter(self.conditions.inputs.values()))[1]
        return shape[0] if shape else 1

    @property
    def throughput_per_s(self) -> float:
        """Items per second, one run after another."""
        return self.batch * 1e3 / self.mean_ms

    def summary(self) -> dict[str, float]:
        """The figures that are quoted."""
        names = ("p50_ms", "p90_ms", "p99_ms", "mean_ms", "throughput_per_s")
        return {name: round(getattr(self, name), 4) for name in names}

    def save(self, path: str | Path) -> None:
        """Write the profile as JSON, raw samples included."""
        write_file(path, dumps(self))

    @classmethod
    def load(cls, path: str | Path) -> Profile:
        """Read what ``save`` wrote."""
        try:
            data = loads(Path(path).read_bytes(), str(path))
        except OSError as error:
            raise InputError(f"cannot read profile {path}: {one_line(error.strerror or error)}") from error
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise InputError(f"{path} is not a profile of format {FORMAT}")
        return decode(cls, data, str(path))


def profile(
    target: Session | str | Path,
    *,
    duration_s: float = 10.0,
    batch: int = 1,
    inputs: Mapping[str, Array] | None = None,
    clock: Clock = time.perf_counter_ns,
    progress: Progress = silent,
) -> Profile:
    """Measure the latency of a session, one run after another.

    Runs first without counting until the median is steady (at most 30 % of ``duration_s``), then measures for
    ``duration_s`` seconds. The clock is monotonic and read around each run.

    Args:
        target: an open session, or what ``open_session`` takes (its load time is then part of the result).
        batch: items per run, where the graph leaves the batch free.
        inputs: what to run on; by default the same random values every time.
        clock: nanoseconds; tests pass one of their own.

    Raises:
        InputError: the duration is not positive, or the inputs do not fit.
    """
    if not 0 < duration_s <= 86400:
        raise InputError(f"duration_s is above 0 and at most a day, got {duration_s!r}")
    if not isinstance(target, Session):
        with open_session(target) as session:
            return profile(session, duration_s=duration_s, batch=batch, inputs=inputs, clock=clock, progress=progress)
    feed = dict(inputs) if inputs is not None else example_inputs(target.inputs, batch)
    fresh = not target.has_run
    conditions = conditions_of(target, feed)
    found = sampled(lambda: _time(target, feed, clock), conditions, duration_s, clock=clock, progress=progress)
    return replace(found, load_ms=target.load_ms, first_ms=found.first_ms if fresh else None)


def sampled(
    step: Step,
    conditions: Conditions,
    duration_s: float,
    *,
    clock: Clock = time.perf_counter_ns,
    progress: Progress = silent,
    alike: bool = True,
) -> Profile:
    """Measure whatever ``step`` does: each call runs it once and says how many milliseconds that took.

    Args:
        alike: every run does the same work; where not, changes of latency are no reason to doubt it.
    """
    first_ms = step()
    warmup = _warm_up(step, clock, duration_s * WARMUP_SHARE)
    samples = _measure(step, clock, duration_s, progress)
    steady = is_steady(warmup) or is_steady(list(samples))
    return Profile(
        format=FORMAT,
        samples_ms=tuple(samples.tolist()),
        warmup_runs=len(warmup),
        load_ms=None,
        first_ms=first_ms,
        doubts=doubts(samples, steady, conditions.load_average, conditions.machine.cores, alike),
        conditions=conditions,
    )


def conditions_of(session: Session, feed: Mapping[str, Array]) -> Conditions:
    """What a latency of ``session`` on ``feed`` depends on, now and here."""
    return Conditions(
        machine=machine(),
        backend=session.backend,
        device=session.options.device,
        threads=session.options.threads,
        inputs={name: (str(array.dtype), array.shape) for name, array in feed.items()},
        versions={**library_versions(), **session.versions},
        bundle_sha256=session.bundle_sha256,
        load_average=load_average(),
    )


def example_inputs(specs: tuple[TensorSpec, ...], batch: int = 1) -> dict[str, Array]:
    """The same random arrays for a graph's inputs every time: bytes over their range, floats from 0 to 1.

    A free first size is ``batch``; a free height or width of an image is 224; any other free size is 1.
    """
    if not isinstance(batch, int) or batch < 1:
        raise InputError(f"batch is a whole number from 1, got {batch!r}")
    generator = np.random.default_rng(0)
    return {spec.name: _example(spec, batch, generator) for spec in specs}


def _example(spec: TensorSpec, batch: int, generator: np.random.Generator) -> Array:
    if spec.shape is None:
        raise InputError(f"input {spec.name!r} has no declared rank; pass inputs= to profile this graph")
    if spec.shape and spec.shape[0] not in (None, batch):
        raise InputError(f"input {spec.name!r} takes {spec}: its batch is fixed at {spec.shape[0]}, got batch={batch}")
    image = len(spec.shape) == 4
    shape = [size or (batch if axis == 0 else ANY_SIZE if image else 1) for axis, size in enumerate(spec.shape)]
    if spec.numpy.kind == "f":
        return generator.random(shape).astype(spec.numpy)
    if spec.numpy.kind == "b":
        return generator.random(shape) < 0.5
    return generator.integers(0, 256 if spec.numpy == np.uint8 else 2, shape).astype(spec.numpy)


def _time(session: Session, feed: Mapping[str, Array], clock: Clock) -> float:
    start = clock()
    session.run(feed)
    return (clock() - start) / 1e6


def _warm_up(step: Step, clock: Clock, limit_s: float) -> list[float]:
    start = clock()
    samples: list[float] = []
    while not is_steady(samples) and clock() - start < limit_s * 1e9:
        samples.append(step())
    return samples


def _measure(step: Step, clock: Clock, duration_s: float, progress: Progress) -> NDArray[np.float64]:
    start = clock()
    samples: list[float] = []
    elapsed = reported = 0.0
    progress("profile", 0, duration_s)
    while elapsed < duration_s:
        samples.append(step())
        elapsed = (clock() - start) / 1e9
        if elapsed - reported >= 0.2:  # between runs, not within one
            reported = elapsed
            progress("profile", min(elapsed, duration_s), duration_s)
    progress("profile", duration_s, duration_s)
    return np.array(samples)

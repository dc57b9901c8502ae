"""Statistics of latency samples, and when not to believe them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["doubts", "is_steady"]

FEWEST = 100  # runs for a median and p90 worth quoting
FEWEST_P99 = 1000  # runs that put ten samples behind p99
DRIFT = 0.05  # change of the median from the first third to the last
SPREAD = 1.3  # p90 over p50 of an undisturbed machine stays below


def is_steady(samples_ms: Sequence[float], window: int = 10, tolerance: float = 0.05) -> bool:
    """Whether the medians of the last two windows differ by less than ``tolerance``: warm-up is over."""
    if len(samples_ms) < 2 * window:
        return False
    before, after = np.median(samples_ms[-2 * window : -window]), np.median(samples_ms[-window:])
    return bool(abs(after - before) <= tolerance * before)


def doubts(
    samples_ms: NDArray[np.float64], steady: bool, load: float | None, cores: int, alike: bool = True
) -> tuple[str, ...]:
    """Reasons not to trust a measurement, each with what to do about it; empty where there is none.

    ``alike``: every run does the same work, so that a change between runs has another reason.
    """
    count = len(samples_ms)
    found = []
    if alike and not steady:
        found.append("latency was still changing when measuring began: warm up for longer")
    if count < FEWEST:
        found.append(f"only {count} runs: measure for longer, {FEWEST} runs are wanted for p50 and p90")
    elif count < FEWEST_P99:
        behind = max(1, count // 100)
        found.append(f"p99 rests on {behind} of {count} runs: do not quote it, or measure for longer")
    if alike and count >= 30:
        third = count // 3
        first, last = np.median(samples_ms[:third]), np.median(samples_ms[-third:])
        change = float(last / first - 1) if first > 0 else 0.0
        if abs(change) > DRIFT:
            found.append(f"the median drifted by {change:+.0%} from the first third to the last: heat, or other work")
        p50, p90 = np.percentile(samples_ms, (50, 90))
        if p90 > SPREAD * p50:
            found.append(f"p90 is {p90 / p50:.1f} times p50: something else was running; stop it, or pin the process")
    if load is not None and load > cores:
        found.append(f"load average was {load:.1f} on {cores} cores before measuring: other processes compete")
    return tuple(found)

"""Whether the target is there at all: what the response map and the exemplar say, as one probability.

A tracker's own score stays near 0.9 whatever it follows. The measures here are the peak's height; the peak-to-sidelobe
ratio (Bolme et al., 2010, "Visual object tracking using adaptive correlation filters"); the average peak-to-correlation
energy (Wang, Liu & Huang, 2017, arXiv:1703.05020); and how much what was found agrees with the exemplar.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgecv.errors import InputError

__all__ = ["Confidence", "Measures", "agreement", "calibrate", "measure"]

SIDELOBE = 2  # cells around the peak that do not count as its sidelobe
FLOOR = 1e-3  # ratios below it, and divisors, are taken as this much
RIDGE = 1.0  # weight of the penalty on standardized constants, so that separable data has a solution

Floats = NDArray[np.float64]


class Measures(NamedTuple):
    """The height of a response map's peak in logits, and the natural logarithms of its PSR and APCE."""

    peak: float
    psr: float
    apce: float


@dataclass(frozen=True, slots=True)
class Confidence:
    """Constants that turn measures into the probability that the target is there, and where its states begin.

    Args:
        response: bias, then the weights of peak, PSR and APCE, where only the map is known.
        full: the same four, then the weight of the agreement with the exemplar.
        sure: from here on the map alone decides, and a lost target counts as found again at another place.
        doubt: below it the target is ``unsure``; from here on a lost one counts as found again at its last place.
        absent: below it the target is taken to be hidden: its box stays where it is.
        patience: after so many hidden frames in a row the target is ``lost``.
    """

    response: tuple[float, float, float, float]
    full: tuple[float, float, float, float, float]
    sure: float = 0.9
    doubt: float = 0.5
    absent: float = 0.02
    patience: int = 5

    def __post_init__(self) -> None:
        object.__setattr__(self, "response", tuple(self.response))
        object.__setattr__(self, "full", tuple(self.full))
        if len(self.response) != 4 or len(self.full) != 5:
            raise InputError(f"confidence has 4 and 5 constants, got {len(self.response)} and {len(self.full)}")
        if not 0 <= self.absent <= self.doubt <= self.sure <= 1 or self.patience < 1:
            raise InputError("confidence has 0 <= absent <= doubt <= sure <= 1 and a patience of 1 frame or more")

    def probability(self, measures: Measures, agreement: float | None = None) -> float:
        """How likely the target is there, 0-1."""
        constants = self.response if agreement is None else self.full
        values = (1.0, *measures) if agreement is None else (1.0, *measures, agreement)
        total = sum(constant * value for constant, value in zip(constants, values, strict=True))
        return 0.5 + 0.5 * math.tanh(0.5 * total)


def measure(response: NDArray[np.float32]) -> Measures:
    """Measure a response map ``[rows, columns]`` of logits."""
    row, column = divmod(int(response.argmax()), response.shape[1])
    exact = response.astype(np.float64)  # sums of squares are taken apart below
    flat, count = exact.ravel(), response.size
    peak, low, total, squares = float(exact[row, column]), float(flat.min()), float(flat.sum()), float(flat @ flat)
    energy = (squares - 2 * low * total) / count + low * low
    apce = (peak - low) ** 2 / max(energy, FLOOR**2)
    rows = slice(max(0, row - SIDELOBE), row + SIDELOBE + 1)
    columns = slice(max(0, column - SIDELOBE), column + SIDELOBE + 1)
    lobe = exact[rows, columns].ravel()
    rest = max(count - lobe.size, 1)
    sidelobe = (total - float(lobe.sum())) / rest
    variance = (squares - float(lobe @ lobe)) / rest - sidelobe * sidelobe
    psr = (peak - sidelobe) / max(math.sqrt(max(variance, 0.0)), FLOOR)
    return Measures(peak, math.log(max(psr, FLOOR)), math.log(max(apce, FLOOR)))


def agreement(exemplar: NDArray[np.float32], found: NDArray[np.float32]) -> float:
    """Mean cosine between the features of two crops, cell by cell, over the middle half of their sides.

    Both are the template graph's answer to one crop, ``[…, channels, rows, columns]``; the surroundings, which change
    while a target moves, stay out.
    """
    first, second = _middle(exemplar), _middle(found)
    lengths = np.sqrt(np.square(first).sum(-2) * np.square(second).sum(-2))
    return float(np.mean((first * second).sum(-2) / np.maximum(lengths, 1e-12)))


def calibrate(measures: Sequence[tuple[Measures, float]], present: Sequence[bool]) -> Confidence:
    """Fit the constants on frames where the target is known to be present or absent: logistic regression.

    Each item of ``measures`` is a frame's map and its agreement. Both outcomes weigh the same, however often they come.

    Raises:
        InputError: there are not both outcomes.
    """
    there = np.array(present, bool)
    if len(measures) != len(there) or there.all() or not there.any():
        raise InputError("calibration needs as many measures as outcomes, some with the target and some without it")
    values = np.array([(*found, agreed) for found, agreed in measures], np.float64)
    response, full = _regression(values[:, :3], there), _regression(values, there)
    return Confidence((response[0], *response[1:4]), (full[0], *full[1:5]))  # type: ignore[arg-type]  # lengths are known


def _regression(values: Floats, there: NDArray[np.bool_]) -> list[float]:
    """Bias and weights by Newton's method, each rounded to four digits."""
    middle, spread = values.mean(0), np.maximum(values.std(0), 1e-9)
    design = np.column_stack([np.ones(len(values)), (values - middle) / spread])
    weights = np.where(there, 0.5 / there.mean(), 0.5 / (1 - there.mean()))
    ridge = RIDGE * np.diag([0.0, *np.ones(values.shape[1])])
    found = np.zeros(design.shape[1])
    for _ in range(50):
        chance = 0.5 + 0.5 * np.tanh(0.5 * design @ found)
        slope = design.T @ (weights * (chance - there)) + ridge @ found
        curve = (design * (weights * chance * (1 - chance))[:, None]).T @ design + ridge
        step = np.linalg.solve(curve + 1e-9 * np.eye(len(found)), slope)
        found -= step
        if np.abs(step).max() < 1e-9:
            break
    plain = found[1:] / spread
    return [float(f"{value:.4g}") for value in (found[0] - plain @ middle, *plain)]


def _middle(features: NDArray[Any]) -> NDArray[Any]:
    """``[…, channels, cells]`` of the middle half of rows and columns."""
    rows, columns = (slice(size // 4, size - size // 4) for size in features.shape[-2:])
    return features[..., rows, columns].reshape(*features.shape[:-2], -1)

"""From what a search graph answers to where the target is: one class per kind of head, in numpy."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from edgecv.pipelines.tracking.boxes import context_side
from edgecv.pipelines.tracking.crops import opencv
from edgecv.pipelines.tracking.settings import TrackerSettings
from edgecv.tensors import Array

__all__ = ["Anchors", "Found", "Head", "Peak", "Points", "head_for"]

Floats = NDArray[np.float32]
Size = tuple[float, float]
REACH = 8.0  # the logarithm of the largest size: an untrained or broken network's must not overflow
LARGEST = math.exp(REACH)  # pixels: no box that fits a crop is larger


class Found(NamedTuple):
    """Where a head puts the target, in pixels of the search crop.

    ``shift`` (x, y) is from the crop's centre to the target's, ``size`` (w, h) already follows the old one at the
    settings' rate; ``score`` is 0-1; ``response`` ``[rows, columns]`` holds the best logit of every cell.
    """

    shift: tuple[float, float]
    size: Size
    score: float
    response: Floats


class Head(Protocol):
    """Reads the outputs for one target, each ``[scales, …]``; ``size`` is the target's, in pixels of the crop."""

    def locate(self, outputs: Mapping[str, Array], size: Size) -> Found: ...


class Points:
    """One score and one box per cell: distances from the cell's point to the four sides. (SiamBAN.)"""

    def __init__(self, settings: TrackerSettings) -> None:
        self.settings = settings
        self._grid: Grid | None = None

    def locate(self, outputs: Mapping[str, Array], size: Size) -> Found:
        score, sides = outputs["score"][0], outputs["box"][0]
        grid = self._grid = self._grid or Grid(score.shape[1:], self.settings)
        left, top, right, bottom = _within(sides.reshape(4, -1), LARGEST)
        logits = _target_of_two(score)
        w, h = np.maximum(left + right, 1 / LARGEST), np.maximum(top + bottom, 1 / LARGEST)
        best, chance, follow = _choose(w, h, logits.ravel(), grid.window, size, self.settings)
        x = grid.x[best] + 0.5 * (right[best] - left[best])
        y = grid.y[best] + 0.5 * (bottom[best] - top[best])
        return Found((float(x), float(y)), follow, chance, logits)


class Anchors:
    """One score and one box per anchor of a cell: offsets in units of the anchor. (SiamRPN, Li et al., 2018.)"""

    def __init__(self, settings: TrackerSettings) -> None:
        self.settings = settings
        self._grid: Grid | None = None
        ratios = np.array(settings.ratios, np.float32)
        stretch: Floats = np.sqrt(ratios)
        self._sides: tuple[Floats, Floats] = (settings.anchor / stretch, settings.anchor * stretch)

    def locate(self, outputs: Mapping[str, Array], size: Size) -> Found:
        count = len(self.settings.ratios)
        score, offsets = outputs["score"][0], outputs["box"][0]
        grid = self._grid = self._grid or Grid(score.shape[1:], self.settings, count)
        logits = _target_of_two(score.reshape(2, count, -1))
        x, y, w, h = offsets.reshape(4, count, -1)
        wide, high = self._sides
        widths: Floats = (wide[:, None] * _exp(w)).ravel()
        heights: Floats = (high[:, None] * _exp(h)).ravel()
        best, chance, follow = _choose(widths, heights, logits.ravel(), grid.window, size, self.settings)
        anchor, cell = divmod(best, x.shape[1])
        right = grid.x[cell] + x[anchor, cell] * self._sides[0][anchor]
        down = grid.y[cell] + y[anchor, cell] * self._sides[1][anchor]
        return Found((float(right), float(down)), follow, chance, logits.max(0).reshape(score.shape[1:]))


class Peak:
    """One response per cell at several scales: the best scale's peak is the target. (SiamFC, section 3.4.)"""

    UPSAMPLING = 16  # the response is made finer before its peak is taken, as in the paper

    def __init__(self, settings: TrackerSettings) -> None:
        self.settings = settings
        self.factors = scale_factors(settings)

    def locate(self, outputs: Mapping[str, Array], size: Size) -> Found:
        responses = outputs["score"][:, 0]
        middle = len(self.factors) // 2
        weights = np.where(np.arange(len(self.factors)) == middle, 1.0, self.settings.penalty)
        chances = _sigmoid(responses)
        best = int(np.argmax(chances.max((1, 2)) * weights))
        fine = opencv().resize(responses[best], None, fx=self.UPSAMPLING, fy=self.UPSAMPLING, interpolation=2)
        shift = self._peak(fine, self.settings.stride / self.UPSAMPLING * self.factors[best])
        growth = 1 + self.settings.rate * (self.factors[best] - 1)
        grown = size[0] * growth, size[1] * growth
        return Found(shift, grown, float(chances[best].max()), responses[best])

    def _peak(self, fine: Floats, pixels: float) -> tuple[float, float]:
        shifted = fine - fine.min()
        total = max(float(shifted.sum()), 1e-12)
        window = _hanning(fine.shape)
        mixed = (1 - self.settings.window) / total * shifted + self.settings.window / window.sum() * window
        row, column = divmod(int(np.argmax(mixed)), fine.shape[1])
        return pixels * (column + 0.5 - fine.shape[1] / 2), pixels * (row + 0.5 - fine.shape[0] / 2)


class Grid:
    """The cells of an answer: their points, in pixels from the crop's centre, and the cosine window over them, by its
    weight; ``count`` candidates to a cell.
    """

    def __init__(self, shape: tuple[int, ...], settings: TrackerSettings, count: int = 1) -> None:
        rows, columns = (settings.origin(side) + np.arange(side) * settings.stride for side in shape)
        y, x = np.meshgrid(rows, columns, indexing="ij")
        self.x, self.y = x.ravel().astype(np.float32), y.ravel().astype(np.float32)
        self.window = np.tile(np.float32(settings.window) * _hanning(shape).ravel(), count)


HEADS: dict[str, type[Points] | type[Anchors] | type[Peak]] = {"points": Points, "anchors": Anchors, "peak": Peak}


def head_for(settings: TrackerSettings) -> Head:
    """The reader of the answers that ``settings`` describe."""
    return HEADS[settings.head](settings)


def scale_factors(settings: TrackerSettings) -> tuple[float, ...]:
    """Side of each search crop, relative to the middle one."""
    return tuple(settings.step ** (index - settings.scales // 2) for index in range(settings.scales))


def _choose(
    w: Floats, h: Floats, logits: Floats, window: Floats, size: Size, settings: TrackerSettings
) -> tuple[int, float, Size]:
    """Penalize changes of size and proportions, prefer small moves, take the best. (SiamRPN, section 4.4.)

    Returns:
        Which candidate, how likely it is the target, and the target's next size.
    """
    chances, (wide, high) = _sigmoid(logits), size
    grown = _change(context_side(w, h, settings.context) / context_side(wide, high, settings.context))
    turned = _change(h / w * (wide / high))
    ranked = np.exp((1 - grown * turned) * settings.penalty) * chances
    best = int((ranked * (1 - settings.window) + window).argmax())
    rate = float(ranked[best]) * settings.rate
    follow = (1 - rate) * wide + rate * float(w[best]), (1 - rate) * high + rate * float(h[best])
    return best, float(chances[best]), follow


def _change(ratio: Floats) -> Floats:
    return np.maximum(ratio, 1 / ratio)


def _target_of_two(logits: Floats) -> Floats:
    """One logit in place of two, ``[2, …]`` of background and target: its sigmoid is their softmax."""
    return np.asarray(logits[1] - logits[0])


def _sigmoid(logits: Floats) -> Floats:
    return np.asarray(0.5 + 0.5 * np.tanh(0.5 * logits), np.float32)


def _exp(logarithm: Floats) -> Floats:
    return np.asarray(np.exp(_within(logarithm, REACH)), np.float32)


def _within(values: Floats, reach: float) -> Floats:
    return np.asarray(np.minimum(np.maximum(values, -reach), reach))  # np.clip takes four times as long


@functools.lru_cache(maxsize=16)
def _hanning(shape: tuple[int, ...]) -> Floats:
    window = np.outer(np.hanning(shape[0]), np.hanning(shape[1])).astype(np.float32)
    window.flags.writeable = False
    return window

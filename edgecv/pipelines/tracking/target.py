"""What is known of a target between two frames, and where it may be in the next one."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from edgecv.pipelines.tracking.boxes import Box, context_side
from edgecv.pipelines.tracking.crops import Colour
from edgecv.pipelines.tracking.heads import Found
from edgecv.pipelines.tracking.settings import TrackerSettings
from edgecv.tensors import Array

__all__ = ["Status", "Target", "TrackState", "decided", "is_lost", "moved", "place", "status_of"]

Frame = NDArray[np.uint8]
Point = tuple[float, float]
Status = Literal["tracking", "unsure", "lost"]
SMALLEST = 4.0  # pixels a side: below it a crop shows nothing
# A target's place and size are whole numbers of these. Two runtimes differ by rounding, 1e-5 of a pixel; carried on,
# that changes later crops, and in the end, where two candidates are as good as equal, which of them is followed.
PARTS = 16  # of a pixel
# Where a lost target is looked for, in search crops from where it was last seen: nearest first, then all over again.
# Every other frame looks at the last place itself.
PLACES = tuple(sorted(
    ((x / 2, y / 2) for x in range(-4, 5) for y in range(-4, 5)), key=lambda place: (max(map(abs, place)), place)
))  # fmt: skip


@dataclass(frozen=True, slots=True)
class TrackState:
    """Where the target is: ``box`` (x, y, w, h) in pixels of the frame, x and y of its left upper corner.

    ``score`` is the network's own, 0-1, and says little. ``confidence`` is the probability that the target is there at
    all, from which ``status`` follows: ``"unsure"`` is a doubt about this frame; ``"lost"`` means that the target was
    not seen for a while, that ``box`` is where it was last, and that it is being looked for.
    """

    box: Box
    score: float
    confidence: float
    status: Status


@dataclass(frozen=True, slots=True)
class Target:
    """What a tracker knows of a target between two frames; ``missed`` counts the frames in which it was hidden.

    ``features`` are the exemplar's, once for every scale that is searched.
    """

    centre: Point
    size: tuple[float, float]
    fill: Colour
    features: Array
    missed: int = 0

    @property
    def box(self) -> Box:
        """x, y, w, h in pixels of the frame."""
        (x, y), (w, h) = self.centre, self.size
        return x - w / 2, y - h / 2, w, h


def is_lost(target: Target, settings: TrackerSettings) -> bool:
    """Whether it was hidden for so long that it is looked for elsewhere."""
    constants = settings.confidence
    return constants is not None and target.missed >= constants.patience


def place(target: Target, frame: Frame, settings: TrackerSettings) -> Target:
    """The target where it is looked for next: a lost one within the frame, never further than two search crops away."""
    if not is_lost(target, settings):
        return target
    turn = target.missed // 2 % len(PLACES)
    across, down = PLACES[turn] if _looks_elsewhere(target) else (0.0, 0.0)
    side = context_side(*target.size, settings.context) * settings.search / settings.exemplar
    height, width = frame.shape[:2]
    x, y = target.centre[0] + across * side, target.centre[1] + down * side
    return replace(target, centre=(min(max(x, 0.0), float(width)), min(max(y, 0.0), float(height))))


def moved(target: Target, found: Found, scale: float, frame: Frame) -> Target:
    """The target where it was found, ``scale`` frame pixels to one of the crop; it is kept within the frame."""
    height, width = frame.shape[:2]
    x = _within(target.centre[0] + found.shift[0] * scale, 0.0, width)
    y = _within(target.centre[1] + found.shift[1] * scale, 0.0, height)
    w, h = (_within(side * scale, SMALLEST, most) for side, most in zip(found.size, (width, height), strict=True))
    return replace(target, centre=(x, y), size=(w, h))


def decided(target: Target, found: Target, confidence: float, settings: TrackerSettings) -> Target:
    """Go along with what was found, or stay where the target was last seen."""
    constants = settings.confidence
    if constants is None:
        return found
    enough = constants.absent
    if is_lost(target, settings):
        enough = constants.sure if _looks_elsewhere(target) else constants.doubt
    if confidence >= enough:
        return replace(found, missed=0)
    return replace(target, missed=target.missed + 1)


def status_of(target: Target, confidence: float, settings: TrackerSettings) -> Status:
    """What is said of a target after a frame in which it was there with this probability."""
    if is_lost(target, settings):
        return "lost"
    constants = settings.confidence
    return "tracking" if constants is None or confidence >= constants.doubt else "unsure"


def _within(value: float, least: float, most: float) -> float:
    return min(max(round(value * PARTS) / PARTS, least), float(most))


def _looks_elsewhere(target: Target) -> bool:
    return target.missed % 2 == 1

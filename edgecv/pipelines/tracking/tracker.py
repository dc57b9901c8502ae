"""The tracking pipeline: a frame and a box, then a box for every further frame."""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import TracebackType
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from edgecv.errors import InputError
from edgecv.pipelines.tracking.boxes import Box, check_box, context_side
from edgecv.pipelines.tracking.confidence import Measures, agreement, measure
from edgecv.pipelines.tracking.crops import Colour, cut, fill_colour
from edgecv.pipelines.tracking.heads import Found, head_for, scale_factors
from edgecv.pipelines.tracking.settings import TrackerSettings
from edgecv.preprocess import check_frame
from edgecv.runtimes.session import Session
from edgecv.tensors import Array

__all__ = ["Status", "TrackState", "Tracker"]

Frame = NDArray[np.uint8]
Point = tuple[float, float]
Status = Literal["tracking", "unsure", "lost"]
SMALLEST = 4.0  # pixels a side: below it a crop shows nothing
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
    """What a tracker knows of a target between two frames; ``missed`` counts the frames in which it was hidden."""

    centre: Point
    size: tuple[float, float]
    fill: Colour
    features: Array
    missed: int = 0

    @property
    def box(self) -> Box:
        (x, y), (w, h) = self.centre, self.size
        return x - w / 2, y - h / 2, w, h


class Tracker:
    """Two sessions and how their answers are read: follows one target from frame to frame.

    Every frame costs one run of the search graph, and one of the template graph where the map leaves a doubt, however
    long a target is lost; memory stays what it is after the first frame.

    Args:
        template: ``template`` uint8 ``[batch, exemplar, exemplar, 3]`` RGB to ``features``.
        search: ``features`` and ``search`` uint8 ``[batch, search, search, 3]`` RGB to ``score`` and, where the head
            has one, ``box``. A ``"peak"`` head searches as many crops at a time as it has scales.
        settings: what the networks were trained with.
    """

    def __init__(self, template: Session, search: Session, settings: TrackerSettings) -> None:
        self.settings = settings
        self._template, self._search = template, search
        self._head = head_for(settings)
        self._free_head = head_for(replace(settings, window=0.0))
        self._factors = scale_factors(settings)
        self._crops = np.zeros((len(self._factors), settings.search, settings.search, 3), np.uint8)
        self._exemplar = np.zeros((1, settings.exemplar, settings.exemplar, 3), np.uint8)
        self._target: Target | None = None

    def init(self, frame: Frame, box: Box) -> TrackState:
        """Take the target to follow: ``box`` (x, y, w, h) in a uint8 RGB frame ``[height, width, 3]``.

        Raises:
            InputError: the frame is none, or the box is degenerate or outside it.
        """
        check_frame(frame)
        x, y, w, h = check_box(box, *frame.shape[:2])
        centre, fill = (x + w / 2, y + h / 2), fill_colour(frame)
        features = self._features(frame, centre, (w, h), fill)
        self._target = Target(centre, (w, h), fill, np.repeat(features, len(self._factors), axis=0))
        return TrackState((x, y, w, h), 1.0, 1.0, "tracking")

    def update(self, frame: Frame) -> TrackState:
        """Find the target in the next frame, which may have another size than the first.

        Raises:
            InputError: the frame is none, or ``init`` was not called.
        """
        check_frame(frame)
        target = self._current()
        lost = self._is_lost(target)
        place = _place(target, frame, self.settings) if lost else target.centre
        found, moved = self._look(frame, replace(target, centre=place), free=lost)
        confidence = self._confidence(frame, found, moved)
        self._target = self._decide(target, moved, confidence, lost)
        return TrackState(self._target.box, found.score, confidence, self._status(self._target, confidence))

    def examine(self, frame: Frame, box: Box) -> tuple[Measures, float]:
        """What a frame says of the target if it is expected at ``box``: the map's measures, and the agreement of what
        is found with the exemplar. The tracker's own state stays as it is.
        """
        check_frame(frame)
        target = self._current()
        x, y, w, h = check_box(box, *frame.shape[:2])
        found, moved = self._look(frame, replace(target, centre=(x + w / 2, y + h / 2), size=(w, h)), free=False)
        return measure(found.response), self._agreement(frame, moved)

    def close(self) -> None:
        """Close both sessions."""
        self._template.close()
        self._search.close()

    def __enter__(self) -> Tracker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _current(self) -> Target:
        if self._target is None:
            raise InputError("there is no target yet: call init(frame, box) with the first frame")
        return self._target

    def _agreement(self, frame: Frame, target: Target) -> float:
        return agreement(target.features[:1], self._features(frame, target.centre, target.size, target.fill))

    def _features(self, frame: Frame, centre: Point, size: tuple[float, float], fill: Colour) -> Array:
        cut(frame, centre, context_side(*size, self.settings.context), fill, self._exemplar[0])
        return self._template.run({"template": self._exemplar})["features"]

    def _look(self, frame: Frame, target: Target, free: bool) -> tuple[Found, Target]:
        """Search around the target's place: what the head found, and the target moved there."""
        scale = context_side(*target.size, self.settings.context) / self.settings.exemplar
        for crop, factor in zip(self._crops, self._factors, strict=True):
            cut(frame, target.centre, scale * self.settings.search * factor, target.fill, crop)
        outputs = self._search.run({"features": target.features, "search": self._crops})
        head = self._free_head if free else self._head
        found = head.locate(outputs, (target.size[0] / scale, target.size[1] / scale))
        return found, _moved(target, found, scale, frame)

    def _confidence(self, frame: Frame, found: Found, moved: Target) -> float:
        """The map alone decides where it is sure; the exemplar is compared where it is not."""
        constants = self.settings.confidence
        if constants is None:
            return found.score
        measures = measure(found.response)
        quick = constants.probability(measures)
        if quick >= constants.sure and not self._is_lost(moved):
            return quick
        return constants.probability(measures, self._agreement(frame, moved))

    def _decide(self, target: Target, moved: Target, confidence: float, lost: bool) -> Target:
        """Go along with what was found, or stay where the target was last seen."""
        constants = self.settings.confidence
        if constants is None:
            return moved
        enough = constants.absent
        if lost:
            enough = constants.sure if _looks_elsewhere(target) else constants.doubt
        if confidence >= enough:
            return replace(moved, missed=0)
        return replace(target, missed=target.missed + 1)

    def _is_lost(self, target: Target) -> bool:
        constants = self.settings.confidence
        return constants is not None and target.missed >= constants.patience

    def _status(self, target: Target, confidence: float) -> Status:
        if self._is_lost(target):
            return "lost"
        constants = self.settings.confidence
        return "tracking" if constants is None or confidence >= constants.doubt else "unsure"


def _looks_elsewhere(target: Target) -> bool:
    return target.missed % 2 == 1


def _place(target: Target, frame: Frame, settings: TrackerSettings) -> Point:
    """Where a lost target is looked for next: within the frame, and never further than two search crops away."""
    turn = target.missed // 2 % len(PLACES)
    across, down = PLACES[turn] if _looks_elsewhere(target) else (0.0, 0.0)
    side = context_side(*target.size, settings.context) * settings.search / settings.exemplar
    height, width = frame.shape[:2]
    x, y = target.centre[0] + across * side, target.centre[1] + down * side
    return min(max(x, 0.0), float(width)), min(max(y, 0.0), float(height))


def _moved(target: Target, found: Found, scale: float, frame: Frame) -> Target:
    """The target where it was found, its centre and size kept within the frame."""
    height, width = frame.shape[:2]
    x = min(max(target.centre[0] + found.shift[0] * scale, 0.0), float(width))
    y = min(max(target.centre[1] + found.shift[1] * scale, 0.0), float(height))
    w = min(max(found.size[0] * scale, SMALLEST), float(width))
    h = min(max(found.size[1] * scale, SMALLEST), float(height))
    return replace(target, centre=(x, y), size=(w, h))

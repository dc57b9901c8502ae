"""The tracking pipeline: a frame and a box, then a box for every further frame."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from edgecv.errors import InputError
from edgecv.pipelines.tracking.boxes import Box, check_box, context_side
from edgecv.pipelines.tracking.confidence import Measures, agreement, measure
from edgecv.pipelines.tracking.crops import cut, cut_near, fill_colour
from edgecv.pipelines.tracking.heads import Found, head_for, scale_factors
from edgecv.pipelines.tracking.settings import TrackerSettings
from edgecv.pipelines.tracking.target import Target, TrackState, decided, is_lost, moved, place, status_of
from edgecv.preprocess import Preprocess, check_frame
from edgecv.runtimes.session import Session
from edgecv.schema import decode
from edgecv.tensors import Array

__all__ = ["Tracker"]

Frame = NDArray[np.uint8]


class Tracker:
    """Two sessions and how their answers are read: follows one target from frame to frame.

    Every frame costs one run of the search graph, and one of the template graph where the map leaves a doubt, however
    long a target is lost; memory stays what it is after the first frame. ``MultiTracker`` follows several.

    Args:
        template: ``template`` uint8 ``[batch, exemplar, exemplar, 3]`` RGB to ``features``.
        search: ``features`` and ``search`` uint8 ``[batch, search, search, 3]`` RGB to ``score`` and, where the head
            has one, ``box``. A ``"peak"`` head searches as many crops at a time as it has scales.
        settings: what the networks were trained with.

    Raises:
        InputError: a graph does not take such crops.
    """

    graphs: ClassVar[tuple[str, ...]] = ("template", "search")

    def __init__(self, template: Session, search: Session, settings: TrackerSettings) -> None:
        self.settings = settings
        self._template, self._search = template, search
        _check_graph(template, ("template",), settings.exemplar)
        _check_graph(search, ("features", "search"), settings.search)
        self._head = head_for(settings)
        self._free_head = head_for(replace(settings, window=0.0))
        self._factors = scale_factors(settings)
        self._crops = np.zeros((len(self._factors), settings.search, settings.search, 3), np.uint8)
        self._exemplars = np.zeros((1, settings.exemplar, settings.exemplar, 3), np.uint8)
        self._target: Target | None = None

    @classmethod
    def from_postprocess(
        cls,
        template: Session,
        search: Session,
        preprocess: Preprocess,
        labels: Sequence[str],
        postprocess: dict[str, Any],
    ) -> Tracker:
        """What ``load`` calls; ``InputError`` where the bundle's settings are not those of its graphs."""
        return cls(template, search, decode(TrackerSettings, postprocess, "postprocess"))

    @property
    def sessions(self) -> tuple[Session, Session]:
        """The template's and the search's."""
        return self._template, self._search

    def init(self, frame: Frame, box: Box) -> TrackState:
        """Take the target to follow: ``box`` (x, y, w, h) in a uint8 RGB frame ``[height, width, 3]``.

        Raises:
            InputError: the frame is none, or the box is degenerate or outside it.
        """
        self._target = self.take(frame, box)
        return TrackState(self._target.box, 1.0, 1.0, "tracking")

    def update(self, frame: Frame) -> TrackState:
        """Find the target in the next frame, which may have another size than the first.

        Raises:
            InputError: the frame is none, or ``init`` was not called.
        """
        ((self._target, state),) = self.follow(frame, [self._current()])
        return state

    def take(self, frame: Frame, box: Box) -> Target:
        """As ``init``, but the target is the caller's to keep and to hand to ``follow``."""
        check_frame(frame)
        x, y, w, h = check_box(box, *frame.shape[:2])
        target = Target((x + w / 2, y + h / 2), (w, h), fill_colour(frame), np.empty(0, np.float32))
        return replace(target, features=np.repeat(self._features(frame, [target]), len(self._factors), axis=0))

    def follow(self, frame: Frame, targets: Sequence[Target]) -> list[tuple[Target, TrackState]]:
        """Find several targets in the next frame, in one batch: each as it is afterwards, and what is said of it.

        The tracker's own target stays as it is.

        Raises:
            InputError: the frame is none, or the graphs have a fixed batch of another size.
        """
        check_frame(frame)
        if not targets:
            return []
        settings = self.settings
        lost = [is_lost(target, settings) for target in targets]
        looked = self._look(frame, [place(target, frame, settings) for target in targets], lost)
        answers = []
        for target, (found, there), confidence in zip(targets, looked, self._confidences(frame, looked), strict=True):
            after = decided(target, there, confidence, settings)
            state = TrackState(after.box, found.score, confidence, status_of(after, confidence, settings))
            answers.append((after, state))
        return answers

    def examine(self, frame: Frame, box: Box) -> tuple[Measures, float]:
        """What a frame says of the target if it is expected at ``box``: the map's measures, and the agreement of what
        is found with the exemplar. The tracker's own state stays as it is.
        """
        check_frame(frame)
        target = self._current()
        x, y, w, h = check_box(box, *frame.shape[:2])
        expected = replace(target, centre=(x + w / 2, y + h / 2), size=(w, h))
        ((found, there),) = self._look(frame, [expected], [False])
        return measure(found.response), self._agreements(frame, [there])[0]

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

    def _features(self, frame: Frame, targets: Sequence[Target]) -> Array:
        self._exemplars = crops = _room(self._exemplars, len(targets))
        for crop, target in zip(crops, targets, strict=False):
            cut(frame, target.centre, context_side(*target.size, self.settings.context), target.fill, crop)
        return self._template.run({"template": crops[: len(targets)]})["features"]

    def _look(self, frame: Frame, targets: Sequence[Target], free: Sequence[bool]) -> list[tuple[Found, Target]]:
        """Search around each target's place: what the head found, and the target moved there."""
        count, settings = len(self._factors), self.settings
        self._crops = crops = _room(self._crops, len(targets) * count)
        places: list[tuple[Target, float]] = []  # and pixels of the frame to one of the crop
        for index, target in enumerate(targets):
            side = context_side(*target.size, settings.context) / settings.exemplar * settings.search
            cuts = [
                cut_near(frame, target.centre, side * factor, target.fill, crop)
                for crop, factor in zip(crops[index * count :], self._factors, strict=False)
            ]
            centre, whole = cuts[count // 2]
            places.append((replace(target, centre=centre), whole / settings.search))
        features = targets[0].features if len(targets) == 1 else np.concatenate([one.features for one in targets])
        outputs = self._search.run({"features": features, "search": crops[: len(features)]})
        answers = []
        for index, (target, scale) in enumerate(places):
            own = {name: value[index * count : (index + 1) * count] for name, value in outputs.items()}
            head = self._free_head if free[index] else self._head
            found = head.locate(own, (target.size[0] / scale, target.size[1] / scale))
            answers.append((found, moved(target, found, scale, frame)))
        return answers

    def _confidences(self, frame: Frame, looked: Sequence[tuple[Found, Target]]) -> list[float]:
        """The map alone decides where it is sure; the exemplar is compared where it is not."""
        constants = self.settings.confidence
        if constants is None:
            return [found.score for found, _ in looked]
        measures = [measure(found.response) for found, _ in looked]
        quick = [constants.probability(one) for one in measures]
        doubtful = [
            index
            for index, (_, there) in enumerate(looked)
            if quick[index] < constants.sure or is_lost(there, self.settings)
        ]
        agreed = self._agreements(frame, [looked[index][1] for index in doubtful])
        for index, value in zip(doubtful, agreed, strict=True):
            quick[index] = constants.probability(measures[index], value)
        return quick

    def _agreements(self, frame: Frame, targets: Sequence[Target]) -> list[float]:
        if not targets:
            return []
        found = self._features(frame, targets)
        return [agreement(target.features[:1], found[index : index + 1]) for index, target in enumerate(targets)]


def _room(crops: Frame, count: int) -> Frame:
    """The same array while it holds ``count`` crops, or else a new one that does."""
    return crops if len(crops) >= count else np.zeros((count, *crops.shape[1:]), np.uint8)


def _check_graph(session: Session, names: tuple[str, ...], side: int) -> None:
    found = {spec.name: spec.shape for spec in session.inputs}
    crop = found.get(names[-1])
    if set(found) != set(names) or (crop is not None and crop[1:] != (side, side, 3)):
        wanted = f"{' and '.join(names)}, crops of {side}x{side}"
        raise InputError(f"a tracker's {names[-1]} graph takes {wanted}; this one is {session!r}")

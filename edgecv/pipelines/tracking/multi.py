"""Several targets in one frame, searched for in one batch."""

from __future__ import annotations

from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from edgecv.errors import InputError
from edgecv.pipelines.tracking.boxes import Box
from edgecv.pipelines.tracking.target import Target, TrackState
from edgecv.pipelines.tracking.tracker import Tracker
from edgecv.plugins import unknown

__all__ = ["MultiTracker"]

Frame = NDArray[np.uint8]


class MultiTracker:
    """Follows any number of targets through the graphs of one tracker: ``MultiTracker(edgecv.load("out/tracker"))``.

    A frame costs one run of the search graph with all targets in its batch, and one of the template graph with those
    that it leaves in doubt.

    Args:
        tracker: whose sessions and settings are used; its own target is left alone. Closing one closes the other.
    """

    def __init__(self, tracker: Tracker) -> None:
        self.tracker = tracker
        self._targets: dict[int, Target] = {}
        self._next = 1

    def add(self, frame: Frame, box: Box) -> int:
        """Follow one target more and return its number, 1 for the first: arguments and errors are ``Tracker.init``'s.

        No number is given twice.
        """
        target = self.tracker.take(frame, box)
        number, self._next = self._next, self._next + 1
        self._targets[number] = target
        return number

    def update(self, frame: Frame) -> dict[int, TrackState]:
        """Find every target in the next frame: its state by its number.

        Raises:
            InputError: the frame is none.
        """
        found = self.tracker.follow(frame, list(self._targets.values()))
        states = dict(zip(self._targets, (state for _, state in found), strict=True))
        self._targets = dict(zip(self._targets, (target for target, _ in found), strict=True))
        return states

    def remove(self, number: int) -> None:
        """Follow a target no longer; ``InputError`` where there is none of this number."""
        if number not in self._targets:
            raise InputError(unknown("target", number, map(str, self._targets)))
        del self._targets[number]

    def __len__(self) -> int:
        return len(self._targets)

    def close(self) -> None:
        """Close the tracker's sessions."""
        self.tracker.close()

    def __enter__(self) -> MultiTracker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

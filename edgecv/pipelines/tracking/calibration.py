"""Frames in which the target is known to be absent, to fit and to judge a tracker's confidence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from edgecv.errors import InputError
from edgecv.pipelines.tracking.boxes import Box
from edgecv.pipelines.tracking.confidence import Measures
from edgecv.pipelines.tracking.crops import opencv
from edgecv.pipelines.tracking.sequences import TrackSequence
from edgecv.pipelines.tracking.tracker import Tracker

__all__ = ["Observation", "cover", "cut_out", "observe", "roc_auc"]

Frame = NDArray[np.uint8]
Kind = Literal["present", "cut out", "covered", "other scene"]
GROWN = 1.2  # how much more than its box hides a target
SHIFT, STRETCH = 0.3, 0.15  # how far the expected box is off: shares of its sides, and of its scale (logarithm)


@dataclass(frozen=True, slots=True)
class Observation:
    """What one frame said, and what had been done to it."""

    sequence: str
    kind: Kind
    measures: Measures
    agreement: float

    @property
    def present(self) -> bool:
        """Whether the target was there."""
        return self.kind == "present"


def observe(
    tracker: Tracker, sequences: Sequence[TrackSequence], *, every: int = 3, seed: int = 0
) -> list[Observation]:
    """Examine every ``every``-th frame as it is, with the target cut out, covered, and with another sequence's scene.

    The exemplar is the first frame's. The target is expected where it was one frame before, give or take a random
    error of place and size such as a tracker makes, so that it need not be exactly there to be recognized.

    Raises:
        InputError: there are not two sequences, which lend each other their scenes.
    """
    if len(sequences) < 2:
        raise InputError(f"two sequences or more are needed: they lend each other their scenes; got {len(sequences)}")
    random = np.random.default_rng(seed)
    found = []
    for index, sequence in enumerate(sequences):
        other = sequences[(index + 1) % len(sequences)]
        tracker.init(sequence[0], sequence.first_box)
        for number in range(2, len(sequence), every):
            if not sequence.visible[[number - 1, number]].all():
                continue
            frame, box, expected = sequence[number], _box(sequence, number), _box(sequence, number - 1)
            for kind, changed in _versions(frame, box, other[number % len(other)], random).items():
                measures, agreed = tracker.examine(changed, _about(expected, random))
                found.append(Observation(sequence.name, kind, measures, agreed))
    return found


def cut_out(frame: Frame, box: Box) -> Frame:
    """Put what lies beside a target in its place: of its four neighbours the one that overlaps it least."""
    top, bottom, left, right = _region(frame, box)
    height, width = bottom - top, right - left
    rows, columns = frame.shape[0] - height, frame.shape[1] - width
    places = [(top, left + width), (top, left - width), (top + height, left), (top - height, left)]
    inside = [(min(max(y, 0), rows), min(max(x, 0), columns)) for y, x in places]
    y, x = max(inside, key=lambda place: max(abs(place[0] - top) / height, abs(place[1] - left) / width))
    changed = frame.copy()
    changed[top:bottom, left:right] = frame[y : y + height, x : x + width]
    return changed


def cover(frame: Frame, box: Box, random: np.random.Generator) -> Frame:
    """Put a noisy patch of a random colour over a target."""
    top, bottom, left, right = _region(frame, box)
    patch = random.integers(0, 256, 3) + random.normal(0, 12, (bottom - top, right - left, 3))
    changed = frame.copy()
    changed[top:bottom, left:right] = np.clip(patch, 0, 255)
    return changed


def roc_auc(scores: Sequence[float], present: Sequence[bool]) -> float:
    """Probability that a frame with the target scores above one without it; a tie counts half."""
    values, there = np.array(scores, np.float64), np.array(present, bool)
    if there.all() or not there.any():
        raise InputError("ROC-AUC needs frames with the target and frames without it")
    higher = values[there][:, None] - values[~there][None, :]
    return float(((higher > 0) + 0.5 * (higher == 0)).mean())


def _versions(frame: Frame, box: Box, other: Frame, random: np.random.Generator) -> dict[Kind, Frame]:
    scene = opencv().resize(other, (frame.shape[1], frame.shape[0]))
    return {
        "present": frame,
        "cut out": cut_out(frame, box),
        "covered": cover(frame, box, random),
        "other scene": scene,
    }


def _box(sequence: TrackSequence, number: int) -> Box:
    x, y, w, h = sequence.boxes[number].tolist()
    return x, y, w, h


def _about(box: Box, random: np.random.Generator) -> Box:
    x, y, w, h = box
    across, down = random.uniform(-SHIFT, SHIFT, 2)
    wide, high = np.exp(random.uniform(-STRETCH, STRETCH, 2)) * (w, h)
    return x + w / 2 + across * w - wide / 2, y + h / 2 + down * h - high / 2, float(wide), float(high)


def _region(frame: Frame, box: Box) -> tuple[int, int, int, int]:
    """Rows and columns that hold a box and a margin around it, within the frame."""
    x, y, w, h = box
    aside, above = w * (GROWN - 1) / 2, h * (GROWN - 1) / 2
    top, left = max(0, int(y - above)), max(0, int(x - aside))
    bottom, right = int(np.ceil(y + h + above)), int(np.ceil(x + w + aside))
    return top, min(max(bottom, top + 1), frame.shape[0]), left, min(max(right, left + 1), frame.shape[1])

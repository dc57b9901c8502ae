"""One-pass evaluation: success, precision and GOT-10k's measures, as the got10k toolkit computes them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from edgecv.errors import InputError
from edgecv.pipelines.tracking.boxes import Box, overlaps
from edgecv.pipelines.tracking.sequences import TrackSequence
from edgecv.pipelines.tracking.target import TrackState
from edgecv.progress import Progress, silent

__all__ = ["Run", "Scores", "evaluate_tracker", "run_sequence", "score_all", "score_sequence"]

OVERLAPS = np.linspace(0, 1, 21)  # thresholds of the success curve (Wu, Lim & Yang, 2013, "Online object tracking")
NEAR = 20  # pixels between centres that count as precise, of the same
Floats = NDArray[np.float64]


class Follower(Protocol):
    """What is evaluated: ``Tracker``, or any other with its two methods."""

    def init(self, frame: NDArray[np.uint8], box: Box) -> object: ...

    def update(self, frame: NDArray[np.uint8]) -> TrackState: ...


@dataclass(frozen=True)
class Run:
    """One pass over one sequence: boxes ``[frames, 4]``, the first as given; seconds that each frame took, without
    decoding it; the frames' (width, height).
    """

    sequence: TrackSequence
    boxes: Floats = field(repr=False)
    seconds: Floats = field(repr=False)
    bounds: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Scores:
    """How well boxes agree with the truth.

    Attributes:
        success: area under the success curve, over all visible frames.
        precision: share of these whose centre is at most 20 pixels off.
        ao, sr50, sr75: GOT-10k's average overlap and success rates at 0.5 and 0.75: boxes cut at the frame's border,
            the first frame left out.
        fps: frames per second, decoding not counted.
        frames: how many were tracked.
    """

    success: float
    precision: float
    ao: float
    sr50: float
    sr75: float
    fps: float
    frames: int


def run_sequence(tracker: Follower, sequence: TrackSequence, *, clock: Callable[[], float] = time.perf_counter) -> Run:
    """Track one sequence from its first box to its end; nothing is ever corrected."""
    boxes, seconds, bounds = [sequence.first_box], [], (0, 0)
    for index, frame in enumerate(sequence):
        start = clock()
        if index == 0:
            bounds = (frame.shape[1], frame.shape[0])
            tracker.init(frame, sequence.first_box)
        else:
            boxes.append(tracker.update(frame).box)
        seconds.append(clock() - start)
    return Run(sequence, np.array(boxes, np.float64), np.array(seconds), bounds)


def score_sequence(run: Run) -> Scores:
    """Score one pass.

    Raises:
        InputError: the sequence has no annotation beyond its first frame.
    """
    curve, ious = _curve(run), _bounded(run)
    precise = _distances(run) <= NEAR
    return Scores(
        success=float(curve.mean()),
        precision=float(precise.mean()),
        **_overlap_measures(ious),
        fps=float(len(run.seconds) / run.seconds.sum()),
        frames=len(run.boxes),
    )


def score_all(runs: Sequence[Run]) -> Scores:
    """Score several passes together: success and precision are means over sequences, AO and SR over frames."""
    if not runs:
        raise InputError("there is no run to score")
    each = [score_sequence(run) for run in runs]
    seconds = np.concatenate([run.seconds for run in runs])
    return Scores(
        success=float(np.mean([scores.success for scores in each])),
        precision=float(np.mean([scores.precision for scores in each])),
        **_overlap_measures(np.concatenate([_bounded(run) for run in runs])),
        fps=float(len(seconds) / seconds.sum()),
        frames=sum(scores.frames for scores in each),
    )


def evaluate_tracker(
    tracker: Follower, sequences: Sequence[TrackSequence], *, progress: Progress = silent
) -> tuple[Run, ...]:
    """Run every sequence once; ``score_sequence`` and ``score_all`` say how well it went."""
    runs = []
    for index, sequence in enumerate(sequences):
        runs.append(run_sequence(tracker, sequence))
        progress("track", index + 1, len(sequences))
    return tuple(runs)


def _overlap_measures(ious: Floats) -> dict[str, float]:
    return {"ao": float(ious.mean()), "sr50": float((ious > 0.5).mean()), "sr75": float((ious > 0.75).mean())}


def _curve(run: Run) -> Floats:
    """Share of the visible frames whose overlap is above each threshold."""
    seen = _seen(run)
    ious = overlaps(run.boxes[seen], run.sequence.boxes[seen])
    return np.asarray((ious[:, None] > OVERLAPS).mean(0), np.float64)


def _distances(run: Run) -> Floats:
    seen = _seen(run)
    apart = run.boxes[seen] - run.sequence.boxes[seen]
    return np.asarray(np.hypot(*(apart[:, :2] + apart[:, 2:] / 2).T), np.float64)


def _bounded(run: Run) -> Floats:
    seen = _seen(run)
    seen[0] = False
    return overlaps(_cut(run.boxes[seen], run.bounds), _cut(run.sequence.boxes[seen], run.bounds))


def _cut(boxes: Floats, bounds: tuple[int, int]) -> Floats:
    """The part of boxes within a frame, as the toolkit has it: a box that begins outside keeps its full size."""
    corners = np.clip(boxes[:, :2], 0, bounds)
    return np.concatenate([corners, np.clip(boxes[:, 2:], 0, bounds - corners)], axis=1)


def _seen(run: Run) -> NDArray[np.bool_]:
    if not run.sequence.annotated:
        raise InputError(f"sequence {run.sequence.name} has no boxes to score against, only its first")
    if run.boxes.shape != run.sequence.boxes.shape:
        raise InputError(
            f"sequence {run.sequence.name} has {len(run.sequence)} frames, its results have {len(run.boxes)} boxes"
        )
    return run.sequence.visible.copy()

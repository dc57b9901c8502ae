"""``profile_tracker``: the latency of both graphs of a tracker, and of whole updates on sequences."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from edgecv.errors import InputError
from edgecv.pipelines.tracking.heads import scale_factors
from edgecv.pipelines.tracking.sequences import TrackSequence
from edgecv.pipelines.tracking.tracker import Tracker
from edgecv.profiling.measure import Clock, Profile, conditions_of, example_inputs, profile, sampled
from edgecv.progress import Progress, silent
from edgecv.runtimes.session import Session
from edgecv.tensors import Array

__all__ = ["profile_tracker"]


def profile_tracker(
    tracker: Tracker,
    *,
    duration_s: float = 10.0,
    batch: int = 1,
    sequences: Sequence[TrackSequence] = (),
    clock: Clock = time.perf_counter_ns,
    progress: Progress = silent,
) -> dict[str, Profile]:
    """Measure ``template`` and ``search`` of a tracker, and, where ``sequences`` are given, ``update``.

    ``search`` is what every frame costs; ``template`` runs once for a target, and on frames that leave a doubt whether
    it is still there. Both run on random crops, ``search`` on as many as its head has scales. ``update`` is the whole
    of a frame from the crop to the box and its status, without decoding the image, for one target: the sequences are
    followed one after another, and from the first one again, until the time is over.

    Args:
        duration_s: how long each of the two or three is measured, see ``profile``.
        batch: targets at a time, in the two graphs.
        sequences: annotated at least in their first frame.

    Raises:
        InputError: an argument is wrong, or no sequence has a second frame.
    """
    template, search = tracker.sessions

    def measured(graph: Session, name: str, feed: dict[str, Array]) -> Profile:
        return profile(graph, duration_s=duration_s, inputs=feed, clock=clock, progress=_named(name, progress))

    exemplars = example_inputs(template.inputs, batch)
    found = {"template": measured(template, "template", exemplars)}
    count = len(scale_factors(tracker.settings))
    features = np.repeat(template.run(exemplars)["features"], count, axis=0)
    crops = tuple(spec for spec in search.inputs if spec.name == "search")
    found["search"] = measured(search, "search", {"features": features, **example_inputs(crops, batch * count)})
    if sequences:
        found["update"] = _updates(tracker, sequences, duration_s, clock, _named("update", progress))
    return found


def _updates(
    tracker: Tracker, sequences: Sequence[TrackSequence], duration_s: float, clock: Clock, progress: Progress
) -> Profile:
    followed = [sequence for sequence in sequences if len(sequence) > 1]
    if not followed:
        raise InputError("a tracker is updated with a sequence's second frame: no sequence has two")
    inputs = {sequence.name: sequence[0][None] for sequence in followed}
    conditions = conditions_of(tracker.sessions[1], inputs)
    frames = _frames(tracker, followed)

    def step() -> float:
        frame = next(frames)
        start = clock()
        tracker.update(frame)
        return (clock() - start) / 1e6

    found = sampled(step, conditions, duration_s, clock=clock, progress=progress, alike=False)
    return dataclasses.replace(found, first_ms=None)  # the graphs have run before


def _frames(tracker: Tracker, sequences: Sequence[TrackSequence]) -> Iterator[NDArray[np.uint8]]:
    """Every frame but the first of a sequence, at which the tracker takes its target; there is no end to them."""
    while True:
        for sequence in sequences:
            tracker.init(sequence[0], sequence.first_box)
            for index in range(1, len(sequence)):
                yield sequence[index]


def _named(name: str, progress: Progress) -> Progress:
    return lambda stage, done, total: progress(f"{stage} {name}", done, total)

"""Crops of real frames and what a pair of graphs answers to them: what the variants of a tracker are compared on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgecv.errors import InputError
from edgecv.pipelines.tracking.boxes import Box, check_box, context_side
from edgecv.pipelines.tracking.crops import cut, fill_colour
from edgecv.pipelines.tracking.heads import head_for, scale_factors
from edgecv.pipelines.tracking.sequences import TrackSequence
from edgecv.pipelines.tracking.settings import TrackerSettings
from edgecv.preprocess import check_frame
from edgecv.runtimes.session import Session
from edgecv.tensors import Array

__all__ = ["Crops", "Sample", "answers", "cut_crops"]

Frame = NDArray[np.uint8]
Sample = TrackSequence | tuple[Frame, Box]
BATCH = 8  # targets at a time


class Crops(NamedTuple):
    """What both graphs take for a number of targets.

    ``exemplars`` are ``[targets, exemplar, exemplar, 3]``, ``searches`` ``[targets, scales, search, search, 3]``;
    ``sizes`` are the targets' (w, h) in pixels of the search crop.
    """

    exemplars: Frame
    searches: Frame
    sizes: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Scene:
    """A target as it was first seen, and a later frame with the place where it is expected."""

    first: Frame
    first_box: Box
    frame: Frame
    expected: Box


def cut_crops(samples: Sequence[Sample], settings: TrackerSettings, limit: int = 32) -> Crops:
    """Cut at most ``limit`` exemplars and search crops, spread evenly.

    Args:
        samples: annotated sequences, whose targets are expected where they were a frame before; or frames with a box,
            where both crops are of the same frame.

    Raises:
        InputError: there is no sample, or one of them is not a frame with a box in it.
    """
    scenes = list(_scenes(samples, limit))
    if not scenes:
        raise InputError("a tracker is compared on frames with boxes: give sequences, or pairs of a frame and a box")
    factors = scale_factors(settings)
    exemplars = np.empty((len(scenes), settings.exemplar, settings.exemplar, 3), np.uint8)
    searches = np.empty((len(scenes), len(factors), settings.search, settings.search, 3), np.uint8)
    sizes = []
    for scene, exemplar, crops in zip(scenes, exemplars, searches, strict=True):
        _cut(scene.first, scene.first_box, settings, 1.0, exemplar)
        for crop, factor in zip(crops, factors, strict=True):
            _cut(scene.frame, scene.expected, settings, factor * settings.search / settings.exemplar, crop)
        w, h = scene.expected[2:]
        scale = context_side(w, h, settings.context) / settings.exemplar
        sizes.append((w / scale, h / scale))
    return Crops(exemplars, searches, tuple(sizes))


def answers(
    sessions: tuple[Session, Session], settings: TrackerSettings, crops: Crops
) -> tuple[dict[str, Array], NDArray[np.float64]]:
    """What a template and a search session answer.

    Returns:
        The search graph's outputs, ``[targets * scales, …]`` by name, and the boxes ``[targets, 4]`` that are read from
        them: x, y, w, h in pixels of the search crop, from its centre.
    """
    template, search = sessions
    parts = []
    for start in range(0, len(crops.exemplars), BATCH):
        found = template.run({"template": crops.exemplars[start : start + BATCH]})["features"]
        searches = crops.searches[start : start + BATCH]
        features = np.repeat(found, searches.shape[1], axis=0)
        parts.append(search.run({"features": features, "search": searches.reshape(-1, *searches.shape[2:])}))
    outputs = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return outputs, _read(outputs, settings, crops)


def _read(outputs: dict[str, Array], settings: TrackerSettings, crops: Crops) -> NDArray[np.float64]:
    head, scales, boxes = head_for(settings), crops.searches.shape[1], []
    for index, size in enumerate(crops.sizes):
        own = {name: value[index * scales : (index + 1) * scales] for name, value in outputs.items()}
        found = head.locate(own, size)
        (x, y), (w, h) = found.shift, found.size
        boxes.append((x - w / 2, y - h / 2, w, h))
    return np.array(boxes, np.float64)


def _cut(frame: Frame, box: Box, settings: TrackerSettings, share: float, out: Frame) -> None:
    x, y, w, h = box
    side = context_side(w, h, settings.context) * share
    cut(frame, (x + w / 2, y + h / 2), side, fill_colour(frame), out)


def _scenes(samples: Sequence[Sample], limit: int) -> Iterator[Scene]:
    places = [place for sample in samples for place in _places(sample)]
    count = min(limit, len(places))
    for index in range(count):
        sample, number = places[index * len(places) // count]
        if isinstance(sample, TrackSequence):
            yield Scene(sample[0], sample.first_box, sample[number], _box(sample, number - 1))
        else:
            frame, box = sample
            check_frame(frame)
            inside = check_box(box, *frame.shape[:2])
            yield Scene(frame, inside, frame, inside)


def _places(sample: Sample) -> Iterator[tuple[Sample, int]]:
    """The numbers of a sequence's frames in which the target was seen before."""
    if not isinstance(sample, TrackSequence):
        yield sample, 0
        return
    for number in range(1, len(sample)):
        if sample.visible[number - 1]:
            yield sample, number


def _box(sequence: TrackSequence, number: int) -> Box:
    x, y, w, h = sequence.boxes[number].tolist()
    return x, y, w, h

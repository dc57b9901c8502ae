"""Whether int8 pays: each backend's variants timed against each other where they were converted."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from edgecv.errors import BackendUnavailable
from edgecv.manifest import Variant
from edgecv.preprocess import Preprocess
from edgecv.runtimes.registry import session_class
from edgecv.runtimes.session import Session, SessionOptions

__all__ = ["speed_ratio", "with_speed"]

ROUNDS = 30
SECONDS = 4.0  # after which a comparison ends, however few rounds it had
FASTER = 1.03  # less is noise
Clock = Callable[[], float]


def with_speed(variants: Mapping[str, Variant], folder: Path, preprocess: Preprocess) -> dict[str, Variant]:
    """``variants`` of ``folder``, with ``slower_than`` set on each int8 one that is no faster than a float one here.

    One image at a time on one thread, in turns. What does not run here is left as it is.
    """
    found = dict(variants)
    for name, variant in variants.items():
        rivals = [key for key, item in variants.items() if item.backend == variant.backend and item.precision != "int8"]
        if variant.precision != "int8" or not rivals:
            continue
        try:
            ratios = {rival: _ratio(folder, variants[rival], variant, preprocess) for rival in rivals}
        except BackendUnavailable:
            continue
        rival = min(ratios, key=ratios.__getitem__)
        if ratios[rival] < FASTER:
            found[name] = dataclasses.replace(variant, slower_than=rival)
    return found


def speed_ratio(one: Session, other: Session, image: np.ndarray, clock: Clock = time.perf_counter) -> float:
    """How many times as fast as ``one`` ``other`` is: the ratio of median times over rounds in turns."""
    times: tuple[list[float], list[float]] = ([], [])
    begun = clock()
    for _ in range(ROUNDS):
        for session, taken in zip((one, other), times, strict=True):
            start = clock()
            session.run({session.inputs[0].name: image})
            taken.append(clock() - start)
        if clock() - begun > SECONDS:
            break
    return statistics.median(times[0]) / statistics.median(times[1])


def _ratio(folder: Path, one: Variant, other: Variant, preprocess: Preprocess) -> float:
    create, options = session_class(one.backend), SessionOptions(threads=1)
    image = np.zeros((1, *preprocess.size, 3), np.uint8)
    files = [folder / next(iter(variant.graphs.values())) for variant in (one, other)]
    with create.open(files[0], options) as first, create.open(files[1], options) as second:
        shape = first.inputs[0].shape
        if shape is not None and shape[0]:
            image = np.repeat(image, shape[0], axis=0)
        return speed_ratio(first, second, image)

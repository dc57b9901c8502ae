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
from edgecv.tensors import Array

__all__ = ["compared", "speed_ratio", "with_speed"]

ROUNDS = 30
SECONDS = 4.0  # after which a comparison ends, however few rounds it had
FASTER = 1.03  # less is noise
Clock = Callable[[], float]
Inputs = Mapping[str, Array]


def with_speed(variants: Mapping[str, Variant], folder: Path, preprocess: Preprocess) -> dict[str, Variant]:
    """``variants`` of ``folder``, with ``slower_than`` set on each int8 one that is no faster than a float one here.

    One image at a time on one thread, in turns. What does not run here is left as it is.
    """
    image = np.zeros((1, *preprocess.size, 3), np.uint8)

    def inputs(session: Session) -> Inputs:
        spec = session.inputs[0]
        return {spec.name: np.repeat(image, (spec.shape or (None,))[0] or 1, axis=0)}

    return compared(variants, folder, lambda variant: next(iter(variant.graphs.values())), inputs)


def compared(
    variants: Mapping[str, Variant],
    folder: Path,
    file: Callable[[Variant], str],
    inputs: Callable[[Session], Inputs],
) -> dict[str, Variant]:
    """``with_speed`` on one ``file`` of each variant, run on the ``inputs`` that its session takes."""
    found = dict(variants)
    for name, variant in variants.items():
        rivals = [key for key, item in variants.items() if item.backend == variant.backend and item.precision != "int8"]
        if variant.precision != "int8" or not rivals:
            continue
        create, options, ratios = session_class(variant.backend), SessionOptions(threads=1), {}
        try:
            for rival in rivals:
                files = [folder / file(item) for item in (variants[rival], variant)]
                with create.open(files[0], options) as one, create.open(files[1], options) as other:
                    ratios[rival] = speed_ratio(one, other, inputs(one))
        except BackendUnavailable:
            continue
        slow = min(ratios, key=ratios.__getitem__)
        if ratios[slow] < FASTER:
            found[name] = dataclasses.replace(variant, slower_than=slow)
    return found


def speed_ratio(one: Session, other: Session, inputs: Inputs, clock: Clock = time.perf_counter) -> float:
    """How many times as fast as ``one`` ``other`` is: the ratio of median times over rounds in turns."""
    times: tuple[list[float], list[float]] = ([], [])
    begun = clock()
    for _ in range(ROUNDS):
        for session, taken in zip((one, other), times, strict=True):
            start = clock()
            session.run(inputs)
            taken.append(clock() - start)
        if clock() - begun > SECONDS:
            break
    return statistics.median(times[0]) / statistics.median(times[1])

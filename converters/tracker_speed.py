"""Whether int8 pays in a tracker: its search graphs timed against each other, for they run on every frame."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from edgecv.converters.speed import compared
from edgecv.manifest import Graph, Variant

__all__ = ["with_search_speed"]

SEARCH = "search"


def with_search_speed(variants: Mapping[str, Variant], folder: Path, graph: Graph) -> dict[str, Variant]:
    """``variants`` of ``folder``, with ``slower_than`` set on each int8 one whose search is no faster than a float one.

    One target at a time on one thread, in turns; ``graph`` is what the search takes. What does not run here is left as
    it is.
    """
    random = np.random.default_rng(0)
    shapes = {spec.name: (1, *(side or 1 for side in (spec.shape or ())[1:])) for spec in graph.inputs}
    inputs = {
        spec.name: random.integers(0, 256, shapes[spec.name], np.uint8)
        if spec.dtype == "uint8"
        else random.random(shapes[spec.name], np.float32)
        for spec in graph.inputs
    }
    return compared(variants, folder, lambda variant: variant.graphs[SEARCH], lambda _: inputs)

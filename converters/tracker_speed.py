"""Whether int8 pays in a tracker: its search graphs timed against each other, for they run on every frame."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from edgecv.converters.speed import FASTER, speed_ratio
from edgecv.errors import BackendUnavailable, InputError
from edgecv.manifest import Graph, Variant
from edgecv.runtimes.registry import session_class
from edgecv.runtimes.session import Session, SessionOptions
from edgecv.tensors import Array

__all__ = ["with_search_speed"]

SEARCH = "search"


def with_search_speed(variants: Mapping[str, Variant], folder: Path, graph: Graph) -> dict[str, Variant]:
    """``variants`` of ``folder``, with ``slower_than`` set on each int8 one whose search is no faster than a float one.

    One target at a time on one thread, in turns; ``graph`` is what the search takes. What does not run here is left as
    it is.
    """
    found = dict(variants)
    for name, variant in variants.items():
        rivals = [key for key, item in variants.items() if item.backend == variant.backend and item.precision != "int8"]
        if variant.precision != "int8" or not rivals:
            continue
        try:
            ratios = {rival: _ratio(folder, variants[rival], variant, graph) for rival in rivals}
        except BackendUnavailable:
            continue
        rival = min(ratios, key=ratios.__getitem__)
        if ratios[rival] < FASTER:
            found[name] = dataclasses.replace(variant, slower_than=rival)
    return found


class _Crops(Session):
    """A search session that is given crops alone; the features are always the same."""

    backend = "crops"

    def __init__(self, inner: Session, features: Array) -> None:
        self._inner, self._features = inner, features
        super().__init__([spec for spec in inner.inputs if spec.name == SEARCH], inner.outputs)

    @classmethod
    def open(cls, path: Path, options: SessionOptions) -> Session:
        raise InputError(f"{path}: open it with its backend; this session is made for one comparison")

    def _run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        return self._inner.run({**inputs, "features": self._features})


def _ratio(folder: Path, one: Variant, other: Variant, graph: Graph) -> float:
    create, options = session_class(one.backend), SessionOptions(threads=1)
    random = np.random.default_rng(0)
    shapes = {spec.name: (1, *(side or 1 for side in (spec.shape or ())[1:])) for spec in graph.inputs}
    features = random.random(shapes["features"], np.float32)
    crop = random.integers(0, 256, shapes[SEARCH], np.uint8)
    files = [folder / variant.graphs[SEARCH] for variant in (one, other)]
    with create.open(files[0], options) as first, create.open(files[1], options) as second:
        return speed_ratio(_Crops(first, features), _Crops(second, features), crop)

"""The table of tracker networks."""

from __future__ import annotations

from typing import Any

from edgecv.errors import InputError
from edgecv.models.recipe import TRACKERS, Recipe
from edgecv.models.siamese.branches import Siamese
from edgecv.plugins import unknown

__all__ = ["TRACKERS", "create_tracker"]


def create_tracker(name: str, **options: Any) -> Siamese:
    """Build a tracker network, with fresh weights, from one of ``TRACKERS.names()``.

    As ``edgecv.models.create``, but nothing except a tracker; ``options`` are fields of its family's ``Variant``.

    Raises:
        InputError: there is no such tracker or option, or an option's value is out of range.
    """
    if name not in TRACKERS.names():
        raise InputError(unknown("tracker", name, TRACKERS.names()))
    network = Recipe(name, options).build()
    if not isinstance(network, Siamese):
        raise InputError(f"tracker {name!r} is a {type(network).__name__}; a subclass of Siamese was expected")
    return network

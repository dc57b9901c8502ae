"""Siblings of a tracker family from the options of a recipe, which are JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from edgecv.schema import decode, encode

__all__ = ["sibling"]

V = TypeVar("V")


def sibling(variant: V, options: Mapping[str, Any]) -> V:
    """``variant``, a frozen dataclass, with other values for the fields that ``options`` names.

    Raises:
        InputError: there is no such field, or a value is of another type.
    """
    return decode(type(variant), {**encode(variant), **encode(options)}, "options")

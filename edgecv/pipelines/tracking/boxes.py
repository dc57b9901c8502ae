"""Boxes ``(x, y, w, h)`` in pixels: x and y of the left upper corner, where pixel 0 reaches from 0 to 1."""

from __future__ import annotations

import math
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from edgecv.errors import InputError

__all__ = ["Box", "check_box", "context_side", "iou", "overlaps"]

Box = tuple[float, float, float, float]
Floats = NDArray[np.float64]
Side = TypeVar("Side", float, NDArray[np.floating[Any]])


def check_box(box: object, height: int, width: int) -> Box:
    """Return a target's first box as floats.

    Raises:
        InputError: it is not four finite numbers, has no area, or less than a pixel of it lies in the frame.
    """
    try:
        x, y, w, h = (float(value) for value in box)  # type: ignore[attr-defined]  # anything iterable is tried
    except (TypeError, ValueError) as error:
        raise InputError(f"a box is four numbers x, y, width, height, got {box!r}") from error
    if not all(map(math.isfinite, (x, y, w, h))):
        raise InputError(f"a box is four finite numbers x, y, width, height, got {box!r}")
    if w < 1 or h < 1:
        raise InputError(f"a box is at least 1 pixel wide and high, got width {w:g} and height {h:g}")
    if min(x + w, width) - max(x, 0) < 1 or min(y + h, height) - max(y, 0) < 1:
        raise InputError(f"box {x:g}, {y:g}, {w:g}, {h:g} lies outside the frame of {width} x {height} pixels")
    return x, y, w, h


def context_side(w: Side, h: Side, context: float) -> Side:
    """Side of the square that holds a target and a share ``context`` of its width and height around it.

    (Bertinetto et al., 2016, arXiv:1606.09549, section 3.4.)
    """
    margin = context * (w + h)
    side: Side = ((w + margin) * (h + margin)) ** 0.5
    return side


def overlaps(first: NDArray[Any], second: NDArray[Any]) -> Floats:
    """IoU of each row of ``first`` with the same row of ``second``, both ``[rows, 4]``; 0 where either has no area."""
    first, second = np.asarray(first, np.float64), np.asarray(second, np.float64)
    near = np.maximum(first[..., :2], second[..., :2])
    far = np.minimum(first[..., :2] + first[..., 2:], second[..., :2] + second[..., 2:])
    shared = np.prod(np.clip(far - near, 0, None), axis=-1)
    areas = np.prod(np.clip(first[..., 2:], 0, None), axis=-1) + np.prod(np.clip(second[..., 2:], 0, None), axis=-1)
    whole = areas - shared
    shares = np.divide(shared, whole, out=np.zeros_like(whole), where=whole > 0)
    return np.asarray(np.minimum(shares, 1.0), np.float64)  # sums of large numbers round


def iou(first: Box, second: Box) -> float:
    """Intersection over union of two boxes, 0-1."""
    return float(overlaps(np.array([first]), np.array([second]))[0])

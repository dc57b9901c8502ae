"""Square crops around a point, filled up outside the frame: the same few bytes whatever is cut out."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgecv.errors import BackendUnavailable

__all__ = ["cut", "cut_near", "fill_colour", "opencv"]

Frame = NDArray[np.uint8]
Colour = tuple[float, float, float]
Point = tuple[float, float]
PADDED = 1024  # pixels: a square that sticks out of the frame is copied with its surroundings up to this side


def opencv() -> Any:
    """Import OpenCV, which crops frames.

    Raises:
        BackendUnavailable: it is not installed.
    """
    try:
        import cv2
    except ModuleNotFoundError as error:
        raise BackendUnavailable("tracking needs OpenCV: pip install 'edgecv[vision]'") from error
    return cv2


def fill_colour(frame: Frame) -> Colour:
    """The mean of each channel: what lies outside the frame is filled with it."""
    red, green, blue, _ = opencv().mean(frame)
    return red, green, blue


def cut(frame: Frame, centre: Point, side: float, fill: Colour, out: Frame) -> None:
    """Resample the square of ``side`` pixels around ``centre`` (x, y) into ``out`` ``[size, size, 3]``.

    Only ``out`` is written: a square that is larger than the frame, or far outside it, costs no memory.
    """
    cv2 = opencv()
    size = out.shape[0]
    step = side / size
    first = 0.5 * step - 0.5 * side - 0.5
    to_frame = np.array([[step, 0, centre[0] + first], [0, step, centre[1] + first]])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    cv2.warpAffine(
        frame, to_frame, (size, size), dst=out, flags=flags, borderMode=cv2.BORDER_CONSTANT, borderValue=fill
    )


def cut_near(frame: Frame, centre: Point, side: float, fill: Colour, out: Frame) -> tuple[Point, float]:
    """As ``cut``, of a square that is off by half a pixel of ``out`` at most; three to five times as fast.

    Whole pixels around the square are resized by a whole number of output pixels, and ``out`` is a part of that.

    Returns:
        The centre (x, y) and the side of what was cut, for whoever reads places in ``out``.
    """
    cv2 = opencv()
    size, (height, width) = out.shape[0], frame.shape[:2]
    left, top = (math.floor(place - side / 2) for place in centre)
    whole = max(math.ceil(place + side / 2) - start for place, start in zip(centre, (left, top), strict=True))
    square = frame[max(top, 0) : max(top + whole, 0), max(left, 0) : max(left + whole, 0)]
    inside = square.shape[:2] == (whole, whole)
    if side < 1 or not square.size or (not inside and whole > PADDED):
        cut(frame, centre, side, fill, out)
        return centre, side
    if not inside:
        margins = max(-top, 0), max(top + whole - height, 0), max(-left, 0), max(left + whole - width, 0)
        square = cv2.copyMakeBorder(square, *margins, cv2.BORDER_CONSTANT, value=fill)
    large = max(size, round(whole * size / side))
    scale = large / whole
    resized = cv2.resize(square, (large, large))
    x, y = (
        min(max(round((place - start) * scale - size / 2), 0), large - size)
        for place, start in zip(centre, (left, top), strict=True)
    )
    out[:] = resized[y : y + size, x : x + size]
    return (left + (x + size / 2) / scale, top + (y + size / 2) / scale), size / scale

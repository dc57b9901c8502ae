"""Square crops around a point, filled up outside the frame: the same few bytes whatever is cut out."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgecv.errors import BackendUnavailable

__all__ = ["cut", "fill_colour", "opencv"]

Frame = NDArray[np.uint8]
Colour = tuple[float, float, float]


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


def cut(frame: Frame, centre: tuple[float, float], side: float, fill: Colour, out: Frame) -> None:
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

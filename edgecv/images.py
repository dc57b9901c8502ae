"""Image files to uint8 RGB frames, through OpenCV (``edgecv[vision]``)."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgecv.errors import BackendUnavailable, InputError, one_line

__all__ = ["SUFFIXES", "decode_image", "find_images", "read_image"]

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".webp")


def read_image(path: str | Path) -> NDArray[np.uint8]:
    """Read an image file as a uint8 RGB frame ``[height, width, 3]``; EXIF rotation is applied.

    Raises:
        InputError: the file is missing, not an image, or cut short (OpenCV alone would fill the rest with grey).
        BackendUnavailable: OpenCV is not installed.
    """
    _opencv()
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"cannot read image {path}: {one_line(error.strerror or error)}") from error
    return decode_image(data, str(path))


def decode_image(data: bytes, name: str) -> NDArray[np.uint8]:
    """Decode the bytes of an image file as ``read_image`` does; ``name`` stands in messages."""
    cv2 = _opencv()
    _refuse_truncated(name, data)
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) if data else None
    except cv2.error as error:
        raise InputError(f"{name} cannot be decoded as an image: {one_line(error)}") from error
    if image is None:
        raise InputError(f"{name} is not an image that OpenCV can read")
    frame: NDArray[np.uint8] = np.ascontiguousarray(image[..., ::-1])
    return frame


def find_images(folder: str | Path) -> list[Path]:
    """Image files directly in ``folder``, sorted by name; hidden files are left out."""
    return sorted(p for p in Path(folder).iterdir() if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))


def _opencv() -> ModuleType | Any:
    try:
        import cv2
    except ModuleNotFoundError as error:
        raise BackendUnavailable("reading image files needs OpenCV: pip install 'edgecv[vision]'") from error
    return cv2


def _refuse_truncated(name: str, data: bytes) -> None:
    """Decoders forgive a missing end; a dataset or a device must not."""
    complete = True
    if data.startswith(b"\xff\xd8"):  # JPEG: an end-of-image marker after the last start of scan
        scan = data.rfind(b"\xff\xda")
        complete = scan >= 0 and data.find(b"\xff\xd9", scan) >= 0
    elif data.startswith(b"\x89PNG"):
        complete = b"IEND" in data[-64:] or data.rfind(b"IEND") > data.rfind(b"IDAT") >= 0
    elif data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        complete = len(data) >= int.from_bytes(data[4:8], "little") + 8
    elif data.startswith(b"BM"):
        complete = len(data) >= int.from_bytes(data[2:6], "little")
    if not complete:
        raise InputError(f"{name} is cut short ({len(data)} bytes): its end is missing")

"""The errors edgecv raises; every one of them is an ``EdgeCVError``.

    EdgeCVError
    ├── InputError            an array, image, file or argument is wrong
    ├── BundleError           a bundle is broken, tampered with, or too new
    ├── BackendUnavailable    a library, driver or device is missing
    ├── ConversionError       a network or graph cannot be converted
    └── ParityError           two answers that must agree differ

A message says what was wanted, what was got, and what to do, in one line.
"""

from __future__ import annotations

from typing import Any

__all__ = [
    "BackendUnavailable",
    "BundleError",
    "ConversionError",
    "EdgeCVError",
    "InputError",
    "ParityError",
    "one_line",
]


class EdgeCVError(Exception):
    """The root of every error edgecv raises on purpose."""


class InputError(EdgeCVError):
    """An array, image, file or argument is not what was asked for."""


class BundleError(EdgeCVError):
    """A bundle is broken, was changed after it was written, or needs a newer edgecv."""


class BackendUnavailable(EdgeCVError):
    """A library, driver or device is missing; the message names what to install."""


class ConversionError(EdgeCVError):
    """A network or graph cannot be converted; the message names the step and the cause."""


class ParityError(EdgeCVError):
    """Answers that must agree differ; ``report`` holds the figures."""

    def __init__(self, message: str, report: Any = None) -> None:
        super().__init__(message)
        self.report = report


def one_line(error: object, limit: int = 300) -> str:
    """Return another library's message as one line of at most ``limit`` characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= limit else text[: limit - 1] + "…"

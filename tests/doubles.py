"""A session in plain numpy, for tests of what stands on sessions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from edgecv.runtimes.session import Session, SessionOptions
from edgecv.tensors import Array, TensorSpec


class NumpySession(Session):
    """``image`` uint8 ``[batch, height, width, 3]`` to ``logits`` float32 ``[batch, classes]``, by a function."""

    backend = "numpy"

    def __init__(
        self,
        function: Callable[[Array], Array],
        *,
        size: tuple[int, int] = (4, 4),
        classes: int | None = 3,
        batch: int | None = None,
    ) -> None:
        image = TensorSpec("image", "uint8", (batch, *size, 3))
        super().__init__([image], [TensorSpec("logits", "float32", (batch, classes))])
        self._function = function
        self.batches: list[int] = []

    @classmethod
    def open(cls, path: Path, options: SessionOptions) -> NumpySession:
        raise NotImplementedError

    def _run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        self.batches.append(len(inputs["image"]))
        return {"logits": self._function(inputs["image"]).astype(np.float32)}


def brightness(image: Array) -> Array:
    """Logits that follow the mean of each channel: the strongest colour wins."""
    mean: Array = image.astype(np.float32).mean((1, 2)) / 25.5
    return mean


def solid(red: int, green: int, blue: int, size: tuple[int, int] = (6, 5)) -> Array:
    """A frame of one colour."""
    return np.full((*size, 3), (red, green, blue), np.uint8)


def strongest(channel: int) -> Array:
    """A frame that ``brightness`` puts into class ``channel``."""
    frame = solid(0, 0, 0)
    frame[..., channel] = 9
    return frame

"""Running any number of frames through a graph with one image input."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edgecv.errors import InputError
from edgecv.preprocess import Preprocess
from edgecv.runtimes.session import Session
from edgecv.tensors import Array

__all__ = ["run_frames"]


def run_frames(
    session: Session, preprocess: Preprocess, frames: Sequence[NDArray[np.uint8]], *, batch: int | None = None
) -> dict[str, Array]:
    """Preprocess frames, run them and return every output, ``[len(frames), …]`` by name.

    ``batch`` frames run at a time (all of them by default). A graph with a fixed batch decides itself; its last batch
    is filled up with copies of the last frame, whose answers are dropped.

    Raises:
        InputError: there is no frame, or one of them is not a uint8 RGB frame.
    """
    if len(frames) == 0:
        raise InputError("at least one frame is needed, got none")
    image = session.inputs[0]
    fixed = image.shape[0] if image.shape else None
    size = fixed or batch or len(frames)
    parts = []
    for start in range(0, len(frames), size):
        images = preprocess.batch([frames[i] for i in range(start, min(start + size, len(frames)))])
        count = len(images)
        if fixed and count < fixed:
            images = np.concatenate([images, np.repeat(images[-1:], fixed - count, axis=0)])
        parts.append({name: value[:count] for name, value in session.run({image.name: images}).items()})
    if len(parts) == 1:
        return parts[0]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

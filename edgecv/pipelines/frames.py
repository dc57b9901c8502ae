"""What pipelines of one image share: images of any kind to frames, frames through a graph, the graph checked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgecv.errors import InputError
from edgecv.images import read_image
from edgecv.preprocess import Preprocess
from edgecv.runtimes.session import Session
from edgecv.tensors import Array

__all__ = ["frames_of", "run_frames", "vector_output"]

Frame = NDArray[np.uint8]


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


def frames_of(image: Any) -> tuple[list[Frame], bool]:
    """The frames of one image or several, and whether it was one.

    An image is a uint8 RGB frame ``[height, width, 3]`` of any size or an image file's path; several are a list of
    either or an array ``[batch, height, width, 3]``.
    """
    single = isinstance(image, (str, Path)) or (isinstance(image, np.ndarray) and image.ndim != 4)
    if not single and not isinstance(image, (list, tuple, np.ndarray)):
        raise InputError(f"an image is a uint8 array, a path or a list of them, got {type(image).__name__}")
    items = [image] if single else image
    return [read_image(item) if isinstance(item, (str, Path)) else item for item in items], single


def vector_output(session: Session, preprocess: Preprocess, what: str) -> tuple[str, int | None]:
    """The name of a graph's one output ``[batch, numbers]`` and how many numbers it has, where it says.

    Raises:
        InputError: the graph is not one that ``what`` ("a classifier") runs on frames of this preprocessing.
    """
    if len(session.inputs) != 1 or len(session.outputs) != 1:
        raise InputError(f"{what}'s graph has one input and one output, this one is {session!r}")
    image, vectors = session.inputs[0], session.outputs[0]
    wanted = (*preprocess.size, 3)
    if image.dtype != "uint8" or image.shape is None or len(image.shape) != 4 or image.shape[1:] != wanted:
        raise InputError(f"preprocessing makes uint8[batch, {', '.join(map(str, wanted))}], the graph takes {image}")
    if vectors.shape is not None and len(vectors.shape) != 2:
        raise InputError(f"{what}'s graph gives one row of numbers per image, this one gives {vectors}")
    return vectors.name, vectors.shape[1] if vectors.shape else None

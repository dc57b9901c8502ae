"""What a network is calibrated on: real images, as the network takes them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgecv.errors import InputError
from edgecv.models.framed import Framed
from edgecv.preprocess import Preprocess

__all__ = ["BATCH", "Calibration", "Inputs", "batches_of"]

BATCH = 4  # larger ones are no faster: their tensors are given back to the system and taken again each time
Inputs = tuple[Tensor, ...]
Calibration = Sequence[NDArray[np.uint8]] | Sequence[Inputs] | Sequence[Tensor]
"""Frames: uint8 RGB images of any size, with a ``Preprocess``. Or batches of what the network takes: one tensor each,
or a tuple of a tensor for every input."""


def batches_of(calibration: Calibration, preprocess: Preprocess | None) -> list[Inputs]:
    """The network's inputs, in batches.

    Raises:
        InputError: there is nothing to calibrate on, or frames come without a ``Preprocess``, or tensors with one.
    """
    items: list[Any] = list(calibration)
    if not items:
        raise InputError("calibration needs some real images, got none")
    frames = isinstance(items[0], np.ndarray)
    if any(isinstance(item, np.ndarray) is not frames for item in items):
        raise InputError("calibration is frames or tensors, got both")
    if not frames:
        return [_checked(item) for item in items]
    if preprocess is None:
        raise InputError("calibration on frames needs preprocess=: what the network was trained with")
    normalize = Framed(torch.nn.Identity(), preprocess).normalize
    return [
        (normalize(torch.from_numpy(np.stack([preprocess(frame) for frame in items[start : start + BATCH]]))),)
        for start in range(0, len(items), BATCH)
    ]


def _checked(item: Any) -> Inputs:
    inputs = item if isinstance(item, tuple) else (item,)
    if not inputs or not all(isinstance(tensor, Tensor) and tensor.ndim > 1 and len(tensor) for tensor in inputs):
        raise InputError(
            "calibration is a sequence of uint8 frames, or of batches: a tensor, or a tuple of one for every input"
        )
    return inputs

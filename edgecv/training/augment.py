"""Augmentation: one frozen specification, presets suited to each kind of data."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from edgecv.errors import InputError
from edgecv.plugins import unknown

__all__ = ["PRESETS", "Augment", "preset"]


@dataclass(frozen=True, slots=True)
class Augment:
    """Random changes of training images, in the order of the fields; 0, ``False`` and ``None`` leave one out.

    Args:
        crop: (smallest, largest) share of the frame's area that a random crop keeps, of proportions 3:4 to 4:3
            (Szegedy et al., 2014, arXiv:1409.4842, section 6).
        flip: mirror half of the images.
        rotate_deg: rotate by up to this many degrees either way.
        zoom: enlarge or shrink by up to this share.
        shift: move by up to this share of the side.
        brightness, contrast: change by up to this share.
    """

    crop: tuple[float, float] | None = None
    flip: bool = False
    rotate_deg: float = 0.0
    zoom: float = 0.0
    shift: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0

    def crop_frame(self, frame: NDArray[np.uint8], generator: np.random.Generator) -> NDArray[np.uint8]:
        """Cut a random part out of a whole frame, before it is resized."""
        if self.crop is None:
            return frame
        height, width = frame.shape[:2]
        for _ in range(10):
            area = height * width * generator.uniform(*self.crop)
            ratio = np.exp(generator.uniform(np.log(3 / 4), np.log(4 / 3)))
            tall, wide = round(float(np.sqrt(area / ratio))), round(float(np.sqrt(area * ratio)))
            if 0 < tall <= height and 0 < wide <= width:
                top, left = generator.integers(0, height - tall + 1), generator.integers(0, width - wide + 1)
                return frame[top : top + tall, left : left + wide]
        return frame

    def apply(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Change a batch of uint8 images ``[batch, height, width, 3]``; the result has the same dtype and shape."""
        if not any((self.flip, self.rotate_deg, self.zoom, self.shift, self.brightness, self.contrast)):
            return images
        values = images.permute(0, 3, 1, 2).float()
        if any((self.flip, self.rotate_deg, self.zoom, self.shift)):
            matrices = self._affine(len(images), images.shape[1] / images.shape[2], generator)
            grid = functional.affine_grid(matrices, list(values.shape), align_corners=False)
            values = functional.grid_sample(values, grid, padding_mode="border", align_corners=False)
        if self.brightness or self.contrast:
            values = self._tone(values, generator)
        return values.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)

    def _affine(self, count: int, ratio: float, generator: torch.Generator) -> Tensor:
        """Random matrices ``[count, 2, 3]`` from output to input coordinates, both -1 to 1; ratio: height to width."""
        angle = _uniform(count, self.rotate_deg, generator) * (torch.pi / 180)
        scale = 1 + _uniform(count, self.zoom, generator)
        mirror = torch.where(torch.rand(count, generator=generator) < (0.5 if self.flip else 0), -1.0, 1.0)
        cos, sin = torch.cos(angle) * scale, torch.sin(angle) * scale
        move_x, move_y = (2 * _uniform(count, self.shift, generator) for _ in range(2))
        rows = [
            torch.stack([cos * mirror, -sin * ratio, move_x], 1),
            torch.stack([sin * mirror / ratio, cos, move_y], 1),
        ]
        return torch.stack(rows, 1)

    def _tone(self, values: Tensor, generator: torch.Generator) -> Tensor:
        gain = (1 + _uniform(len(values), self.contrast, generator)).view(-1, 1, 1, 1)
        lift = (255 * _uniform(len(values), self.brightness, generator)).view(-1, 1, 1, 1)
        middle = values.mean((1, 2, 3), keepdim=True)
        return (values - middle) * gain + middle + lift


PRESETS = {
    "none": Augment(),
    "digits": Augment(rotate_deg=10, zoom=0.1, shift=0.08),
    "small_photos": Augment(flip=True, shift=0.125),
    "photos": Augment(crop=(0.35, 1.0), flip=True, brightness=0.2, contrast=0.2),
}


def preset(name: str) -> Augment:
    """An augmentation by name: ``"none"``, ``"digits"`` (no mirroring), ``"small_photos"`` or ``"photos"``."""
    if name not in PRESETS:
        raise InputError(unknown("augmentation", name, PRESETS))
    return PRESETS[name]


def _uniform(count: int, limit: float, generator: torch.Generator) -> Tensor:
    return (torch.rand(count, generator=generator) * 2 - 1) * limit

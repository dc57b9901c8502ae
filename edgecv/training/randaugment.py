"""RandAugment: each image of a batch goes through a few operations drawn at random, all of one magnitude.

Written here because kornia's RandAugment (0.9) draws from the global generator alone, takes the same operations for
all images of a batch, and needs Python 3.11.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from edgecv.errors import InputError

__all__ = ["OPERATIONS", "RandAugment"]

Operation = Callable[[Tensor, float, Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class RandAugment:
    """Operations drawn for each image by itself, with equal chance and repeats (Cubuk et al., 2019, arXiv:1909.13719).

    At magnitude 30 they reach the ends of AutoAugment's ranges (Cubuk et al., 2018, arXiv:1805.09501, table 6): shear
    by 0.3, translate by 150/331 of the side, rotate by 30 degrees, brightness, color, contrast and sharpness by factors
    of 0.1 or 1.9, posterize to 4 bits, solarize from 0. The way (left or right, more or less) is drawn too. Identity,
    autocontrast and equalize have no magnitude. A move uncovers black; rotation and shear keep the middle in place.

    Args:
        operations: for each image, one after the other; 0 leaves images as they are.
        magnitude: 0 to 30.

    Raises:
        InputError: an argument is not a whole number of its range.
    """

    operations: int = 2
    magnitude: int = 9

    def __post_init__(self) -> None:
        if not isinstance(self.operations, int) or self.operations < 0:
            raise InputError(f"operations is a whole number of 0 or more, got {self.operations!r}")
        if not isinstance(self.magnitude, int) or not 0 <= self.magnitude <= 30:
            raise InputError(f"magnitude is a whole number from 0 to 30, got {self.magnitude!r}")

    def apply(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Change a batch of uint8 images ``[batch, height, width, 3]``; the result has the same dtype and shape.

        All that is random comes from ``generator``; how much is drawn does not depend on what.

        Raises:
            InputError: the images have another dtype or shape.
        """
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[3] != 3 or 0 in images.shape:
            raise InputError(f"images are uint8 [batch, height, width, 3], got {images.dtype} {list(images.shape)}")
        values = images.permute(0, 3, 1, 2).float()
        for _ in range(self.operations):
            chosen = torch.randint(len(OPERATIONS), (len(images),), generator=generator, device=generator.device)
            signs = torch.randint(2, (len(images),), generator=generator, device=generator.device) * 2 - 1
            values = self._once(values, chosen.to(images.device), signs.to(images.device))
        return values.to(torch.uint8).permute(0, 2, 3, 1).contiguous()

    def _once(self, values: Tensor, chosen: Tensor, signs: Tensor) -> Tensor:
        """One operation for each image, on all images at once that drew it."""
        result = values.clone()
        for index, operation in enumerate(OPERATIONS.values()):
            places = (chosen == index).nonzero()[:, 0]
            if len(places):
                changed = operation(values[places], self.magnitude / 30, signs[places])
                result[places] = changed.round().clamp(0, 255)
        return result


def _identity(values: Tensor, level: float, signs: Tensor) -> Tensor:
    return values


def _shear(values: Tensor, level: float, signs: Tensor, row: int) -> Tensor:
    along, across = (values.shape[3], values.shape[2])[:: 1 - 2 * row]
    return _warp(values, {(row, 1 - row): signs * (0.3 * level * across / along)})


def _translate(values: Tensor, level: float, signs: Tensor, row: int) -> Tensor:
    return _warp(values, {(row, 2): signs * (-2 * level * 150 / 331)})


def _rotate(values: Tensor, level: float, signs: Tensor) -> Tensor:
    height, width = values.shape[2:]
    angle = signs * (level * torch.pi / 6)
    cos, sin = torch.cos(angle), torch.sin(angle)
    return _warp(values, {(0, 0): cos, (0, 1): -sin * height / width, (1, 0): sin * width / height, (1, 1): cos})


def _warp(values: Tensor, entries: dict[tuple[int, int], Tensor]) -> Tensor:
    """Resample at places given by entries of the matrix from output to input, whose coordinates are -1 to 1."""
    matrix = torch.eye(2, 3, device=values.device).repeat(len(values), 1, 1)
    for (row, column), entry in entries.items():
        matrix[:, row, column] = entry
    grid = functional.affine_grid(matrix, list(values.shape), align_corners=False)
    return functional.grid_sample(values, grid, align_corners=False)


def _brightness(values: Tensor, level: float, signs: Tensor) -> Tensor:
    return _away_from(torch.zeros_like(values), values, level, signs)


def _color(values: Tensor, level: float, signs: Tensor) -> Tensor:
    return _away_from(_gray(values), values, level, signs)


def _contrast(values: Tensor, level: float, signs: Tensor) -> Tensor:
    # Whole numbers add up exactly in doubles, so that the mean depends on no order of adding.
    mean = _gray(values).double().mean((2, 3), keepdim=True)
    return _away_from(mean.round().float(), values, level, signs)


def _sharpness(values: Tensor, level: float, signs: Tensor) -> Tensor:
    """Away from a blur whose middle weighs 5 and whose eight neighbours 1; the outermost pixels stay."""
    smooth = values.clone()
    inner = smooth[:, :, 1:-1, 1:-1]
    if inner.numel():
        inner.copy_((functional.avg_pool2d(values, 3, 1, divisor_override=1) + 4 * inner) / 13)
    return _away_from(smooth.round(), values, level, signs)


def _away_from(base: Tensor, values: Tensor, level: float, signs: Tensor) -> Tensor:
    """Scale the difference from ``base`` by 1.9 (or 0.1) at full level."""
    return base + (values - base) * (1 + 0.9 * level * signs).view(-1, 1, 1, 1)


def _gray(values: Tensor) -> Tensor:
    """Luma ``[batch, 1, height, width]`` in whole numbers, by the weights of ITU-R BT.601."""
    red, green, blue = values.unbind(1)
    return (0.299 * red + 0.587 * green + 0.114 * blue).round().unsqueeze(1)


def _posterize(values: Tensor, level: float, signs: Tensor) -> Tensor:
    """Keep the highest 8 (level 0) to 4 bits."""
    step = 1 << round(4 * level)
    return (values / step).floor() * step


def _solarize(values: Tensor, level: float, signs: Tensor) -> Tensor:
    """Invert from a threshold on: 256 at level 0, then lower."""
    return torch.where(values >= 256 * (1 - level), 255 - values, values)


def _autocontrast(values: Tensor, level: float, signs: Tensor) -> Tensor:
    """Stretch each channel of each image to 0 to 255; one of a single value stays."""
    low, high = values.amin((2, 3), keepdim=True), values.amax((2, 3), keepdim=True)
    return torch.where(high > low, (values - low) * 255 / (high - low).clamp(min=1), values)


def _equalize(values: Tensor, level: float, signs: Tensor) -> Tensor:
    """Level each channel's histogram, in whole numbers as Pillow's ``ImageOps.equalize`` does."""
    flat = values.flatten(2).long()
    counts = torch.zeros(*flat.shape[:2], 256, dtype=torch.long, device=flat.device)
    counts.scatter_add_(2, flat, torch.ones_like(flat))
    step = (flat.shape[2] - counts.gather(2, flat.amax(2, keepdim=True))) // 255
    below = counts.cumsum(2) - counts
    table = ((below + step // 2) // step.clamp(min=1)).clamp(max=255)
    return torch.where(step > 0, table.gather(2, flat), flat).view_as(values).float()


# By name: from float images [batch, 3, height, width] of whole numbers 0 to 255, the level (magnitude / 30) and the
# ways [batch], -1 or 1, to new values, which the caller rounds and clips.
OPERATIONS: dict[str, Operation] = {
    "identity": _identity,
    "shear_x": partial(_shear, row=0),
    "shear_y": partial(_shear, row=1),
    "translate_x": partial(_translate, row=0),
    "translate_y": partial(_translate, row=1),
    "rotate": _rotate,
    "brightness": _brightness,
    "color": _color,
    "contrast": _contrast,
    "sharpness": _sharpness,
    "posterize": _posterize,
    "solarize": _solarize,
    "autocontrast": _autocontrast,
    "equalize": _equalize,
}

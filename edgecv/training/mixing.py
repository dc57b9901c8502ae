"""Mixing of training images: mixup and cutmix, whose targets are shares of classes."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from edgecv.errors import InputError

__all__ = ["mix"]


def mix(
    images: Tensor, targets: Tensor, *, classes: int, mixup: float, cutmix: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Mix each image of a batch with another of it, and the targets in the same proportion.

    One share and one pairing are drawn per batch, all from ``generator``; an image may be paired with itself. Where
    both ways are on, each batch takes one of them with equal chance. ``torch.nn.functional.cross_entropy`` takes the
    soft targets as they are, with its ``label_smoothing``.

    Args:
        images: normalized floats ``[batch, 3, height, width]``; left as they are.
        targets: integers ``[batch]``, 0 to ``classes - 1``.
        mixup: blend with a share drawn from Beta(mixup, mixup); 0 is off (Zhang et al., 2017, arXiv:1710.09412).
        cutmix: paste a box of the other image, whose share of the frame is drawn from Beta(cutmix, cutmix) before the
            border clips it; 0 is off (Yun et al., 2019, arXiv:1905.04899).

    Returns:
        Images of the same dtype and shape, and float32 targets ``[batch, classes]`` whose rows sum to 1. With both
        ways off: ``images`` itself, and targets of 0 and 1.

    Raises:
        InputError: the shapes or dtypes do not fit, a target is no class, or a parameter is negative or not finite.
    """
    _check(images, targets, classes)
    cut = _cut_this_batch(_alpha("mixup", mixup), _alpha("cutmix", cutmix), generator)
    hard = functional.one_hot(targets.long(), classes).to(torch.float32)
    if not mixup and not cutmix:
        return images, hard
    partner = torch.randperm(len(images), generator=generator, device=generator.device)
    others = images[partner.to(images.device)]
    share = _beta(cutmix if cut else mixup, generator)
    mixed, share = _paste(images, others, share, generator) if cut else (torch.lerp(images, others, share), share)
    return mixed, torch.lerp(hard, hard[partner.to(hard.device)], share)


def _paste(images: Tensor, others: Tensor, share: float, generator: torch.Generator) -> tuple[Tensor, float]:
    """Paste a box of ``others`` of the frame's proportions, centred anywhere, and tell its share of the pixels."""
    height, width = images.shape[2:]
    top, bottom = _span(height, share, generator)
    left, right = _span(width, share, generator)
    mixed = images.clone()
    mixed[:, :, top:bottom, left:right] = others[:, :, top:bottom, left:right]
    return mixed, (bottom - top) * (right - left) / (height * width)


def _span(side: int, share: float, generator: torch.Generator) -> tuple[int, int]:
    """The box's first pixel and the one behind its last along a side, clipped at the border."""
    length = round(side * share**0.5)
    start = _integer(side, generator) - length // 2
    return max(start, 0), min(start + length, side)


def _beta(alpha: float, generator: torch.Generator) -> float:
    # torch.distributions draws from the global generator alone, and torch's own gamma numbers, which can be given one,
    # underflow to their floor for a small alpha: NumPy's Beta it is, seeded with 63 bits of the given generator.
    return float(np.random.default_rng(_integer(2**63 - 1, generator)).beta(alpha, alpha))


def _cut_this_batch(mixup: float, cutmix: float, generator: torch.Generator) -> bool:
    return cutmix > 0 and (mixup == 0 or _integer(2, generator) == 1)


def _integer(end: int, generator: torch.Generator) -> int:
    """A number from 0 to ``end - 1``."""
    return int(torch.randint(end, (), generator=generator, device=generator.device))


def _alpha(name: str, value: float) -> float:
    if not 0 <= value < float("inf"):
        raise InputError(f"{name} is a finite number of 0 or more, got {value!r}")
    return value


def _check(images: Tensor, targets: Tensor, classes: int) -> None:
    if images.ndim != 4 or images.shape[1] != 3 or images.numel() == 0 or not images.is_floating_point():
        raise InputError(f"images are floats [batch, 3, height, width], got {images.dtype} {list(images.shape)}")
    if targets.shape != images.shape[:1] or targets.dtype not in _INTEGERS:
        raise InputError(f"targets are integers [{len(images)}], got {targets.dtype} {list(targets.shape)}")
    low, high = int(targets.min()), int(targets.max())
    if low < 0 or high >= classes:
        raise InputError(f"targets of {classes} classes are 0 to {classes - 1}, got {low} to {high}")


_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)

"""Ranges of quantization: what part of the values seen is kept exactly enough, and what is clipped."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from edgecv.compression.quantizers import LEVELS

__all__ = ["METHODS", "RangeMethod", "activation_range", "weight_scale"]

RangeMethod = Literal["minmax", "percentile", "mse", "entropy"]
METHODS = ("minmax", "percentile", "mse", "entropy")
PERCENTILE = 99.99
SAMPLE = 1 << 16  # values that a search looks at
SHARES = torch.linspace(0.3, 1.0, 36)  # of the largest value, that a search tries
BINS = 2048
TINY = 1e-12


def activation_range(values: Sequence[Tensor], method: RangeMethod) -> tuple[float, float]:
    """The lowest and highest value to quantize between.

    ``"minmax"`` keeps everything; ``"percentile"`` leaves the outermost 0.01 % on each side out; ``"mse"`` takes the
    range of least mean squared error; ``"entropy"`` that whose histogram of 128 steps has the least divergence from the
    float one (Migacz, 8-bit inference with TensorRT, GTC 2017), of magnitudes.
    """
    bounds = [torch.aminmax(part) for part in values]
    low, high = min(float(item.min) for item in bounds), max(float(item.max) for item in bounds)
    if method == "minmax" or high - low < TINY:
        return low, high
    if method == "percentile":
        sample = _sample(values)
        below, above = torch.quantile(sample, torch.tensor([1 - PERCENTILE / 100, PERCENTILE / 100])).tolist()
        return (below if low < 0 else low), above
    share = _best_share(_sample(values), low, high) if method == "mse" else _entropy_share(values, low, high)
    return low * share, high * share


def weight_scale(weight: Tensor, limit: int, method: Literal["minmax", "mse"]) -> Tensor:
    """A scale for each output channel (axis 0): the largest weight over ``limit``, or that of least squared error."""
    rows = weight.detach().flatten(1)
    largest = rows.abs().amax(1).clamp(min=TINY)
    if method == "minmax":
        return largest / limit
    best, error = largest / limit, torch.full_like(largest, torch.inf)
    for share in torch.linspace(0.5, 1.0, 51):
        scale = largest * share / limit
        steps = torch.clamp(torch.round(rows / scale[:, None]), -limit, limit)
        found = ((steps * scale[:, None] - rows) ** 2).sum(1)
        best, error = torch.where(found < error, scale, best), torch.minimum(found, error)
    return best


def _sample(values: Sequence[Tensor]) -> Tensor:
    """Evenly spaced values, so that a search costs the same for every layer."""
    step = max(1, sum(part.numel() for part in values) // SAMPLE)
    return torch.cat([_flat(part.detach())[::step] for part in values]).float()


def _flat(values: Tensor) -> Tensor:
    """All values in some order, without a copy where channels lie last too."""
    last = values.ndim == 4 and values.is_contiguous(memory_format=torch.channels_last)
    return (values.permute(0, 2, 3, 1) if last else values).reshape(-1)


def _best_share(sample: Tensor, low: float, high: float) -> float:
    low, high = min(low, 0.0), max(high, 0.0)
    errors = []
    for share in SHARES.tolist():
        scale = (high - low) * share / LEVELS
        zero_point = round(-low * share / scale)
        fake = torch.fake_quantize_per_tensor_affine(sample, scale, zero_point, 0, LEVELS)
        errors.append(float(((fake - sample) ** 2).mean()))
    return float(SHARES[errors.index(min(errors))])


def _entropy_share(values: Sequence[Tensor], low: float, high: float) -> float:
    largest = max(-low, high)
    counts = torch.zeros(BINS)
    for part in values:
        counts += torch.histc(part.detach().abs().float(), BINS, 0, largest)
    counts[0] = 0  # zeros are exact whatever the range is
    best, least = BINS, torch.inf
    for kept in range(128, BINS + 1, 16):
        divergence = _divergence(counts, kept)
        if divergence < least:
            best, least = kept, divergence
    return best / BINS


def _divergence(counts: Tensor, kept: int) -> float:
    """Kullback-Leibler divergence of ``kept`` bins, the rest clipped into the last, from their 128 steps."""
    wanted = counts[:kept].clone()
    wanted[-1] += counts[kept:].sum()
    step = (torch.arange(kept) * 128) // kept
    filled = (counts[:kept] > 0).float()
    totals = torch.zeros(128).index_add_(0, step, counts[:kept])
    used = torch.zeros(128).index_add_(0, step, filled)
    spread = (totals / used.clamp(min=1))[step] * filled
    wanted, spread = wanted / wanted.sum().clamp(min=TINY), spread / spread.sum().clamp(min=TINY)
    inside = wanted > 0
    return float((wanted[inside] * (wanted[inside] / spread[inside].clamp(min=TINY)).log()).sum())

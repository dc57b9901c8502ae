"""Fake quantization: values rounded to what integers can hold, while everything stays float and trainable."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.ao.quantization.fx import _decomposed  # noqa: F401  # registers torch.ops.quantized_decomposed

__all__ = ["ActivationQuantizer", "WeightQuantizer", "weight_limit"]

LEVELS = 255
SMALLEST = 1e-8  # a scale of 0 has no inverse
qdq = torch.ops.quantized_decomposed


def weight_limit(bits: int) -> int:
    """The largest integer weight: 127 of 8 bits, 63 of 7. The range is symmetric, so the least is its negative."""
    return int(2 ** (bits - 1)) - 1


class ActivationQuantizer(nn.Module):
    """A tensor rounded to 256 levels between ``low`` and ``high``, one of which is 0 exactly.

    Both bounds learn, as in LSQ+ (Bhalgat et al., 2020, arXiv:2004.09576), with LSQ's scaling of gradients (Esser et
    al., 2019, arXiv:1902.08153). What learns is the logarithm of a ``gain`` on each, so that a step of an optimizer is
    a share of the range, whatever its size (Jain et al., 2019, arXiv:1903.08066).
    """

    low: Tensor
    high: Tensor

    def __init__(self, low: float = 0.0, high: float = 1.0) -> None:
        super().__init__()
        self.register_buffer("low", torch.tensor(float(low)))
        self.register_buffer("high", torch.tensor(float(high)))
        self.gain = nn.Parameter(torch.zeros(2))
        self.enabled = True

    def set_range(self, low: float, high: float) -> None:
        """Take a range; it is widened to hold 0."""
        with torch.no_grad():
            self.low.fill_(min(low, 0.0))
            self.high.fill_(max(high, 0.0))
            self.gain.zero_()

    def affine(self) -> tuple[float, int]:
        """The scale, and the zero point in 0 to 255, of the float32 numbers that arithmetic uses."""
        scale, zero_point = self._affine(self.gain)
        return scale.item(), int(zero_point.item())

    def forward(self, values: Tensor) -> Tensor:
        if not self.enabled:
            return values
        if torch.is_grad_enabled() and self.gain.requires_grad:
            return self._learning(values)
        scale, zero_point = self._affine(self.gain)
        if torch.is_grad_enabled():
            return torch.fake_quantize_per_tensor_affine(values, scale, zero_point.to(torch.int32), 0, LEVELS)
        steps = torch.div(values, scale).round_()  # in place from here on: several times as fast as torch's own
        return steps.clamp_(-zero_point, LEVELS - zero_point).mul_(scale)

    def for_export(self) -> nn.Module:
        """What stands for it in a graph."""
        return _ExportedActivation(*self.affine()) if self.enabled else nn.Identity()

    def extra_repr(self) -> str:
        low, high = (self.gain.detach().exp() * torch.stack([self.low, self.high])).tolist()
        return f"{low:.4g} to {high:.4g}"

    def _affine(self, gain: Tensor) -> tuple[Tensor, Tensor]:
        low, high = (gain.exp() * torch.stack([self.low, self.high])).unbind()
        scale = ((high - low) / LEVELS).clamp(min=SMALLEST)
        return scale, _rounded(-low / scale)

    def _learning(self, values: Tensor) -> Tensor:
        share = 1 / math.sqrt(values.numel() / max(len(values), 1) * LEVELS)
        scale, zero_point = self._affine(_scaled_gradient(self.gain, share))
        return (torch.clamp(_rounded(values / scale) + zero_point, 0, LEVELS) - zero_point) * scale


class WeightQuantizer(nn.Module):
    """Weights rounded to signed integers of ``bits``, symmetric about 0, with a scale for each output channel.

    ``scale`` ``[channels]`` learns by its ``gain``, as the range of an activation does.
    """

    base: Tensor

    def __init__(self, channels: int, bits: int = 8, axis: int = 0) -> None:
        super().__init__()
        self.register_buffer("base", torch.ones(channels))
        self.gain = nn.Parameter(torch.zeros(channels))
        self.bits, self.axis = bits, axis
        self.enabled = True

    @property
    def limit(self) -> int:
        """The largest integer."""
        return weight_limit(self.bits)

    def set_scale(self, scale: Tensor) -> None:
        """Take a scale for each output channel."""
        with torch.no_grad():
            self.base.copy_(scale.clamp(min=SMALLEST))
            self.gain.zero_()

    @property
    def scale(self) -> Tensor:
        """Of one step, for each output channel."""
        return self.base * self.gain.detach().exp()

    def forward(self, weight: Tensor) -> Tensor:
        if not self.enabled:
            return weight
        scale = self.scale
        if torch.is_grad_enabled() and self.gain.requires_grad:
            share = 1 / math.sqrt(weight.numel() / len(scale) * self.limit)
            scale = self._along(self.base * _scaled_gradient(self.gain, share).exp(), weight)
            return torch.clamp(_rounded(weight / scale), -self.limit, self.limit) * scale
        zeros = torch.zeros(len(scale), dtype=torch.int32, device=weight.device)
        return torch.fake_quantize_per_channel_affine(weight, scale, zeros, self.axis, -self.limit, self.limit)

    def integers(self, weight: Tensor) -> Tensor:
        """The int8 weights."""
        scale = self._along(self.scale, weight)
        return torch.clamp(torch.round(weight / scale), -self.limit, self.limit).to(torch.int8)

    def for_export(self, weight: Tensor) -> nn.Module:
        """What stands for the quantized weight in a graph: integers, and their way back."""
        return _ExportedWeight(self.integers(weight), self.scale, self.axis)

    def extra_repr(self) -> str:
        return f"{len(self.base)} channels, {self.bits} bits"

    def _along(self, scale: Tensor, weight: Tensor) -> Tensor:
        shape = [1] * weight.ndim
        shape[self.axis] = -1
        return scale.view(shape)


class _ExportedActivation(nn.Module):
    def __init__(self, scale: float, zero_point: int) -> None:
        super().__init__()
        self._scale, self._zero_point = scale, zero_point

    def forward(self, values: Tensor) -> Tensor:
        settings = (self._scale, self._zero_point, 0, LEVELS, torch.uint8)
        quantized: Tensor = qdq.dequantize_per_tensor(qdq.quantize_per_tensor(values, *settings), *settings)
        return quantized


class _ExportedWeight(nn.Module):
    integers: Tensor
    scale: Tensor
    zero_points: Tensor

    def __init__(self, integers: Tensor, scale: Tensor, axis: int) -> None:
        super().__init__()
        self._axis = axis
        self.register_buffer("integers", integers)
        self.register_buffer("scale", scale.clone())
        self.register_buffer("zero_points", torch.zeros(len(scale), dtype=torch.int8))

    def forward(self, weight: Tensor) -> Tensor:
        settings = (self._axis, -128, 127, torch.int8)
        values: Tensor = qdq.dequantize_per_channel(self.integers, self.scale, self.zero_points, *settings)
        return values


def _rounded(values: Tensor) -> Tensor:
    """Rounded, with the gradient of the identity (straight-through; Bengio et al., 2013, arXiv:1308.3432)."""
    return (values.round() - values).detach() + values


def _scaled_gradient(value: Tensor, share: float) -> Tensor:
    return (value - value * share).detach() + value * share

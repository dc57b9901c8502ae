"""Weights rounded by what it does to a layer's output, which is a quadratic function of them: solved, not trained.

GPTQ's sweep (Frantar et al., 2022, arXiv:2210.17323), then coordinate descent over the grid (Behdin et al., 2023,
arXiv:2309.01885), towards what the float network computes from what the quantized one lets through.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, fx

from edgecv.compression.capture import is_call
from edgecv.compression.feedback import factor_of, groups_of, parts_of, rows_of, sweep
from edgecv.compression.quantizers import WeightQuantizer

__all__ = ["round_to_outputs"]

aten = torch.ops.aten
# How much the float weights count beside what calibration shows, in mean second moments of inputs. On 400 photos that
# calibrated nothing, one run each: the divergence from float MobileNetV2 is 0.0076, 0.0057, 0.0044, 0.0040 and 0.0041
# at 0.01, 0.1, 1, 3 and 10; rounding to the nearest gives 0.0067, AdaRound's 60 steps 0.0051.
TRUST = 3.0
PASSES = 2  # of coordinate descent
WIDEST = 1536  # inputs of a layer: the time grows with their square, and one step in so many inputs does little
# Outputs that are looked at for each input of a layer, and of how many batches at least: more change the divergence
# above by less than other photos do.
OUTPUTS, FEWEST = 64, 5


class _Moments(NamedTuple):
    """Of a layer: the mean products of its inputs ``[groups, inputs, inputs]``, and of its outputs with them."""

    inputs: Tensor
    outputs: Tensor


def round_to_outputs(
    product: fx.Node,
    weight: Tensor,
    quantizer: WeightQuantizer,
    inputs: Sequence[Tensor],
    wanted: Sequence[Tensor],
    bias: Tensor | None = None,
) -> bool:
    """Move ``weight``, in place, to those steps of ``quantizer`` that keep a layer's outputs best.

    Args:
        product: the layer's call: a linear layer or a convolution in two dimensions.
        inputs, wanted: what reaches the layer once everything before it is quantized, and what the float network
            computes there, in batches.
        bias: the layer's, where it stays; without one, what a bias makes up for does not count.

    Returns:
        Whether it did: not for layers of other kinds, and very wide ones.
    """
    groups, width = groups_of(product), weight[0].numel()
    if groups is None or width > WIDEST:
        return False
    known = _moments(product, weight, inputs, wanted, bias)
    float_weight = weight.detach().double().reshape(groups, -1, width)
    scale, limit = quantizer.scale.double().reshape(groups, -1), quantizer.limit
    trust = TRUST * known.inputs.diagonal(dim1=1, dim2=2).mean(1).clamp(min=1e-12)[:, None, None]
    curve = known.inputs + trust * torch.eye(width, dtype=torch.float64)
    aim = torch.linalg.solve(curve, known.outputs + trust * float_weight, left=False)

    def nearest(column: Tensor, index: int = 0) -> Tensor:
        return torch.clamp(torch.round(column / scale), -limit, limit) * scale

    found = sweep(aim, factor_of(curve), nearest)
    slope = (found - aim) @ curve
    for index in list(range(width)) * PASSES:
        better = nearest(found[:, :, index] - slope[:, :, index] / curve[:, index, index, None])
        moved = better - found[:, :, index]
        group, output = moved.nonzero(as_tuple=True)  # few outputs want another step
        slope[group, output] += moved[group, output, None] * curve[group, index]
        found[:, :, index] = better
    plain = torch.stack([nearest(column) for column in float_weight.unbind(2)], 2)
    costs = [((made - aim) @ curve * (made - aim)).sum(2, keepdim=True) for made in (found, plain)]
    found = torch.where(costs[0] <= costs[1], found, plain)
    weight.copy_(found.reshape(weight.shape).to(weight.dtype))
    return True


def _moments(
    product: fx.Node, weight: Tensor, inputs: Sequence[Tensor], wanted: Sequence[Tensor], bias: Tensor | None
) -> _Moments:
    """Over all batches; about the means where there is no ``bias`` that stays."""
    groups, width = groups_of(product) or 1, weight[0].numel()
    products = torch.zeros(groups, width, width, dtype=torch.float64)
    crossed = torch.zeros(groups, len(weight) // groups, width, dtype=torch.float64)
    sums = torch.zeros(groups, width, 1, dtype=torch.float64), torch.zeros(*crossed.shape[:2], 1, dtype=torch.float64)
    near: tuple[Tensor, Tensor] | None = None  # the means of the first part: float32 is exact enough around them
    count, images = 0, _enough(inputs, wanted, width)
    for values, outputs in parts_of(product, weight, inputs[::images], wanted[::images]):
        rows = rows_of(product, weight, values)
        given = _by_output(product, outputs, bias).reshape(groups, len(weight) // groups, -1)
        if bias is None:
            near = near or (rows.mean(2, keepdim=True), given.mean(2, keepdim=True))
            rows, given = rows - near[0], given - near[1]
        products += rows @ rows.transpose(1, 2)
        crossed += given @ rows.transpose(1, 2)
        for total, part in zip(sums, (rows, given), strict=True):
            total += part.sum(2, keepdim=True)
        count += rows.shape[2]
    if bias is None:
        products -= sums[0] @ sums[0].transpose(1, 2) / count
        crossed -= sums[1] @ sums[0].transpose(1, 2) / count
    return _Moments(products / count, crossed / count)


def _enough(inputs: Sequence[Tensor], wanted: Sequence[Tensor], width: int) -> int:
    """Of how many batches one is enough: large images have more outputs than their few channels need."""
    outputs = sum(part.numel() // part.shape[1] for part in wanted)
    return max(1, min(len(inputs) // FEWEST, outputs // (OUTPUTS * width)))


def _by_output(product: fx.Node, outputs: Tensor, bias: Tensor | None) -> Tensor:
    """A layer's answers ``[outputs, …]``, without its bias."""
    linear = is_call(product, aten.linear.default)
    found = outputs.reshape(-1, outputs.shape[-1]).T if linear else outputs.transpose(0, 1).flatten(1)
    return found if bias is None else found - bias[:, None]

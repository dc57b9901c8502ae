"""Weights rounded one input after another, each error made up for by the inputs still to come.

As GPTQ does it (Frantar et al., 2022, arXiv:2210.17323), with any grid or palette.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import functional

from edgecv.compression.capture import is_call

__all__ = ["LARGEST", "factor_of", "groups_of", "parts_of", "round_with_feedback", "rows_of", "second_moments", "sweep"]

aten = torch.ops.aten
DAMPING = 0.01  # of the mean second moment, added to each: what calibration has not seen must not blow up
LARGEST = 8192  # inputs of a layer: its second moments have the square of that
BLOCK = 64  # columns whose errors reach those behind them in one product
UNFOLDED = 1 << 21  # values at a time: more are given back to the system and taken again each time


def second_moments(product: fx.Node, weight: Tensor, inputs: Sequence[Tensor]) -> Tensor | None:
    """The mean products ``[inputs, inputs]`` of what a filter's weights are multiplied with; float64.

    ``None`` for what has none of this kind: convolutions in groups or in other than two dimensions, and very wide ones.
    """
    width = weight[0].numel()
    if width > LARGEST or groups_of(product) != 1:
        return None
    total, count = torch.zeros(width, width, dtype=torch.float64), 0
    for (part,) in parts_of(product, weight, inputs):
        rows = rows_of(product, weight, part)[0].double()
        total += rows @ rows.T
        count += rows.shape[1]
    return total / max(1, count)


def round_with_feedback(weight: Tensor, kept: Tensor, moments: Tensor, rounded: Callable[[Tensor], Tensor]) -> Tensor:
    """``weight`` with every value ``rounded``, or 0 where it is not ``kept``, and a layer's output changed little.

    Args:
        moments: of the inputs, see ``second_moments``.
        rounded: from a column, the weights that one input has, to what they become.
    """
    left = weight.reshape(1, len(weight), -1).double()
    stays = kept.reshape(left.shape)
    damped = moments + torch.diag(DAMPING * moments.diagonal().mean().clamp(min=1e-12).expand(len(moments)))

    def chosen(column: Tensor, index: int) -> Tensor:
        return torch.where(stays[:, :, index], rounded(column[0])[None], 0.0)

    return sweep(left, factor_of(damped[None]), chosen).reshape(weight.shape).to(weight.dtype)


def factor_of(moments: Tensor) -> Tensor:
    """What ``sweep`` hands errors on by: the upper Cholesky factor of each inverse, of ``[groups, inputs, inputs]``."""
    factor: Tensor = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(moments)), upper=True)
    return factor


def sweep(weight: Tensor, factor: Tensor, chosen: Callable[[Tensor, int], Tensor]) -> Tensor:
    """``weight`` ``[groups, outputs, inputs]``, each column ``chosen`` after the errors before it are made up for."""
    left, done = weight.clone(), torch.zeros_like(weight)
    for start in range(0, weight.shape[2], BLOCK):
        near, end = left[:, :, start : start + BLOCK], min(start + BLOCK, weight.shape[2])
        errors = torch.zeros_like(near)
        for place, index in enumerate(range(start, end)):
            done[:, :, index] = chosen(near[:, :, place], index)
            error = (near[:, :, place] - done[:, :, index]) / factor[:, index, index, None]
            near[:, :, place + 1 :] -= error[:, :, None] * factor[:, None, index, index + 1 : end]
            errors[:, :, place] = error
        left[:, :, end:] -= errors @ factor[:, start:end, end:]
    return done


def groups_of(product: fx.Node) -> int | None:
    """In how many groups a layer multiplies; ``None`` for one that ``rows_of`` cannot take apart."""
    if is_call(product, aten.linear.default):
        return 1
    if not is_call(product, aten.conv2d.default):
        return None
    return int(product.args[6]) if len(product.args) > 6 else 1  # type: ignore[arg-type]


def parts_of(
    product: fx.Node, weight: Tensor, inputs: Sequence[Tensor], *others: Sequence[Tensor]
) -> Iterator[tuple[Tensor, ...]]:
    """Batches of a layer's ``inputs`` that are small enough to be unfolded, with the same images of ``others``."""
    taps = 1 if is_call(product, aten.linear.default) else weight[0, 0].numel()
    for batches in zip(inputs, *others, strict=True):
        images = max(1, UNFOLDED // max(1, batches[0][0].numel() * taps))
        yield from zip(*(torch.split(batch, images) for batch in batches), strict=True)


def rows_of(product: fx.Node, weight: Tensor, values: Tensor) -> Tensor:
    """What each output is the product of: ``[groups, inputs, outputs]``."""
    if is_call(product, aten.linear.default):
        return values.reshape(1, -1, values.shape[-1]).transpose(1, 2)
    groups = groups_of(product) or 1
    stride, padding, dilation = (_argument(product, place, usual) for place, usual in ((3, 1), (4, 0), (5, 1)))
    if weight.shape[2:] == (1, 1) and padding == (0, 0):
        seen = values[:, :, :: stride[0], :: stride[1]].transpose(0, 1)
        return seen.reshape(groups, seen.shape[0] // groups, -1)
    columns = functional.unfold(values, weight.shape[2:], dilation=dilation, padding=padding, stride=stride)
    return columns.transpose(0, 1).reshape(groups, columns.shape[1] // groups, -1)


def _argument(product: fx.Node, place: int, usual: int) -> tuple[int, int]:
    """A convolution's setting in both dimensions."""
    found: Any = product.args[place] if len(product.args) > place else usual
    numbers = [found] if isinstance(found, int) else list(found)
    return numbers[0], numbers[-1]

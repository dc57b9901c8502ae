"""Weights rounded one input after another, each error made up for by the inputs still to come.

As GPTQ does it (Frantar et al., 2022, arXiv:2210.17323), with a palette in place of its grid.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import functional

from edgecv.compression.capture import is_call

__all__ = ["round_with_feedback", "second_moments"]

aten = torch.ops.aten
DAMPING = 0.01  # of the mean second moment, added to each: what calibration has not seen must not blow up
LARGEST = 8192  # inputs of a layer: its second moments have the square of that
IMAGES = 4  # unfolded at a time


def second_moments(product: fx.Node, weight: Tensor, inputs: Sequence[Tensor]) -> Tensor | None:
    """The mean products ``[inputs, inputs]`` of what a filter's weights are multiplied with; float64.

    ``None`` for what has none of this kind: convolutions in groups or in other than two dimensions, and very wide ones.
    """
    width = weight[0].numel()
    if width > LARGEST or not (is_call(product, aten.linear.default) or _is_plain(product)):
        return None
    total = torch.zeros(width, width, dtype=torch.float64)
    count = 0
    for batch in inputs:
        for part in torch.split(batch, IMAGES):
            rows = _rows(product, weight, part).double()
            total += rows.T @ rows
            count += len(rows)
    return total / max(1, count)


def round_with_feedback(weight: Tensor, kept: Tensor, moments: Tensor, rounded: Callable[[Tensor], Tensor]) -> Tensor:
    """``weight`` with every value ``rounded``, or 0 where it is not ``kept``, and a layer's output changed little.

    Args:
        moments: of the inputs, see ``second_moments``.
        rounded: from a column, the weights that one input has, to what they become.
    """
    left = weight.reshape(len(weight), -1).double()
    stays = kept.reshape(left.shape)
    damped = moments + torch.diag(DAMPING * moments.diagonal().mean().clamp(min=1e-12).expand(len(moments)))
    factor = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(damped)), upper=True)
    done = torch.zeros_like(left)
    for index in range(left.shape[1]):
        column = left[:, index]
        done[:, index] = torch.where(stays[:, index], rounded(column), 0.0)
        error = (column - done[:, index]) / factor[index, index]
        left[:, index + 1 :] -= torch.outer(error, factor[index, index + 1 :])
    return done.reshape(weight.shape).to(weight.dtype)


def _is_plain(product: fx.Node) -> bool:
    groups = product.args[6] if len(product.args) > 6 else 1
    return is_call(product, aten.conv2d.default) and bool(groups == 1)


def _rows(product: fx.Node, weight: Tensor, values: Tensor) -> Tensor:
    """What each output is the product of: ``[outputs, inputs]``."""
    if is_call(product, aten.linear.default):
        return values.reshape(-1, values.shape[-1])
    stride, padding, dilation = (_argument(product, place, usual) for place, usual in ((3, 1), (4, 0), (5, 1)))
    columns = functional.unfold(values, weight.shape[2:], dilation=dilation, padding=padding, stride=stride)
    return columns.transpose(1, 2).flatten(0, 1)


def _argument(product: fx.Node, place: int, usual: int) -> tuple[int, int]:
    """A convolution's setting in both dimensions."""
    found: Any = product.args[place] if len(product.args) > place else usual
    numbers = [found] if isinstance(found, int) else list(found)
    return numbers[0], numbers[-1]

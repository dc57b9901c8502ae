"""AdaRound: weights rounded up or down by what it does to a layer's output (Nagel et al., 2020, arXiv:2004.10568)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, fx

from edgecv.compression.quantizers import WeightQuantizer

__all__ = ["round_adaptively"]

STRETCH = (-0.1, 1.1)  # a sigmoid reaches 0 and 1 once it is stretched and clipped
WEIGHT = 10.0  # of the term that drives every choice to 0 or 1, in errors of rounding to the nearest
EXPONENTS = (20.0, 2.0)  # of that term: choices are free at first, then are forced
FREE_SHARE = 0.2  # of the steps, without that term
TRAVEL = 10.0  # that a choice may change in all steps together: from one end of the sigmoid to the other and back
IMAGES, OUTPUTS = 4, 1 << 20  # a step looks at so many images, or at fewer whose outputs are large


def round_adaptively(
    product: fx.Node,
    weight: Tensor,
    quantizer: WeightQuantizer,
    bias: Tensor,
    inputs: Sequence[Tensor],
    wanted: Sequence[Tensor],
    *,
    steps: int,
    seed: int,
) -> None:
    """Move each of ``weight``, in place, to the neighbouring step of ``quantizer`` that keeps the layer's output best.

    Args:
        product: the layer's call; its other arguments are used as they are.
        inputs, wanted: what reaches the layer once everything before it is quantized, and what the float network
            computes there, in batches.
    """
    generator = torch.Generator().manual_seed(seed)
    scale = quantizer.scale.view(-1, *[1] * (weight.ndim - 1))
    lower = torch.floor(weight / scale)
    rest = (weight / scale - lower).clamp(0.01, 0.99)
    choice = torch.logit((rest - STRETCH[0]) / (STRETCH[1] - STRETCH[0])).requires_grad_()
    nearest = product.target(inputs[0], quantizer(weight), bias, *product.args[3:])  # type: ignore[operator]
    unit = ((nearest - wanted[0]) ** 2).mean().clamp(min=1e-12)
    images = max(1, min(IMAGES, OUTPUTS * len(wanted[0]) // wanted[0].numel()))
    optimizer = torch.optim.Adam([choice], lr=max(1e-2, TRAVEL / steps))
    for step in range(steps):
        picked = int(torch.randint(len(inputs), (), generator=generator))
        start = int(torch.randint(max(1, len(inputs[picked]) - images + 1), (), generator=generator))
        part = slice(start, start + images)
        with torch.enable_grad():
            up = _stretched(choice)
            soft = torch.clamp(lower + up, -quantizer.limit, quantizer.limit) * scale
            got = product.target(inputs[picked][part], soft, bias, *product.args[3:])  # type: ignore[operator]
            loss = ((got - wanted[picked][part]) ** 2).mean() / unit + WEIGHT * _undecided(up, step / steps)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    rounded = torch.clamp(lower + (_stretched(choice.detach()) >= 0.5), -quantizer.limit, quantizer.limit)
    weight.copy_(rounded * scale)


def _stretched(choice: Tensor) -> Tensor:
    return torch.clamp(torch.sigmoid(choice) * (STRETCH[1] - STRETCH[0]) + STRETCH[0], 0, 1)


def _undecided(up: Tensor, share: float) -> Tensor:
    """How far the choices are from 0 and 1, on average."""
    if share < FREE_SHARE:
        return torch.zeros(())
    forced = (share - FREE_SHARE) / (1 - FREE_SHARE)
    exponent = EXPONENTS[1] + (EXPONENTS[0] - EXPONENTS[1]) * (1 - forced)
    return (1 - (2 * up - 1).abs() ** exponent).mean()

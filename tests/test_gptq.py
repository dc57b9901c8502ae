"""Rounding by what it does to a layer's output: on the grid, and no worse there than the nearest."""

from __future__ import annotations

import pytest

from tests.conftest import require

require("torch")

import torch  # noqa: E402  (after the check that it is there)
from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from torch import Tensor, fx, nn  # noqa: E402

from edgecv.compression.capture import PRODUCTS, capture, is_call, parameter  # noqa: E402
from edgecv.compression.feedback import factor_of, rows_of, sweep  # noqa: E402
from edgecv.compression.gptq import TRUST, round_to_outputs  # noqa: E402
from edgecv.compression.quantizers import WeightQuantizer  # noqa: E402

LAYERS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "linear": (nn.Linear(6, 4), (6,)),
    "1x1": (nn.Conv2d(6, 4, 1, stride=2), (6, 7, 8)),
    "3x3": (nn.Conv2d(3, 4, 3, stride=2, padding=1), (3, 7, 8)),
    "dilated": (nn.Conv2d(3, 4, 3, dilation=2), (3, 9, 8)),
    "groups": (nn.Conv2d(6, 4, 3, padding=1, groups=2), (6, 7, 8)),
    "depthwise": (nn.Conv2d(6, 6, 3, padding=1, groups=6), (6, 7, 8)),
}


def _call(layer: nn.Module, shape: tuple[int, ...]) -> tuple[fx.Node, Tensor, Tensor]:
    """The product of a captured layer, its weight and its bias."""
    graph = capture(nn.Sequential(layer), [shape])
    (product,) = (node for node in graph.graph.nodes if is_call(node, *PRODUCTS))
    weight, bias = (parameter(graph, product.args[place]) for place in (1, 2))
    assert weight is not None
    assert bias is not None
    return product, weight, bias


def _quantizer(weight: Tensor, bits: int = 3) -> WeightQuantizer:
    quantizer = WeightQuantizer(len(weight), bits)
    quantizer.set_scale(weight.flatten(1).abs().amax(1) / quantizer.limit)
    return quantizer


def _images(shape: tuple[int, ...], seed: int) -> list[Tensor]:
    """Two batches whose values are correlated, as those of real images, and far from zero on average."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(10, *shape, generator=generator) + 3 * torch.randn(10, *[1] * len(shape), generator=generator)
    return list(torch.split(images + 2, 6))


def _error(product: fx.Node, found: Tensor, weight: Tensor, images: list[Tensor]) -> float:
    """What is left of the output's error once its mean is corrected, with the pull towards the float weights."""
    rest = product.args[3:]
    outputs = [
        product.target(part, found - weight, torch.zeros(len(weight)), *rest)  # type: ignore[operator]
        for part in images
    ]
    channels = torch.cat([part.reshape(-1, part.shape[-1]).T if part.ndim == 2 else part.transpose(0, 1).flatten(1)
                          for part in outputs], 1)  # fmt: skip
    return float(channels.var(1, correction=0).sum())


def _variance(product: fx.Node, weight: Tensor, images: list[Tensor]) -> Tensor:
    """Of what each filter's weights are multiplied with, on average."""
    rows = torch.cat([rows_of(product, weight, part) for part in images], 2)
    each = rows.var(2, correction=0).mean(1)
    return each.repeat_interleave(len(weight) // len(each))


@pytest.mark.parametrize("kind", list(LAYERS))
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 1000))
@torch.no_grad()
def test_weights_are_on_the_grid_and_keep_the_output_better(kind: str, seed: int) -> None:
    torch.manual_seed(seed)
    layer, shape = LAYERS[kind]
    layer.reset_parameters()  # type: ignore[operator]
    product, weight, bias = _call(layer, shape)
    quantizer, images = _quantizer(weight), _images(shape, seed)
    wanted = [product.target(part, weight, bias, *product.args[3:]) for part in images]  # type: ignore[operator]
    rounded, nearest = weight.clone(), quantizer(weight)
    assert round_to_outputs(product, rounded, quantizer, images, wanted)
    assert torch.allclose(quantizer(rounded), rounded, atol=1e-6)
    pull = TRUST * _variance(product, weight, images)
    errors = [_error(product, found, weight, images) + float((pull * (found - weight).flatten(1).square().sum(1)).sum())
              for found in (rounded, nearest)]  # fmt: skip
    assert errors[0] <= 1.001 * errors[1] + 1e-6


@torch.no_grad()
def test_what_a_layer_before_lost_is_made_up_for() -> None:
    product, weight, bias = _call(nn.Linear(2, 1), (2,))
    weight.copy_(torch.tensor([[1.0, 1.0]]))
    quantizer = WeightQuantizer(1, 8)
    quantizer.set_scale(torch.tensor([0.01]))
    seen = torch.randn(400, 1, generator=torch.Generator().manual_seed(0)).repeat(1, 2)
    wanted = [nn.functional.linear(2 * seen, weight, bias)]  # both inputs arrive at half of what they were
    assert round_to_outputs(product, weight, quantizer, [seen], wanted)
    assert (weight > 1.1).all()


def test_layers_of_other_kinds_are_left_alone() -> None:
    product, weight, _ = _call(nn.Conv1d(3, 4, 3), (3, 9))
    before = weight.clone()
    assert not round_to_outputs(product, weight, _quantizer(weight), [torch.rand(2, 3, 9)], [torch.rand(2, 4, 7)])
    assert torch.equal(weight, before)


@pytest.mark.parametrize("width", [1, 64, 65, 150])
def test_errors_reach_every_column_behind_them_across_blocks(width: int) -> None:
    random = torch.Generator().manual_seed(width)
    weight = torch.randn(2, 3, width, generator=random, dtype=torch.float64)
    rows = torch.randn(2, width, 2 * width, generator=random, dtype=torch.float64)
    factor = factor_of(rows @ rows.transpose(1, 2) + torch.eye(width, dtype=torch.float64))
    left, wanted = weight.clone(), torch.zeros_like(weight)
    for index in range(width):
        wanted[:, :, index] = left[:, :, index].round()
        error = (left[:, :, index] - wanted[:, :, index]) / factor[:, index, index, None]
        left[:, :, index:] -= error[:, :, None] * factor[:, None, index, index:]
    assert torch.equal(sweep(weight, factor, lambda column, index: column.round()), wanted)

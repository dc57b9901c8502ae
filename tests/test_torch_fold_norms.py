"""Batch norms folded before an export: the same answers, and only where a Sequential runs the two in a row."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from tests.conftest import require

require("torch")

import torch  # noqa: E402  (after the check that it is there)
from torch import Tensor, nn  # noqa: E402

from edgecv import models  # noqa: E402
from edgecv.converters.torch_fold_norms import fold_norms, leave_in_place  # noqa: E402


class Standardized(nn.Conv2d):
    def forward(self, image: Tensor) -> Tensor:
        out: Tensor = self._conv_forward(image, self.weight / self.weight.std(), self.bias)
        return out


class Doubled(nn.Sequential):
    def forward(self, image: Tensor) -> Tensor:
        once: Tensor = nn.Sequential.forward(self, image)  # type: ignore[no-untyped-call]  # torch's own
        twice: Tensor = once + self[0](image)
        return twice


def _norms(network: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in network.modules())


def _settled(network: nn.Module) -> nn.Module:
    """In eval mode, with statistics and weights of its norms that are not the first ones."""
    generator = torch.Generator().manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None and module.running_var is not None:
            module.running_mean.normal_(generator=generator)
            module.running_var.uniform_(0.5, 2.0, generator=generator)
            nn.init.uniform_(module.weight, 0.5, 1.5, generator=generator)
    return network.eval()


@pytest.mark.parametrize(("name", "options"), [("mobilenet_v2", {}), ("mobilenet_v3_small", {"padding": "same_tf"})])
def test_every_norm_of_a_mobilenet_is_folded(name: str, options: dict[str, Any]) -> None:
    network = _settled(models.create(name, num_classes=10, width=0.25 if name == "mobilenet_v2" else 1.0, **options))
    image = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        before = network(image)
        fold_norms(network)
        leave_in_place(network)
        assert _norms(network) == 0
        assert torch.allclose(network(image), before, atol=1e-3 * float(before.abs().max()))


def _shared() -> nn.Module:
    convolution = nn.Conv2d(3, 3, 1)
    return nn.Sequential(convolution, nn.BatchNorm2d(3), convolution, nn.BatchNorm2d(3))


def _tied() -> nn.Module:
    network = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1))
    network[2].weight = network[0].weight
    return network


def _watched() -> nn.Module:
    network = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))
    network[0].register_forward_hook(lambda module, inputs, output: output * 2)
    return network


@pytest.mark.parametrize(
    "network",
    [
        _shared(),
        _tied(),
        _watched(),
        Doubled(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)),
        nn.Sequential(Standardized(3, 3, 1), nn.BatchNorm2d(3)),
        nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU(), nn.BatchNorm2d(3)),
        nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3, track_running_stats=False)),
    ],
    ids=[
        "shared",
        "tied weights",
        "a hook",
        "another forward",
        "another convolution",
        "not behind it",
        "no statistics",
    ],
)
def test_anything_else_keeps_its_norms(network: nn.Module) -> None:
    network = _settled(copy.deepcopy(network))
    image = torch.rand(2, 3, 8, 8)
    before, norms = network(image), _norms(network)
    fold_norms(network)
    assert _norms(network) == norms
    assert torch.equal(network(image), before)


def test_activations_leave_their_input_alone() -> None:
    network = nn.Sequential(nn.ReLU(inplace=True), nn.Hardswish(inplace=True))
    leave_in_place(network)
    image = torch.full((1,), -1.0)
    network(image)
    assert image.item() == -1.0

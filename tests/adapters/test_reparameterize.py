"""timm's networks with branches that serve training alone: folded, and exported without them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import require

require("torch")

import torch  # noqa: E402  (after the check that it is there)
from torch import nn  # noqa: E402

import edgecv  # noqa: E402
from edgecv import OnnxOptions, Preprocess, models  # noqa: E402
from edgecv.models.reparameterize import reparameterize  # noqa: E402

FOLDING = (
    "efficientvim_m1",
    "fastvit_t8",
    "ghostnetv3_050",
    "lcnetv2_base",
    "mobileone_s0",
    "repvgg_a0",
    "repvit_m0_9",
)


def _images(size: int) -> torch.Tensor:
    return torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(0))


def _settled(name: str, images: torch.Tensor) -> nn.Module:
    """A network whose batch norms hold the statistics of ``images``, so that its answers are neither tiny nor huge."""
    torch.manual_seed(0)
    network = models.create(name, num_classes=5).train()
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = 1.0
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.3, 0.3)
    with torch.no_grad():
        network(images)
    return network.eval()


def _layers(network: nn.Module) -> int:
    return sum(isinstance(module, (nn.Conv2d, nn.BatchNorm2d)) for module in network.modules())


@pytest.mark.parametrize("name", FOLDING)
def test_folded_branches_answer_as_before(timm: Any, name: str) -> None:
    size = 256 if name == "fastvit_t8" else 224
    images = _images(size)
    network = _settled(f"timm:{name}", images)
    layers = _layers(network)
    with torch.no_grad():
        wanted = network(images)
        assert wanted.std(dim=0).max() > 0.01
        for _ in range(2):  # a network that its user folded before is exported too
            reparameterize(network)
            assert (network(images) - wanted).abs().max() <= 1e-4 * max(1.0, float(wanted.abs().max()))
    assert _layers(network) < 0.8 * layers


def test_mobileone_is_exported_without_its_branches(timm: Any, tmp_path: Path) -> None:
    for library in ("onnx", "onnxruntime"):
        require(library)
    from onnx import load

    from edgecv.converters.onnx_from_torch import onnx_from_torch

    network = _settled("timm:mobileone_s0", _images(64))
    branches = sum(isinstance(module, nn.Conv2d) for module in network.modules())
    blocks = sum(hasattr(module, "reparameterize") for module in network.modules())
    assert branches > 2 * blocks
    macs = models.count(network, (64, 64)).macs
    path = onnx_from_torch(network, tmp_path / "a.onnx", Preprocess((64, 64)), options=OnnxOptions(batch=4))
    assert [node.op_type for node in load(str(path)).graph.node].count("Conv") == blocks
    frames = np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3)).astype(np.uint8)
    with edgecv.open_session(path, backend="onnxruntime", threads=1) as session, torch.no_grad():
        got = session.run({"image": frames})["logits"]
        wanted = network(torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 255).numpy()
    assert wanted.std(axis=0).max() > 0.01
    assert np.abs(got - wanted).max() <= 1e-4
    assert models.count(network, (64, 64)).macs == macs  # the network itself keeps its branches

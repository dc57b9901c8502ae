"""Bits by what saturation does: 7 where eight would be cut off on the frames at hand, 8 elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import require

for _library in ("torch", "onnx", "onnxruntime", "sklearn"):
    require(_library)

import onnx  # noqa: E402  (after the check that it is there)
import torch  # noqa: E402
from torch import nn  # noqa: E402

import edgecv  # noqa: E402
from edgecv import Preprocess, QuantizeConfig, models  # noqa: E402
from edgecv.cli.main import main  # noqa: E402
from edgecv.compression.placement import quantized_layers  # noqa: E402
from edgecv.converters.onnx_from_torch import onnx_from_torch  # noqa: E402
from edgecv.converters.saturation_bits import bits_without_saturation, layers_of_nodes  # noqa: E402

PREPROCESS = Preprocess(size=(8, 8), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
BRIGHT = [np.full((8, 8, 3), 255, np.uint8), np.full((8, 8, 3), 250, np.uint8)]


class Two(nn.Module):
    """One layer whose large weights meet in pairs, and one whose pairs are small."""

    def __init__(self) -> None:
        super().__init__()
        self.risky, self.safe = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)
        with torch.no_grad():
            self.risky.weight.fill_(1.0)
            self.safe.weight.copy_(torch.eye(4).view(4, 4, 1, 1))

    def forward(self, images: torch.Tensor) -> Any:
        return torch.relu(self.safe(torch.relu(self.risky(images)))).mean((2, 3))


def _quantized(frames: list[Any]) -> nn.Module:
    config = QuantizeConfig(weight_bits=8, rounding="nearest", activation_range="minmax")
    return edgecv.quantize(Two().eval(), frames, config, preprocess=PREPROCESS)


def test_layers_that_are_cut_off_have_seven_bits() -> None:
    assert bits_without_saturation(_quantized(BRIGHT), BRIGHT, PREPROCESS) == {"risky": 7}


def test_what_is_never_reached_keeps_eight() -> None:
    dark = [np.full((8, 8, 3), level, np.uint8) for level in (20, 40, 60)]
    assert bits_without_saturation(_quantized(BRIGHT), dark, PREPROCESS) == {}


def test_nodes_are_known_by_their_layers(tmp_path: Path) -> None:
    model = onnx.load(str(onnx_from_torch(_quantized(BRIGHT), tmp_path / "model.onnx", PREPROCESS)))
    assert sorted(layers_of_nodes(model).values()) == ["risky", "safe"]


def test_the_command_chooses_bits_and_a_layer_named_float_stays_so(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = models.create("squeezenet1_1", num_classes=10, stem="small").eval()
    preprocess = Preprocess(size=(16, 16), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    edgecv.save_checkpoint(network, tmp_path / "net.safetensors", preprocess=preprocess)
    given = ["--samples", "digits", "--limit", "6", "--rounding", "nearest", "--weight-bits", "auto"]
    given += ["--keep-float", "features.0", "--out", str(tmp_path / "int8.safetensors")]
    assert main(["quantize", str(tmp_path / "net.safetensors"), *given]) == 0
    bits = quantized_layers(edgecv.load_checkpoint(tmp_path / "int8.safetensors"))
    assert "features.0" not in bits
    assert 8 in bits.values()


@pytest.mark.parametrize("bits", ["6", "seven"])
def test_other_bits_are_wrong_usage(bits: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["quantize", "x.safetensors", "--samples", "digits", "--weight-bits", bits, "--out", "y"]) == 2
    assert "--weight-bits" in capsys.readouterr().err

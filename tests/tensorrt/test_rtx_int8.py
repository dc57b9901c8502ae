"""Quantized networks through TensorRT-RTX's own parser and builder: accepted, and built as int8."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import require

for _library in ("tensorrt_rtx", "torch", "onnx"):
    require(_library)

import torch  # noqa: E402  (after the check that it is there)

import edgecv  # noqa: E402
from edgecv import ConvertOptions, Preprocess, models  # noqa: E402

PREPROCESS = Preprocess(size=(32, 32), mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3))


@pytest.mark.parametrize("name", ["squeezenet1_1", "resnet18"])
def test_the_layout_for_tensorrt_builds_as_int8(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = models.create(name, num_classes=4, stem="small").eval()
    frames = [np.random.default_rng(i).integers(0, 256, (32, 32, 3)).astype(np.uint8) for i in range(4)]
    quantized = edgecv.quantize(network, frames, edgecv.QuantizeConfig(rounding="nearest"), preprocess=PREPROCESS)
    options = ConvertOptions(parity=False)
    bundle = edgecv.convert(
        quantized, tmp_path / "bundle", preprocess=PREPROCESS, backends=["tensorrt_rtx"], options=options
    )
    record = json.loads(bundle.file("tensorrt_rtx-int8").with_suffix(".engine.json").read_text())
    assert record["precision"] == "int8"
    assert record["layers"]["int8"] > 10

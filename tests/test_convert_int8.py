"""Bundles of quantized networks: layouts, the float twin beside them, and which one a backend picks."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgecv.errors import InputError
from tests.conftest import require

for _library in ("torch", "onnx", "onnxruntime", "openvino"):
    require(_library)

import onnx  # noqa: E402  (after the check that it is there)
import torch  # noqa: E402
from torch import nn  # noqa: E402

import edgecv  # noqa: E402
from edgecv import Bundle, ConvertOptions, Preprocess, models  # noqa: E402
from edgecv.converters.speed import speed_ratio  # noqa: E402
from edgecv.runtimes.opening import choose  # noqa: E402
from edgecv.tensors import Array  # noqa: E402
from tests.doubles import NumpySession, brightness  # noqa: E402

PREPROCESS = Preprocess(size=(32, 32), mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3))
SAMPLES = [
    np.random.default_rng(i).integers(0, 256, (8, 8, 3)).repeat(5, 0).repeat(5, 1).astype(np.uint8) for i in range(12)
]


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    return models.create("squeezenet1_1", num_classes=4, stem="small").eval()


@pytest.fixture(scope="module")
def quantized(network: nn.Module) -> nn.Module:
    return edgecv.quantize(network, SAMPLES, preprocess=PREPROCESS)


@pytest.fixture(scope="module")
def both(network: nn.Module, quantized: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """One bundle that the tests look at."""
    out = tmp_path_factory.mktemp("int8") / "bundle"
    return edgecv.convert(network, out, preprocess=PREPROCESS, samples=SAMPLES, quantized=quantized)


def test_a_bundle_holds_a_network_and_its_quantized_twin(both: Bundle) -> None:
    assert list(both.manifest.variants) == ["onnx-int8", "openvino-int8", "onnx-fp32", "openvino-fp32"]
    assert all(variant.parity is not None for variant in both.manifest.variants.values())
    for name, suffix in (("onnx", ".onnx"), ("openvino", ".bin")):
        small, large = (both.file(f"{name}-{kind}").with_suffix(suffix).stat().st_size for kind in ("int8", "fp32"))
        assert small < 0.4 * large


def test_the_layout_is_the_one_that_cpus_fuse(both: Bundle) -> None:
    model = onnx.load(str(both.file("onnx-int8")))
    held = {item.name: item.data_type for item in model.graph.initializer}
    zero_points = {held[node.input[2]] for node in model.graph.node if node.op_type == "QuantizeLinear"}
    assert zero_points == {onnx.TensorProto.UINT8}
    assert "Relu" not in [node.op_type for node in model.graph.node]


def test_a_quantized_network_alone_becomes_int8(quantized: nn.Module, tmp_path: Path) -> None:
    bundle = edgecv.convert(
        quantized, tmp_path / "bundle", preprocess=PREPROCESS, samples=SAMPLES, backends=["onnxruntime"]
    )
    assert list(bundle.manifest.variants) == ["onnx-int8"]
    steps = bundle.manifest.source.recipe["steps"] if bundle.manifest.source.recipe else []
    assert [step["kind"] for step in steps] == ["quantize"]
    with edgecv.open_session(bundle) as session:
        assert session.run({"image": np.zeros((2, 32, 32, 3), np.uint8)})["logits"].shape == (2, 4)


@pytest.mark.parametrize(
    ("settings", "telling"),
    [
        ({"precisions": ("int8",)}, "int8 takes a quantized network"),
        ({"precisions": ("fp32",), "network": "quantized"}, "the network is quantized, fp32 was asked for"),
        ({"quantized": "network"}, "takes what edgecv.quantize made"),
        ({"quantized": "quantized", "network": "quantized"}, "beside the network itself"),
    ],
)
def test_what_does_not_fit_is_refused(settings: dict[str, Any], telling: str, tmp_path: Path, request: Any) -> None:
    options = ConvertOptions(precisions=settings.pop("precisions", ()))
    given = {key: request.getfixturevalue(name) for key, name in {"network": "network", **settings}.items()}
    source = given.pop("network")
    with pytest.raises(InputError, match=telling):
        edgecv.convert(source, tmp_path / "x", preprocess=PREPROCESS, samples=SAMPLES, options=options, **given)
    assert not (tmp_path / "x").exists()


def test_a_variant_that_was_no_faster_is_not_picked_by_itself(both: Bundle) -> None:
    variants = {
        name: dataclasses.replace(item, slower_than="onnx-fp32" if name == "onnx-int8" else None)
        for name, item in both.manifest.variants.items()
    }
    bundle = dataclasses.replace(both, manifest=dataclasses.replace(both.manifest, variants=variants))
    assert choose(bundle, "onnxruntime").variant == "onnx-fp32"
    assert choose(bundle).variant == "onnx-fp32"
    assert choose(bundle, "openvino").variant == "openvino-int8"
    assert choose(bundle, "onnxruntime", "onnx-int8").variant == "onnx-int8"


def test_speeds_are_compared_in_turns() -> None:
    now = [0.0]

    def taking(seconds: float) -> NumpySession:
        def wait(image: Array) -> Array:
            now[0] += seconds if now[0] else 50 * seconds  # the first run is slow and is outvoted
            return brightness(image)

        return NumpySession(wait)

    inputs = {"image": np.zeros((1, 4, 4, 3), np.uint8)}
    assert speed_ratio(taking(0.004), taking(0.001), inputs, clock=lambda: now[0]) == pytest.approx(4)

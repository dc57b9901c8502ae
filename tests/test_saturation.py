"""Saturation of u8 x s8 pairs: which weights allow it, and the very bytes that ONNX Runtime gives without VNNI."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import edgecv
import edgecv.cpu
from edgecv.cpu import SATURATES, read_cpu
from edgecv.errors import InputError
from edgecv.tensors import Array
from tests.conftest import require

for _library in ("onnx", "onnxruntime"):
    require(_library)

import onnx  # noqa: E402  (after the check that it is there)
import onnx.numpy_helper  # noqa: E402
import onnx.parser  # noqa: E402
import onnxruntime  # noqa: E402

from edgecv.converters.saturation import mark_saturation, saturating_layers, simulate  # noqa: E402

CONV = """g (float[n, %d, h, w] x) => (float[n, %d, h, w] y) {
    q = QuantizeLinear(x, sx, zx) d = DequantizeLinear(q, sx, zx) k = DequantizeLinear<axis=0>(w, sw, zw)
    [conv] c = Conv<%s>(d, k, b) o = QuantizeLinear(c, sy, zy) y = DequantizeLinear(o, sy, zy) }"""
PRODUCT = """g (float[n, %d] x) => (float[n, %d] y) {
    q = QuantizeLinear(x, sx, zx) d = DequantizeLinear(q, sx, zx) k = DequantizeLinear<axis=%d>(w, sw, zw)
    [product] c = %s o = QuantizeLinear(c, sy, zy) y = DequantizeLinear(o, sy, zy) }"""
SX, SW = np.float32(0.02), 0.01


def _model(text: str, **constants: Any) -> Any:
    model = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["": 18]> {text}')
    model.graph.initializer.extend(onnx.numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items())
    return model


def _numbers(weights: Array, outputs: int, point: int, axis: int = 0) -> dict[str, Any]:
    """The constants of a layer whose output fills its range."""
    rng = np.random.default_rng(1)
    step = np.float32(SX * SW * 150 * np.sqrt(weights.size / outputs))
    scales = rng.uniform(0.5, 1.5, outputs).astype(np.float32) * np.float32(SW)
    return {
        "sx": SX, "zx": np.uint8(point), "w": weights, "sw": scales, "zw": np.zeros(outputs, np.int8), "sy": step,
        "zy": np.uint8(128), "b": rng.integers(-3000, 3000, outputs).astype(np.float32) * (SX * scales),
    }  # fmt: skip


def _conv(shape: tuple[int, ...], group: int = 1, extra: str = "", point: int = 3, limit: int = 127) -> Any:
    weights = np.random.default_rng(0).integers(-limit, limit + 1, shape).astype(np.int8)
    kernel = ", ".join(map(str, shape[2:]))
    attributes = f"kernel_shape=[{kernel}], group={group}{extra}"
    return _model(CONV % (shape[1] * group, shape[0], attributes), **_numbers(weights, shape[0], point))


def _frames(channels: int, *sizes: int, batch: int = 5) -> Array:
    """Half of the values are at the end of the range, where sums are large."""
    rng = np.random.default_rng(2)
    values = np.where(rng.random((batch, channels, *sizes)) < 0.5, 255, rng.integers(0, 256, (batch, channels, *sizes)))
    return ((values - 3) * SX).astype(np.float32)


def _session(model: Any, level: str) -> Any:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _exact(model: Any, x: Array) -> Array:
    found: Array = _session(model, "ORT_DISABLE_ALL").run(None, {"x": x})[0]
    return found


def _here(model: Any, x: Array) -> Array:
    """What ONNX Runtime answers on this CPU, which must be one that saturates."""
    if not read_cpu().saturates:
        pytest.skip("this CPU does not saturate")
    found: Array = _session(model, "ORT_ENABLE_ALL").run(None, {"x": x})[0]
    return found


PADS = ", pads=[1, 1, 1, 1]"
CONVOLUTIONS: dict[str, tuple[tuple[int, ...], int, str]] = {
    "pointwise": ((16, 16, 1, 1), 1, ""),
    "3x3": ((16, 16, 3, 3), 1, PADS),
    "three channels": ((16, 3, 3, 3), 1, f"{PADS}, strides=[2, 2]"),
    "odd channels": ((9, 7, 3, 3), 1, PADS),
    "one odd column": ((7, 5, 1, 1), 1, ""),
    "groups": ((8, 4, 3, 3), 2, PADS),
    "odd groups": ((4, 3, 3, 3), 2, PADS),
    "two outputs for each channel": ((8, 1, 3, 3), 4, PADS),
    "depthwise": ((8, 1, 3, 3), 8, PADS),
    "dilated": ((8, 8, 3, 3), 1, ", pads=[2, 2, 2, 2], dilations=[2, 2]"),
    "unequal": ((6, 4, 3, 2), 1, ", pads=[0, 1, 2, 0], strides=[1, 2]"),
    "SAME_UPPER": ((6, 3, 3, 3), 1, ', auto_pad="SAME_UPPER", strides=[2, 2]'),
    "SAME_LOWER": ((6, 3, 2, 3), 1, ', auto_pad="SAME_LOWER", strides=[2, 2]'),
}


@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_a_convolution_saturates_as_it_does_here(case: str) -> None:
    shape, group, extra = CONVOLUTIONS[case]
    model, x = _conv(shape, group, extra), _frames(shape[1] * group, 8, 9)
    found = simulate(model, {"x": x})
    assert np.array_equal(found.outputs["y"], _here(model, x))
    assert bool(found.layers) == (case != "depthwise")
    assert all(layer.saturated > 0 for layer in found.layers)


@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_without_saturation_the_simulation_is_exact(case: str) -> None:
    shape, group, extra = CONVOLUTIONS[case]
    model, x = _conv(shape, group, extra), _frames(shape[1] * group, 8, 9)
    assert np.array_equal(simulate(model, {"x": x}, saturate=False).outputs["y"], _exact(model, x))


PRODUCTS = {
    "Gemm": ("Gemm<transB=1>(d, k, b)", (20, 33), 0),
    "Gemm that is not transposed": ("Gemm(d, k, b)", (33, 20), 1),
    "Gemm without a bias": ("Gemm(d, k)", (33, 20), 1),
    "MatMul": ("MatMul(d, k)", (33, 20), 1),
}


@pytest.mark.parametrize("quantized", [True, False])
@pytest.mark.parametrize("case", PRODUCTS)
def test_a_product_saturates_as_it_does_here(case: str, quantized: bool) -> None:
    call, shape, axis = PRODUCTS[case]
    weights = np.random.default_rng(0).integers(-127, 128, shape).astype(np.int8)
    model = _model(PRODUCT % (33, 20, axis, call), **_numbers(weights, 20, 3))
    if not quantized:
        del model.graph.node[-2:]
        model.graph.node[-1].output[0] = "y"
    x = _frames(33)
    assert simulate(model, {"x": x}).outputs["y"] == pytest.approx(_here(model, x), rel=1e-5, abs=1e-5)


def test_int8_activations_saturate_as_the_uint8_ones_they_become() -> None:
    model, x = _conv((16, 16, 1, 1)), _frames(16, 8, 9)
    for item in model.graph.initializer:
        if item.name in ("zx", "zy"):
            value = int(onnx.numpy_helper.to_array(item)) - 128
            item.CopyFrom(onnx.numpy_helper.from_array(np.array(value, np.int8), item.name))
    assert np.array_equal(simulate(model, {"x": x}).outputs["y"], _here(model, x))


def test_openvino_begins_each_position_of_a_kernel_with_a_new_pair() -> None:
    require("openvino")
    if not read_cpu().saturates:
        pytest.skip("this CPU does not saturate")
    for case in ("three channels", "odd channels", "odd groups", "groups"):
        shape, group, extra = CONVOLUTIONS[case]
        model, x = _conv(shape, group, extra), _frames(shape[1] * group, 8, 9)
        step = float(onnx.numpy_helper.to_array(next(i for i in model.graph.initializer if i.name == "sy")))
        apart = simulate(model, {"x": x}, runtime="openvino").outputs["y"] - _openvino(model, x)
        assert np.abs(apart).max() <= 1.01 * step  # OpenVINO rounds its scales otherwise


def _openvino(model: Any, x: Array) -> Array:
    import openvino

    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    read = openvino.Core().read_model(model.SerializeToString())
    found: Array = openvino.Core().compile_model(read, "CPU", settings)(x)[0]
    return found


CHAIN = """g (float[n, 4, h, w] x) => (float[n, 4, h, w] y, float[n, 4, h, w] z) {
    q = QuantizeLinear(x, sx, zx) d = DequantizeLinear(q, sx, zx) k = DequantizeLinear<axis=0>(w, sw, zw)
    [one] c = Conv(d, k, b) r = Relu(c) o = QuantizeLinear(r, sy, zero) e = DequantizeLinear(o, sy, zero)
    [two] f = Conv(e, k, b) s = Add(f, d) p = QuantizeLinear(f, sy, zero)
    z = DequantizeLinear(p, sy, zero) [sum] y = Add(e, s) }"""


def test_layers_behind_each_other_are_simulated_in_turn() -> None:
    weights = np.random.default_rng(0).integers(-127, 128, (4, 4, 1, 1)).astype(np.int8)
    model = _model(CHAIN, zero=np.uint8(0), **_numbers(weights, 4, 3))
    x = _frames(4, 6, 6, batch=9)
    found = simulate(model, {"x": x})
    assert [layer.node for layer in found.layers] == ["one"]  # the result of the second is read as float too
    assert np.abs(found.outputs["y"] - _here(model, x)).max() < 1e-4
    assert np.abs(_exact(model, x) - _here(model, x)).max() > 0.1


def test_seven_bits_cannot_saturate() -> None:
    model = _conv((16, 16, 3, 3), limit=64)
    assert saturating_layers(model) == []
    x = _frames(16, 8, 9)
    assert np.array_equal(simulate(model, {"x": x}).outputs["y"], _exact(model, x))


@settings(deadline=None, max_examples=100)
@given(left=st.integers(-128, 127), right=st.integers(-128, 127))
def test_a_pair_is_named_if_and_only_if_some_activations_saturate_it(left: int, right: int) -> None:
    ends = [a * left + b * right for a in (0, 255) for b in (0, 255)]
    text = PRODUCT % (2, 1, 1, "MatMul(d, k)")
    weights = np.array([[left], [right]], np.int8)
    found = saturating_layers(_model(text, **_numbers(weights, 1, 0)))
    assert bool(found) == (min(ends) < -(2**15) or max(ends) >= 2**15)


def test_a_layer_says_how_many_of_its_pairs_can_saturate() -> None:
    weights = np.array([[100, 1], [29, 1], [-100, 127], [100, 127]], np.int8)
    layer = saturating_layers(_model(PRODUCT % (4, 2, 1, "MatMul(d, k)"), **_numbers(weights, 2, 0)))[0]
    assert (layer.node, layer.operator) == ("product", "MatMul")
    assert (layer.pairs, layer.of, layer.channels, layer.largest) == (2, 4, 2, 254)


def test_the_share_of_saturated_sums_is_counted() -> None:
    weights = np.array([[127], [127]], np.int8)
    numbers = _numbers(weights, 1, 0)
    model = _model(PRODUCT % (2, 1, 1, "MatMul(d, k)"), **{**numbers, "sy": 4 * numbers["sy"]})
    x = np.array([[255, 255], [255, 0], [0, 0], [200, 57]], np.float32) * SX
    layer = simulate(model, {"x": x}).layers[0]
    assert (layer.saturated, layer.changed) == (0.25, 0.25)
    assert 0 < layer.noise < 1


def test_a_mark_names_the_layers_and_goes_where_none_is_left() -> None:
    marked = mark_saturation(_conv((16, 16, 3, 3)))
    assert json.loads({item.key: item.value for item in marked.metadata_props}[SATURATES]) == ["conv"]
    again = mark_saturation(marked)
    assert len(again.metadata_props) == 1
    calm = _conv((16, 16, 3, 3), limit=60)
    calm.metadata_props.add(key=SATURATES, value='["conv"]')
    assert not mark_saturation(calm).metadata_props


@pytest.mark.parametrize(
    ("inputs", "runtime", "message"),
    [
        ({}, "onnxruntime", "takes x; got nothing"),
        ({"x": np.zeros((0, 16, 8, 9), np.float32)}, "onnxruntime", "0 frames"),
        ({}, "tvm", "unknown runtime 'tvm'"),
    ],
)
def test_wrong_inputs_are_refused(inputs: Any, runtime: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        simulate(_conv((16, 16, 1, 1)), inputs, runtime=runtime)


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_a_runtime_warns_of_a_marked_file_where_the_cpu_saturates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backend: str
) -> None:
    require(backend)
    path = tmp_path / "model.onnx"
    path.write_bytes(mark_saturation(_conv((16, 16, 3, 3))).SerializeToString())
    for saturates in (True, False):
        monkeypatch.setattr(edgecv.cpu, "read_cpu", lambda found=saturates: _Cpu(found))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            edgecv.open_session(path, backend=backend, threads=1).close()
        assert len(caught) == saturates
        assert all("1 layer with 8-bit weights ('conv')" in str(item.message) for item in caught)


class _Cpu:
    def __init__(self, saturates: bool) -> None:
        self.saturates = saturates

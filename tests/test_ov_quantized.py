"""Quantized models on OpenVINO: rewritten for its kernels, to the same values."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import require

require("onnx")
require("onnxruntime")
require("openvino")

import onnx  # noqa: E402
import openvino  # noqa: E402
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from edgecv.runtimes.ort import OrtSession  # noqa: E402
from edgecv.runtimes.ov import OvSession, read_model  # noqa: E402

FRAMES = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), dtype=np.uint8)


def constant(name: str, value: object) -> onnx.TensorProto:
    return numpy_helper.from_array(np.asarray(value), name)


def write(
    folder: Path, *, scale: float = 1.0, zero_point: int = 114, int8: bool = True, twice: bool = False
) -> tuple[Path, np.ndarray]:
    """One convolution of frames as ``edgecv.quantize`` begins its networks, and what it gives on ``FRAMES``."""
    integers = np.random.default_rng(1).integers(-63, 64, (4, 3, 3, 3)).astype(np.int8)
    weight = integers.astype(np.float32) * np.float32(0.01)
    nodes = [
        helper.make_node("Transpose", ["frames"], ["turned"], perm=[0, 3, 1, 2]),
        helper.make_node("DequantizeLinear", ["turned", "scale", "zero_point"], ["values"]),
        helper.make_node("Conv", ["values", "weight"], ["maps"], pads=[1, 1, 1, 1]),
        helper.make_node("QuantizeLinear", ["maps", "step", "zero"], ["levels"]),
        helper.make_node("DequantizeLinear", ["levels", "step", "zero"], ["answer"]),
    ]
    held = [constant("scale", np.float32(scale)), constant("zero_point", np.uint8(zero_point)),
            constant("step", np.float32(5 * scale)), constant("zero", np.uint8(128))]  # fmt: skip
    if int8:
        nodes.insert(2, helper.make_node("DequantizeLinear", ["integers", "weight_scale"], ["weight"]))
        held += [constant("integers", integers), constant("weight_scale", np.float32(0.01))]
    else:
        held.append(constant("weight", weight))
    outputs = [helper.make_tensor_value_info("answer", TensorProto.FLOAT, ["batch", 4, 8, 8])]
    if twice:
        outputs.append(helper.make_tensor_value_info("values", TensorProto.FLOAT, ["batch", 3, 8, 8]))
    frames = helper.make_tensor_value_info("frames", TensorProto.UINT8, ["batch", 8, 8, 3])
    graph = helper.make_graph(nodes, "one", [frames], outputs, held)
    path = folder / "one.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), str(path))
    values = (FRAMES.astype(np.float64).transpose(0, 3, 1, 2) - zero_point) * scale
    padded = np.pad(values, ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
    maps = np.einsum("nchwij,ocij->nohw", windows, weight.astype(np.float64))
    return path, (np.clip(np.rint(maps / (5 * scale)), -128, 127) * 5 * scale).astype(np.float32)


def operators(path: Path) -> list[str]:
    return [node.get_type_name() for node in read_model(path).get_ordered_ops()]


def first_layer(path: Path) -> str:
    """The kernel that the first convolution of a compiled model runs with."""
    compiled = openvino.Core().compile_model(read_model(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    known = [node.get_rt_info() for node in compiled.get_runtime_model().get_ordered_ops()]
    kernels = [(str(item["layerType"].astype(str)), str(item["primitiveType"].astype(str))) for item in known]
    return next(kernel for layer, kernel in kernels if layer == "Convolution")


def test_the_first_layer_of_an_int8_graph_runs_in_int8(tmp_path: Path) -> None:
    assert "I8" in first_layer(write(tmp_path)[0])


@pytest.mark.parametrize("zero_point", [0, 1, 114, 255])
@pytest.mark.parametrize("scale", [1.0, 2.0**-6, 0.0173])
def test_the_answers_are_those_of_the_graph(tmp_path: Path, scale: float, zero_point: int) -> None:
    path, wanted = write(tmp_path, scale=scale, zero_point=zero_point)
    with OvSession(path) as session:
        found = session.run({"frames": FRAMES})["answer"]
    steps = np.abs(found - wanted) / (5 * scale)
    assert steps.max() < 1.01  # sums at half a step may go either way
    assert (steps > 0.01).mean() < 0.02


def test_a_layer_in_float_is_left_alone(tmp_path: Path) -> None:
    added = [operators(write(tmp_path, int8=int8)[0]).count("FakeQuantize") for int8 in (False, True)]
    assert added == [1, 2]


def test_frames_that_something_else_reads_too_are_left_alone(tmp_path: Path) -> None:
    assert operators(write(tmp_path, twice=True)[0]).count("FakeQuantize") == 1


def write_pool(
    folder: Path, channels: int = 40, *, step_after: float = 0.02, read_step: float = 0.02, twice: bool = False
) -> Path:
    """Maxima of quantized maps, quantized."""
    nodes = [
        helper.make_node("QuantizeLinear", ["maps", "step", "zero"], ["levels"]),
        helper.make_node("DequantizeLinear", ["levels", "read_step", "zero"], ["values"]),
        helper.make_node("MaxPool", ["values"], ["maxima"], kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
        helper.make_node("QuantizeLinear", ["maxima", "step_after", "zero"], ["few"]),
        helper.make_node("DequantizeLinear", ["few", "step_after", "zero"], ["answer"]),
    ]
    shape = ["batch", channels, 9, 9]
    outputs = [helper.make_tensor_value_info("answer", TensorProto.FLOAT, ["batch", channels, 5, 5])]
    if twice:
        outputs.append(helper.make_tensor_value_info("values", TensorProto.FLOAT, shape))
    held = [
        constant("step", np.float32(0.02)),
        constant("step_after", np.float32(step_after)),
        constant("read_step", np.float32(read_step)),
        constant("zero", np.uint8(99)),
    ]
    graph = helper.make_graph(
        nodes, "pool", [helper.make_tensor_value_info("maps", TensorProto.FLOAT, shape)], outputs, held
    )
    path = folder / "pool.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), str(path))
    return path


@pytest.mark.parametrize(
    ("settings", "quantized"),
    [({}, 1), ({"channels": 64}, 2), ({"step_after": 0.03}, 2), ({"read_step": 0.0131}, 2), ({"twice": True}, 2)],
)
def test_maxima_of_odd_numbers_of_channels_are_taken_in_float(
    tmp_path: Path, settings: dict[str, Any], quantized: int
) -> None:
    path = write_pool(tmp_path, **settings)
    assert reached(path) == quantized
    maps = np.random.default_rng(2).normal(0, 2, (2, settings.get("channels", 40), 9, 9)).astype(np.float32)
    with OvSession(path) as one, OrtSession(path) as other:
        found, wanted = (session.run({"maps": maps})["answer"] for session in (one, other))
    np.testing.assert_allclose(found, wanted, atol=1e-6)


def reached(path: Path) -> int:
    """The FakeQuantize nodes that the answers depend on."""
    return operators(path).count("FakeQuantize")

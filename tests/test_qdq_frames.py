"""Frames normalized row by row: the same bits, and only where the graph begins as ours do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import require

for _library in ("onnx", "onnxruntime"):
    require(_library)

import onnx  # noqa: E402  (after the check that it is there)
import onnxruntime  # noqa: E402
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from edgecv.converters.qdq_cpu import cpu_layout  # noqa: E402
from edgecv.converters.qdq_frames import normalize_rows  # noqa: E402
from edgecv.converters.qdq_graph import QdqGraph  # noqa: E402

FRAMES = np.random.default_rng(0).integers(0, 256, (3, 6, 5, 3)).astype(np.uint8)


def _model(
    *, perm: tuple[int, ...] = (0, 3, 1, 2), scale: Any = None, bias: bool = True, quantized: bool = False
) -> Any:
    """Frames, normalized and quantized, then a convolution in float (or with integer weights)."""
    rng = np.random.default_rng(1)
    held = {
        "scale": np.full((1, 3, 1, 1), 0.017, np.float32) if scale is None else scale,
        "shift": np.array([-2.1, -2.0, -1.8], np.float32).reshape(1, 3, 1, 1),
        "step": np.float32(0.02),
        "zero": np.uint8(110),
        "weight": rng.normal(size=(4, 3, 3, 3)).astype(np.float32),
        "bias": rng.normal(size=4).astype(np.float32),
    }
    nodes = [
        helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["float"], ["turned"], perm=perm),
        helper.make_node("Mul", ["turned", "scale"], ["scaled"]),
        helper.make_node("Add", ["scaled", "shift"], ["normal"]),
        helper.make_node("QuantizeLinear", ["normal", "step", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "step", "zero"], ["x"]),
        helper.make_node("Conv", ["x", "weight", *(["bias"] if bias else [])], ["y"]),
        helper.make_node("QuantizeLinear", ["y", "out", "zero"], ["qy"]),
        helper.make_node("DequantizeLinear", ["qy", "out", "zero"], ["z"]),
    ]
    held["out"] = np.float32(0.1)
    if quantized:
        held |= {"integers": rng.integers(-63, 64, (4, 3, 3, 3)).astype(np.int8), "steps": np.full(4, 0.01, np.float32)}
        held["none"] = np.zeros(4, np.int8)
        del held["weight"]
        nodes.insert(6, helper.make_node("DequantizeLinear", ["integers", "steps", "none"], ["weight"], axis=0))
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", 6, 5, 3])],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in held.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def _run(model: onnx.ModelProto, optimized: bool = False) -> Any:
    options = onnxruntime.SessionOptions()
    if not optimized:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {"image": FRAMES})[0]


def _rewritten(model: onnx.ModelProto) -> onnx.ModelProto:
    graph = QdqGraph(model)
    normalize_rows(graph)
    return graph.finished()


def test_rows_give_the_same_bits() -> None:
    model = _model()
    rewritten = _rewritten(model)
    assert [node.op_type for node in rewritten.graph.node][:7] == [
        "Cast", "Reshape", "Mul", "Add", "QuantizeLinear", "Reshape", "Transpose",
    ]  # fmt: skip
    assert np.array_equal(_run(rewritten), _run(model))


@pytest.mark.parametrize("other", [{"perm": (0, 3, 2, 1)}, {"scale": np.float32(0.017)}])
def test_other_beginnings_are_left_alone(other: dict[str, Any]) -> None:
    model = _model(**other)
    assert "Reshape" not in [node.op_type for node in _rewritten(model).graph.node]


@pytest.mark.parametrize("bias", [True, False])
def test_a_float_layer_stays_float_on_onnx_runtime(bias: bool, tmp_path: Path) -> None:
    """Its transformer WeightBiasQuantization would round the weights, all channels with one scale."""
    model = _model(bias=bias)
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 3  # it warns that a written graph fits this machine alone
    onnxruntime.InferenceSession(cpu_layout(model).SerializeToString(), options, providers=["CPUExecutionProvider"])
    assert "Conv" in [node.op_type for node in onnx.load(str(tmp_path / "optimized.onnx")).graph.node]
    assert np.abs(_run(cpu_layout(model), optimized=True) - _run(model)).max() <= 0.1001  # one step, by a tie


def test_the_cpu_layout_of_a_quantized_layer_has_an_integer_bias() -> None:
    model = _model(quantized=True)
    laid_out = cpu_layout(model)
    assert np.abs(_run(laid_out) - _run(model)).max() <= 0.1001
    types = {item.data_type for item in laid_out.graph.initializer}
    assert TensorProto.INT32 in types

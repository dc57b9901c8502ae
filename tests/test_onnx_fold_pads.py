"""Padding folded into convolutions: the same bits, and only where a convolution pads alike."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.conftest import require

for _library in ("onnx", "onnxruntime"):
    require(_library)

import onnx  # noqa: E402  (after the check that it is there)
import onnxruntime  # noqa: E402
from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from edgecv.converters.onnx_fold_pads import fold_pads  # noqa: E402

RNG = np.random.default_rng(0)


def _model(padding: list[int], *, mode: str = "constant", value: float = 0.0, also: str = "", **conv: Any) -> Any:
    """Pad, then a convolution; ``also`` is another reader of the padded image."""
    held = {"pads": np.array(padding, np.int64), "value": np.float32(value), "w": RNG.random((2, 3, 3, 3), np.float32)}
    nodes = [
        helper.make_node("Pad", ["x", "pads", "value"], ["padded"], mode=mode),
        helper.make_node("Conv", ["padded", "w"], ["y"], strides=[2, 2], **conv),
    ]
    outputs = ["y"]
    if also:
        nodes.append(helper.make_node(also, ["padded"], ["z"]))
        outputs.append("z")
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 9, 8])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in held.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def _run(model: onnx.ModelProto) -> Any:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": np.random.default_rng(1).random((1, 3, 9, 8), np.float32)})


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 2), min_size=4, max_size=4), st.lists(st.integers(0, 2), min_size=4, max_size=4))
def test_folding_keeps_every_bit(outer: list[int], own: list[int]) -> None:
    model = _model([0, 0, *outer[:2], 0, 0, *outer[2:]], pads=own)
    before = _run(model)
    fold_pads(model)
    assert [node.op_type for node in model.graph.node] == ["Conv"]
    assert [item.name for item in model.graph.initializer] == ["w"]
    assert np.array_equal(_run(model)[0], before[0])


@pytest.mark.parametrize(
    "settings",
    [
        {"mode": "reflect"},
        {"value": 1.0},
        {"also": "Relu"},
        {"padding": [0, 0, -1, 0, 0, 0, 1, 1]},
        {"padding": [0, 1, 0, 0, 0, -1, 1, 1]},
    ],
)
def test_other_padding_stays(settings: dict[str, Any]) -> None:
    model = _model(**{"padding": [0, 0, 0, 0, 0, 0, 1, 1], **settings})
    before = _run(model)
    fold_pads(model)
    assert "Pad" in [node.op_type for node in model.graph.node]
    assert np.array_equal(_run(model)[0], before[0])


def test_a_convolution_that_pads_by_rule_is_left_alone() -> None:
    model = _model([0, 0, 0, 0, 0, 0, 1, 1], auto_pad="SAME_UPPER")
    fold_pads(model)
    assert [node.op_type for node in model.graph.node] == ["Pad", "Conv"]

"""Means over an image as GlobalAveragePool, and the layers behind them as convolutions: the same answers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.conftest import require

for _library in ("onnx", "onnxruntime"):
    require(_library)

import onnx  # noqa: E402  (after the check that it is there)
import onnxruntime  # noqa: E402
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from edgecv.converters.onnx_pooled import pool_globally  # noqa: E402

RNG = np.random.default_rng(0)
WEIGHED = (("Gemm", 3, True), ("Relu",), ("Gemm", 4, False), ("HardSigmoid",))


def _model(
    layers: tuple[Any, ...] = WEIGHED, *, axes: tuple[int, ...] = (2, 3), keep: bool = False, back: bool = True
) -> onnx.ModelProto:
    """An image weighed by what ``layers`` make of its mean; without ``back`` their answer is the output."""
    held: dict[str, Any] = {"axes": np.array(axes, np.int64), "hw": np.array([2, 3], np.int64)}
    nodes = [helper.make_node("ReduceMean", ["x", "axes"], ["m0"], keepdims=int(keep))]
    width = 4
    for index, (operator, *how) in enumerate(layers):
        names = [f"m{index}"]
        options: dict[str, Any] = {}
        if operator == "Gemm":
            outputs, options["transB"] = how[0], int(how[1])
            shape = (outputs, width) if how[1] else (width, outputs)
            held[f"w{index}"] = RNG.standard_normal(shape).astype(np.float32)
            held[f"b{index}"] = RNG.standard_normal(outputs).astype(np.float32)
            options |= how[2] if len(how) > 2 else {}
            names += [f"w{index}", f"b{index}"]
            width = outputs
        nodes.append(helper.make_node(operator, names, [f"m{index + 1}"], **options))
    last = f"m{len(layers)}"
    if back:
        nodes.append(helper.make_node("Unsqueeze", [last, "hw"], ["weights"]))
        nodes.append(helper.make_node("Mul", ["x", "weights"], ["y"]))
    elif keep:
        nodes.append(helper.make_node("Mul", ["x", last], ["y"]))
    else:
        nodes.append(helper.make_node("Identity", [last], ["y"]))
    read = {name for node in nodes for name in node.input}
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 4, 5, 6])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, list("nchw" if back or keep else "nc"))],
        [numpy_helper.from_array(array, name) for name, array in held.items() if name in read],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def _run(model: onnx.ModelProto) -> Any:
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": np.random.default_rng(1).random((2, 4, 5, 6), np.float32)})[0]


def test_squeeze_and_excite_becomes_an_image_of_one_pixel() -> None:
    model = _model()
    before = _run(model)
    pool_globally(model)
    assert [node.op_type for node in model.graph.node] == [
        "GlobalAveragePool", "Conv", "Relu", "Conv", "HardSigmoid", "Mul",
    ]  # fmt: skip
    assert np.allclose(_run(model), before, atol=1e-6)


@pytest.mark.parametrize("axes", [(2, 3), (-1, -2)])
def test_a_mean_that_keeps_its_dimensions_is_a_pool(axes: tuple[int, ...]) -> None:
    model = _model((), axes=axes, keep=True, back=False)
    before = _run(model)
    pool_globally(model)
    assert [node.op_type for node in model.graph.node] == ["GlobalAveragePool", "Mul"]
    assert np.allclose(_run(model), before, atol=1e-6)


@pytest.mark.parametrize(
    "model",
    [
        _model((("Gemm", 3, True),), back=False),
        _model((("Gemm", 4, True, {"alpha": 0.5}),)),
        _model((("Softmax",),)),
        _model((), axes=(1, 2), keep=True, back=False),
    ],
    ids=["a classifier", "a scaled Gemm", "across channels", "other axes"],
)
def test_anything_else_stays_as_it_is(model: onnx.ModelProto) -> None:
    before = model.SerializeToString()
    pool_globally(model)
    assert model.SerializeToString() == before

"""What happens to frames, folded into the first convolution: the same answers, fewer passes over the frame."""

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

from edgecv.converters.onnx_fold_frames import fold_frames  # noqa: E402

RNG = np.random.default_rng(0)
LEAST = np.iinfo(np.int64).min
FLIP = ([-1], [LEAST], [1], [-1])
THREE = st.lists(st.floats(-3, 3, width=32).filter(lambda x: abs(x) > 0.01), min_size=3, max_size=3)
STEPS = st.one_of(
    st.just(("Slice", FLIP)),
    st.tuples(st.sampled_from(["Mul", "Add", "Sub", "Div"]), THREE),
    st.tuples(st.sampled_from(["Mul", "Add", "Sub", "Div"]), st.just([0.5])),
)


def _model(steps: list[Any], *, also: str = "", cast: int = TensorProto.UINT8, **conv: Any) -> onnx.ModelProto:
    """Frames cast and turned, then ``steps``, then a convolution; ``also`` reads what is in front of that, too."""
    held = {"w": RNG.standard_normal((4, 3, 3, 3)).astype(np.float32), "b": np.ones(4, np.float32)}
    nodes = [
        helper.make_node("Cast", ["frames"], ["cast"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["cast"], ["s0"], perm=[0, 3, 1, 2]),
    ]
    for index, (operator, values) in enumerate(steps):
        names = []
        if operator == "Slice":
            for part, numbers in zip(("starts", "ends", "axes", "steps"), values, strict=True):
                held[f"{part}{index}"] = np.array(numbers, np.int64)
                names.append(f"{part}{index}")
        else:
            array = np.array(values, np.float32)
            held[f"c{index}"] = array.reshape(-1, 1, 1) if array.size == 3 else array
            names = [f"c{index}"]
        nodes.append(helper.make_node(operator, [f"s{index}", *names], [f"s{index + 1}"]))
    last = f"s{len(steps)}"
    nodes.append(helper.make_node("Conv", [last, "w", "b"], ["y"], **conv))
    outputs = ["y"]
    if also:
        nodes.append(helper.make_node(also, [last], ["z"]))
        outputs.append("z")
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("frames", cast, [1, 9, 8, 3])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, list("nchw")) for name in outputs],
        [numpy_helper.from_array(array, name) for name, array in held.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def _run(model: onnx.ModelProto) -> Any:
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    frames = np.random.default_rng(1).integers(0, 256, (1, 9, 8, 3), np.uint8)
    return session.run(None, {"frames": frames})


def _operators(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


@settings(max_examples=60, deadline=None)
@given(st.lists(STEPS, min_size=1, max_size=5), st.sampled_from([[0, 0, 0, 0], [1, 1, 1, 1], [0, 0, 1, 1]]))
def test_answers_stay_and_one_sum_at_most_is_left(steps: list[Any], pads: list[int]) -> None:
    model = _model(steps, pads=pads, strides=[2, 2])
    (before,) = _run(model)
    fold_frames(model)
    (after,) = _run(model)
    assert np.abs(after - before).max() <= 2e-5 * np.abs(before).max() + 1e-4
    assert _operators(model) in (["Cast", "Transpose", "Conv"], ["Cast", "Transpose", "Add", "Conv"])
    if not any(pads):
        assert "Add" not in _operators(model)


def test_a_scale_and_the_order_of_channels_leave_nothing() -> None:
    model = _model([("Slice", FLIP), ("Mul", [0.1, 0.2, 0.3]), ("Add", [0.0])], pads=[1, 1, 1, 1])
    (before,) = _run(model)
    fold_frames(model)
    assert _operators(model) == ["Cast", "Transpose", "Conv"]
    assert {item.name for item in model.graph.initializer} == {"w_folded", "b"}
    assert np.allclose(_run(model)[0], before, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    "changes",
    [
        {"steps": [("Mul", [0.0])]},
        {"steps": [("Slice", ([0], [2], [1], [1]))], "w": 2},
        {"steps": [("Slice", ([-1], [LEAST], [2], [-1]))]},
        {"steps": [("Mul", [2.0])], "also": "Relu"},
        {"steps": [("Mul", [2.0])], "cast": TensorProto.INT32},
        {"steps": []},
    ],
    ids=["zero", "fewer channels", "another axis", "two readers", "no bytes", "nothing to fold"],
)
def test_anything_else_stays_as_it_is(changes: dict[str, Any]) -> None:
    changes = dict(changes)
    width = changes.pop("w", None)
    model = _model(**changes)
    if width:
        weight = next(item for item in model.graph.initializer if item.name == "w")
        weight.CopyFrom(numpy_helper.from_array(np.ones((4, width, 3, 3), np.float32), "w"))
    before = model.SerializeToString()
    fold_frames(model)
    assert model.SerializeToString() == before

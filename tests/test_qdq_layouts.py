"""Q/DQ passes: the same answers bit for bit, or within their bound; the layouts they lead to; what they refuse."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgecv.errors import ConversionError
from edgecv.tensors import Array
from tests.conftest import require

for _library in ("onnx", "onnxruntime"):
    require(_library)

import onnx  # noqa: E402  (after the check that it is there)
import onnx.numpy_helper  # noqa: E402
import onnx.parser  # noqa: E402
import onnxruntime  # noqa: E402

from edgecv.converters.lint import lint  # noqa: E402
from edgecv.converters.qdq_graph import QdqGraph, Quantization, quantize_array  # noqa: E402
from edgecv.converters.qdq_layouts import clean_for_cpu, to_tensorrt_layout  # noqa: E402
from edgecv.converters.qdq_passes import (  # noqa: E402
    drop_identities,
    drop_implied_clips,
    drop_repeated_pairs,
    float_biases,
    fold_quantized_constants,
    int32_biases,
    pair_after_moves,
    shift_activations,
)

CHANNELS = 4
SCALES = st.floats(2**-6, 3.0, width=32)
POINTS = {np.int8: st.integers(-128, 127), np.uint8: st.integers(0, 255)}


def _model(text: str, opset: int = 18, **constants: Any) -> Any:
    model = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["": {opset}]> {text}')
    model.graph.initializer.extend(onnx.numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items())
    return model


def _run(model: Any, **inputs: Array) -> list[Array]:
    """The answers under exact arithmetic."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return list(session.run(None, inputs))


def _operators(model: Any) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


def _pair_types(model: Any) -> set[str]:
    """The integer types of the activations."""
    graph = QdqGraph(model)
    return {str(graph.quantization(node).dtype) for node in graph.nodes("QuantizeLinear")}


KINDS = ("pair", "pair", "pair", "pair twice", "Relu", "Clip", "Add", "MaxPool", "Conv", "Identity")


class Writer:
    """Writes a random graph node by node."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.constants: dict[str, Any] = {}

    def node(self, operator: str, *inputs: str) -> str:
        name = f"t{len(self.lines)}"
        self.lines.append(f"{name} = {operator}({', '.join(inputs)})")
        return name

    def constant(self, value: Any) -> str:
        name = f"c{len(self.constants)}"
        self.constants[name] = value
        return name

    def model(self, *outputs: str) -> Any:
        declared = ", ".join(f"float[n, {CHANNELS}, h, w] y{index}" for index in range(len(outputs)))
        ends = [f"y{index} = Identity({name})" for index, name in enumerate(outputs)]
        body = " ".join(self.lines + ends)
        return _model(f"g (float[n, {CHANNELS}, h, w] x) => ({declared}) {{ {body} }}", **self.constants)


@st.composite
def graphs(draw: st.DrawFn) -> Any:
    """Chains with side branches of clips, sums, moves, convolutions and pairs, some of them shared or repeated."""
    writer, tensors = Writer(), ["x"]
    for _ in range(draw(st.integers(2, 9))):
        source = draw(st.sampled_from(tensors[-3:]))
        tensors.append(_append(draw, writer, source, draw(st.sampled_from(tensors[-3:]))))
    return writer.model(*tensors[-2:])


def _append(draw: st.DrawFn, writer: Writer, source: str, other: str) -> str:
    kind = draw(
        st.sampled_from(["pair", "pair", "pair", "pair twice", "Relu", "Clip", "Add", "MaxPool", "Conv", "Identity"])
    )
    if kind.startswith("pair"):
        numbers = _numbers(draw, writer)
        found = writer.node("QuantizeLinear", source, *numbers)
        for _ in range(kind == "pair twice"):
            found = writer.node("QuantizeLinear", writer.node("DequantizeLinear", found, *numbers), *numbers)
        return writer.node("DequantizeLinear", found, *numbers)
    if kind == "Clip":
        low, high = sorted(draw(st.lists(st.floats(-9, 9, width=32), min_size=2, max_size=2)))
        bounds = [draw(st.sampled_from([np.float32(bound), None])) for bound in (low, high)]
        return writer.node("Clip", source, *["" if bound is None else writer.constant(bound) for bound in bounds])
    if kind == "MaxPool":
        return writer.node("MaxPool<kernel_shape=[3, 3], pads=[1, 1, 1, 1]>", source)
    if kind == "Conv":
        return _convolution(draw, writer, source)
    return writer.node(kind, source, other) if kind == "Add" else writer.node(kind, source)


def _numbers(draw: st.DrawFn, writer: Writer) -> tuple[str, str]:
    dtype = draw(st.sampled_from([np.int8, np.uint8]))
    if draw(st.booleans()):  # the ends of the range, where clips are implied
        point = draw(st.sampled_from([np.iinfo(dtype).min, np.iinfo(dtype).max]))
    else:
        point = draw(POINTS[dtype])
    scale = np.float32(draw(SCALES))
    if draw(st.integers(0, 5)) == 0:
        return writer.constant(np.full(CHANNELS, scale)), writer.constant(np.full(CHANNELS, point, dtype))
    return writer.constant(scale), writer.constant(dtype(point))


def _convolution(draw: st.DrawFn, writer: Writer, source: str) -> str:
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    weights = rng.integers(-127, 128, (CHANNELS, CHANNELS, 1, 1)).astype(np.int8)
    scale = rng.uniform(0.001, 0.01, CHANNELS).astype(np.float32)
    quantized = [writer.constant(value) for value in (weights, scale, np.zeros(CHANNELS, np.int8))]
    kernel = writer.node("DequantizeLinear<axis=0>", *quantized)
    return writer.node("Conv", source, kernel, writer.constant(rng.normal(size=CHANNELS).astype(np.float32)))


X = np.random.default_rng(0).normal(0, 8, (2, CHANNELS, 3, 3)).astype(np.float32)
X.ravel()[:8] = [0, -0.0, 6, -6, 1e6, -1e6, 127.5, 0.5]
EXACT_STEPS = (
    drop_identities, drop_implied_clips, drop_repeated_pairs, fold_quantized_constants, pair_after_moves,
    lambda graph: shift_activations(graph, np.uint8), lambda graph: shift_activations(graph, np.int8),
    lambda graph: shift_activations(graph, np.uint8, per_channel=np.int8),
)  # fmt: skip


@pytest.mark.parametrize("step", EXACT_STEPS)
@settings(deadline=None, max_examples=25)
@given(model=graphs())
def test_a_pass_changes_no_bit(step: Any, model: Any) -> None:
    graph = QdqGraph(model)
    step(graph)
    for before, after in zip(_run(model, x=X), _run(graph.finished(), x=X), strict=True):
        assert np.array_equal(before, after)


@settings(deadline=None, max_examples=40)
@given(model=graphs())
def test_the_cpu_layout_changes_no_bit_and_has_uint8_activations(model: Any) -> None:
    given_bytes = model.SerializeToString(deterministic=True)
    cleaned = clean_for_cpu(model)
    assert model.SerializeToString(deterministic=True) == given_bytes
    for before, after in zip(_run(model, x=X), _run(cleaned, x=X), strict=True):
        assert np.array_equal(before, after)
    graph = QdqGraph(cleaned)
    tensors = [graph.quantization(node) for node in graph.nodes("QuantizeLinear")]
    assert all(how.dtype == (np.uint8 if how.per_tensor else np.int8) for how in tensors)


PAIR = """g (float[n] x) => (float[n] y) {
    q = QuantizeLinear(x, scale, point) y = DequantizeLinear(q, scale, point) }"""


@settings(deadline=None, max_examples=60)
@given(scale=SCALES, point=st.integers(0, 255), signed=st.booleans())
def test_a_symmetric_range_rounds_by_at_most_half_its_step(scale: float, point: int, signed: bool) -> None:
    least = -128 if signed else 0
    zero_point = np.array(point + least, np.int8 if signed else np.uint8)
    step = np.float32(scale)
    model = _model(PAIR, scale=step, point=zero_point)
    x = np.linspace(-point, 255 - point, 999, dtype=np.float32) * step
    found = to_tensorrt_layout(model)
    graph = QdqGraph(found)
    how = graph.quantization(graph.nodes("QuantizeLinear")[0])
    assert how.dtype == np.int8
    assert not how.zero_point.any()
    assert np.abs(_run(found, x=x)[0] - x).max() <= float(how.scale) * (0.5 + 1e-4)
    assert float(how.scale) <= float(step) * (max((255 - point) / 127, point / 128) + 1e-6)


@settings(deadline=None, max_examples=30)
@given(scale=SCALES, signed=st.booleans())
def test_symmetric_ranges_reach_the_tensorrt_layout_exactly(scale: float, signed: bool) -> None:
    point = np.array(0, np.int8) if signed else np.array(128, np.uint8)
    model = _model(PAIR, scale=np.float32(scale), point=point)
    assert np.array_equal(_run(model, x=X.ravel())[0], _run(to_tensorrt_layout(model), x=X.ravel())[0])


@settings(deadline=None, max_examples=30)
@given(scale=SCALES)
def test_uint8_from_zero_loses_one_bit_and_still_cuts_off_what_is_negative(scale: float) -> None:
    model = _model(PAIR, scale=np.float32(scale), point=np.uint8(0))
    found = to_tensorrt_layout(model)
    answers = _run(found, x=X.ravel())[0]
    assert answers.min() >= 0
    assert np.abs(answers - _run(model, x=X.ravel())[0]).max() <= scale * 255 / 127 * (0.5 + 1e-4) + scale / 2
    assert _operators(found)["Relu"] == 1


BIASED = """g (float[n, 3] x) => (float[n, 2] y) {
    q = QuantizeLinear(x, sx, zx) d = DequantizeLinear(q, sx, zx)
    w = DequantizeLinear<axis=0>(wq, sw, zw) b = DequantizeLinear<axis=0>(bq, sb, zb)
    y = Gemm<transB=1>(d, w, b) }"""


def _biased(scale: float = 0.02, bias: tuple[int, int] = (5, -7)) -> Any:
    sw = np.array([0.01, 0.3], np.float32)
    weights: dict[str, Any] = {"wq": np.array([[1, 2, 3], [-4, 5, 6]], np.int8), "sw": sw, "zw": np.zeros(2, np.int8)}
    biases: dict[str, Any] = {"bq": np.array(bias, np.int32), "sb": np.float32(scale) * sw, "zb": np.zeros(2, np.int32)}
    return _model(BIASED, sx=np.float32(scale), zx=np.uint8(3), **weights, **biases)


@settings(deadline=None, max_examples=60)
@given(scale=SCALES, bias=st.tuples(*[st.integers(-(2**22), 2**22)] * 2))
def test_a_bias_goes_to_float_exactly_and_comes_back(scale: float, bias: tuple[int, int]) -> None:
    x, model = np.ones((1, 3), np.float32), _biased(scale, bias)
    graph = QdqGraph(model)
    float_biases(graph)
    between = graph.finished()
    assert _operators(between)["DequantizeLinear"] == 2
    assert np.array_equal(_run(between, x=x)[0], _run(model, x=x)[0])
    int32_biases(graph)
    stored = [item for item in graph.finished().graph.initializer if item.data_type == onnx.TensorProto.INT32]
    assert any(np.array_equal(onnx.numpy_helper.to_array(item), bias) for item in stored)


@settings(deadline=None, max_examples=30)
@given(scale=SCALES, bias=st.tuples(*[st.floats(-50, 50, width=32)] * 2))
def test_a_float_bias_moves_by_at_most_half_a_step(scale: float, bias: tuple[float, float]) -> None:
    graph = QdqGraph(_biased(scale))
    float_biases(graph)
    node = graph.nodes("Gemm")[0]
    graph.set_input(node, 2, graph.add_constant("given", np.array(bias, np.float32)))
    before = _run(graph.finished(), x=np.zeros((1, 3), np.float32))[0]
    int32_biases(graph)
    after = _run(graph.finished(), x=np.zeros((1, 3), np.float32))[0]
    step = np.float32(scale) * np.array([0.01, 0.3], np.float32)
    assert (np.abs(after - before) <= step * 0.5 + np.abs(bias) * 1e-6).all()


CLIPPED = """g (float[n] x) => (float[n] y) {
    a = Clip(x, low, high) b = Relu(a) q = QuantizeLinear(b, scale, point) y = DequantizeLinear(q, scale, point) }"""


@pytest.mark.parametrize(
    ("point", "high", "left"),
    [(np.uint8(0), 6.0, set()), (np.int8(-128), 6.0, set()), (np.uint8(0), 5.0, {"Clip"}),
     (np.uint8(1), 6.0, {"Clip", "Relu"})],
)  # fmt: skip
def test_a_clip_goes_only_where_the_range_implies_it(point: Any, high: float, left: set[str]) -> None:
    scale = np.float32(6 / 255)
    model = _model(CLIPPED, low=np.float32(0), high=np.float32(high), scale=scale, point=point)
    graph = QdqGraph(model)
    drop_implied_clips(graph)
    assert _operators(graph.finished()).keys() & {"Clip", "Relu"} == left


def test_a_clip_with_its_bounds_as_attributes_goes_too() -> None:
    text = """g (float[n] x) => (float[n] y) {
        a = Clip<min = 0.0, max = 6.0>(x) q = QuantizeLinear(a, scale, point)
        y = DequantizeLinear(q, scale, point) }"""
    graph = QdqGraph(_model(text, opset=10, scale=np.float32(6 / 255), point=np.uint8(0)))
    drop_implied_clips(graph)
    assert not graph.nodes("Clip")


def test_a_clip_that_something_else_reads_stays() -> None:
    text = """g (float[n] x) => (float[n] y, float[n] z) {
        a = Relu(x) q = QuantizeLinear(a, scale, point) y = DequantizeLinear(q, scale, point) z = Neg(a) }"""
    graph = QdqGraph(_model(text, scale=np.float32(1), point=np.uint8(0)))
    drop_implied_clips(graph)
    assert graph.nodes("Relu")


def test_integers_that_leave_the_graph_keep_their_type() -> None:
    text = "g (float[n] x) => (int8[n] q, float[n] y) { q = QuantizeLinear(x, s, z) y = DequantizeLinear(q, s, z) }"
    found = clean_for_cpu(_model(text, s=np.float32(1), z=np.int8(0)))
    assert _pair_types(found) == {"int8"}


def test_a_pair_without_a_zero_point_is_uint8_and_is_shifted() -> None:
    model = _model(
        "g (float[n] x) => (float[n] y) { q = QuantizeLinear(x, s) y = DequantizeLinear(q, s) }", s=np.float32(1)
    )
    graph = QdqGraph(model)
    shift_activations(graph, np.int8)
    found = graph.finished()
    assert _pair_types(found) == {"int8"}
    assert np.array_equal(_run(found, x=X.ravel())[0], _run(model, x=X.ravel())[0])


JOINED = """g (float[n, 2, h, w] x) => (float[n, 4, h, w] y) {
    a = QuantizeLinear(x, s, z) b = DequantizeLinear(a, s, z) r = Neg(x)
    i = QuantizeLinear(r, s, z) j = DequantizeLinear(i, s, z) m = Concat<axis=1>(b, j)
    k = DequantizeLinear<axis=0>(w, sw, zw) c = Conv(m, k) f = Relu(c)
    o = QuantizeLinear(f, s, z) y = DequantizeLinear(o, s, z) }"""


def test_onnx_runtime_computes_a_cleaned_graph_in_integers(tmp_path: Any) -> None:
    weights: dict[str, Any] = {"w": np.ones((4, 4, 1, 1), np.int8), "sw": np.full(4, 0.01, np.float32)}
    model = _model(JOINED, s=np.float32(0.1), z=np.int8(-128), zw=np.zeros(4, np.int8), **weights)
    assert _optimized(model, tmp_path)["QLinearConv"] == 0
    assert _optimized(clean_for_cpu(model), tmp_path)["QLinearConv"] == 1


def test_tensors_with_two_scales_are_joined_in_float() -> None:
    text = """g (float[n, 2] x) => (float[n, 4] y) {
        a = QuantizeLinear(x, s, z) b = DequantizeLinear(a, s, z) i = QuantizeLinear(x, t, z)
        j = DequantizeLinear(i, t, z) m = Concat<axis=1>(b, j) y = Neg(m) }"""
    model = _model(text, s=np.float32(0.1), t=np.float32(0.3), z=np.uint8(0))
    assert _operators(clean_for_cpu(model)) == _operators(model)


def _optimized(model: Any, tmp_path: Any) -> Counter[str]:
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 4
    onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return _operators(onnx.load(options.optimized_model_filepath))


def test_the_tensorrt_layout_passes_the_lint_and_keeps_names_and_metadata() -> None:
    model = _biased()
    model.metadata_props.add(key="task", value="classify")
    found = to_tensorrt_layout(model)
    assert not [item for item in lint(found, ("tensorrt", "tensorrt_rtx")) if item.severity == "error"]
    assert [value.name for value in (*found.graph.input, *found.graph.output)] == ["x", "y"]
    assert {item.key: item.value for item in found.metadata_props} == {"task": "classify"}
    assert _pair_types(found) == {"int8"}


def test_uint8_weights_that_int8_holds_are_moved_exactly() -> None:
    text = "g (float[n, 2] x) => (float[n, 2] y) { w = DequantizeLinear(q, s, z) y = MatMul(x, w) }"
    model = _model(text, q=np.array([[0, 128], [255, 200]], np.uint8), s=np.float32(0.1), z=np.uint8(128))
    found = to_tensorrt_layout(model)
    x = np.ones((1, 2), np.float32)
    assert np.array_equal(_run(found, x=x)[0], _run(model, x=x)[0])


def test_weights_stored_in_float_become_integers() -> None:
    text = """g (float[n, 2] x) => (float[n, 2] y) {
        q = QuantizeLinear(v, s, z) w = DequantizeLinear(q, s, z) y = MatMul(x, w) }"""
    model = _model(text, v=np.array([[0.04, 0.05], [-9.9, 99]], np.float32), s=np.float32(0.1), z=np.int8(0))
    found = clean_for_cpu(model)
    assert _operators(found) == {"DequantizeLinear": 1, "MatMul": 1}
    x = np.ones((1, 2), np.float32)
    assert np.array_equal(_run(found, x=x)[0], _run(model, x=x)[0])


NEAR = "g (float[n, 2] x) => (float[n, 2] y) { [%s] q = QuantizeLinear(x, s, z) y = DequantizeLinear(q, s, z) }"
REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "per channel": (NEAR % "quant", {"s": np.ones(2, np.float32), "z": np.zeros(2, np.uint8)}, "'quant'.*per channel"),
    "16 bits": (NEAR % "wide", {"s": np.float32(1), "z": np.uint16(0)}, "'wide'.*uint16"),
    "another scale": (
        """g (float[n] x) => (float[n] y) {
            [first] q = QuantizeLinear(x, s, z) [second] y = DequantizeLinear(q, t, z) }""",
        {"s": np.float32(1), "t": np.float32(2), "z": np.uint8(0)},
        "'first'.*its own scale",
    ),
    "integers that leave": (
        "g (float[n] x) => (uint8[n] q) { [last] q = QuantizeLinear(x, s, z) }",
        {"s": np.float32(1), "z": np.uint8(0)},
        "'last'.*must be read by DequantizeLinear",
    ),
    "weights out of reach": (
        "g (float[n, 2] x) => (float[n, 2] y) { [kernel] w = DequantizeLinear(q, s, z) y = MatMul(x, w) }",
        {"q": np.array([[0, 1], [255, 0]], np.uint8), "s": np.float32(1), "z": np.uint8(3)},
        "'kernel'.*-3 to 252",
    ),
    "a scale at run time": (
        "g (float[n] x, float s) => (float[n] y) { [late] q = QuantizeLinear(x, s, z) y = DequantizeLinear(q, s, z) }",
        {"z": np.uint8(0)},
        "'late'.*must be constants",
    ),
    "bytes from outside": (
        "g (uint8[n] x) => (float[n] y) { [entry] y = DequantizeLinear(x, s, z) }",
        {"s": np.float32(1), "z": np.uint8(128)},
        "'entry'",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_has_no_tensorrt_layout_is_refused_by_name(case: str) -> None:
    text, constants, message = REFUSED[case]
    with pytest.raises(ConversionError, match=message):
        to_tensorrt_layout(_model(text, opset=21, **constants))


def test_a_graph_in_a_node_is_refused() -> None:
    text = """g (float[n] x, bool b) => (float[n] y) {
        [choice] y = If (b) <then_branch = t () => (float[n] p) { p = Neg(x) },
                             else_branch = e () => (float[n] r) { r = Abs(x) }> }"""
    with pytest.raises(ConversionError, match="'choice'"):
        clean_for_cpu(_model(text))


def test_halves_are_rounded_to_even_as_onnx_does() -> None:
    how = Quantization(np.array(1, np.float32), np.array(0, np.int8), 1)
    assert quantize_array(np.array([0.5, 1.5, -2.5, 300], np.float32), how).tolist() == [0, 2, -2, 127]

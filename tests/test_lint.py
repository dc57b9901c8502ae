"""The readiness lint: each rule fires on what it is for, is quiet on its mend, and names node, mend and evidence."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgecv.bundle import write_manifest
from edgecv.errors import InputError
from edgecv.files import new_folder
from edgecv.manifest import Graph, Manifest, Source, Variant
from edgecv.preprocess import Preprocess
from edgecv.tensors import TensorSpec
from tests.conftest import require

for _library in ("torch", "onnx"):
    require(_library)

import onnx  # noqa: E402  (after the check that it is there)
import onnx.parser  # noqa: E402
from onnx import helper, numpy_helper  # noqa: E402

from edgecv.cli.main import main  # noqa: E402
from edgecv.converters.lint import RULES, TARGETS, Finding, lint  # noqa: E402

ZERO, TENTH, SEVEN_BITS = np.int8(0), np.float32(0.1), np.int8(60)
X = "(float[1,4,8,8] x) => (float[1,4,8,8] y)"


def graph(text: str, opset: int = 18, ir_version: int = 10) -> Any:
    """A model from ONNX's text format, without the header."""
    return onnx.parser.parse_model(f'<ir_version: {ir_version}, opset_import: ["" : {opset}, "my.ops" : 1]> g {text}')


def convolution(
    point: Any = ZERO,
    scale: Any = TENTH,
    weight: Any = SEVEN_BITS,
    axis: int = 0,
    bias: Any = None,
    after: str = "",
    **stored: Any,
) -> Any:
    """Q and DQ, a convolution on quantized weights by output channel; with ``after`` another operator and Q and DQ.

    A ``None`` for ``point`` leaves the zero point away.
    """
    pair = ["s"] if point is None else ["s", "z"]
    values = {"s": scale, "w": np.full((4, 4, 1, 1), weight), "ws": np.full(4, 0.1, np.float32), **stored}
    values |= {"wz": np.zeros(4, np.asarray(weight).dtype), "z": point, "b": bias}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", *pair], ["q"], "quantize"),
        helper.make_node("DequantizeLinear", ["q", *pair], ["d"], "dequantize"),
        helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["wd"], "weights", axis=axis),
        helper.make_node("Conv", ["d", "wd", *(["b"] if bias is not None else [])], ["c"], "conv"),
    ]
    if after:
        bounds = ["lo", "hi"] if after == "Clip" else []
        nodes += [
            helper.make_node(after, ["c", *bounds], ["a"], "after"),
            helper.make_node("QuantizeLinear", ["a", "s2", "z2"], ["q2"], "again"),
            helper.make_node("DequantizeLinear", ["q2", "s2", "z2"], ["c2"], "back"),
        ]
    last = nodes[-1].output[0]
    nodes.append(helper.make_node("Relu", [last], ["y"], "relu"))
    tensors = [numpy_helper.from_array(np.asarray(v), name) for name, v in values.items() if v is not None]
    ends = [helper.make_tensor_value_info(name, 1, [1, 4, 8, 8]) for name in "xy"]
    proto = helper.make_graph(nodes, "g", ends[:1], ends[1:], tensors)
    return helper.make_model(proto, opset_imports=[helper.make_opsetid("", 19)], ir_version=10)


def rules(model: Any, *targets: str) -> set[str]:
    return {item.rule for item in lint(model, targets or ("tensorrt",))}


def only(model: Any, rule: str, target: str = "tensorrt") -> Finding:
    """The first finding of ``rule``, which must be there."""
    found = lint(model, [target])
    assert rule in {item.rule for item in found}, found
    return next(item for item in found if item.rule == rule)


def test_a_symmetric_int8_convolution_is_ready_for_tensorrt() -> None:
    assert rules(convolution()) == set()


def test_a_plain_network_is_ready_for_everything() -> None:
    model = graph(f"{X} <float[4,4,1,1] w = {{{','.join(['0.5'] * 16)}}}> {{ c = Conv(x, w) y = Relu(c) }}")
    assert lint(model) == ()


@pytest.mark.parametrize("point", [np.uint8(0), None], ids=["uint8 zero point 0", "zero point left away"])
def test_uint8_that_tensorrt_reads_as_int8_in_silence_is_an_error(point: Any) -> None:
    found = only(convolution(point), "TRT115")
    assert found.severity == "error"
    assert found.node == "quantize"
    assert "node 'quantize' (QuantizeLinear)" in found.message
    assert "uint8" in found.message


def test_a_left_out_zero_point_is_fine_where_the_output_type_says_int8() -> None:
    text = "{ q = QuantizeLinear<output_dtype=3>(x, s) d = DequantizeLinear(q, s) y = Relu(d) }"
    assert rules(graph(f"{X} <float s = {{0.1}}> {text}", opset=21)) == {"TRT005"}


@pytest.mark.parametrize(
    ("rule", "changes"),
    [
        ("TRT111", {"scale": np.float32(0)}),
        ("TRT111", {"scale": np.float32("nan")}),
        ("TRT111", {"ws": np.array([0.1, -0.1, 0.1, 0.1], np.float32)}),
        ("TRT113", {"point": np.int16(0)}),
        ("TRT114", {"point": np.int8(3)}),
        ("TRT114", {"point": np.uint8(128)}),
        ("TRT116", {"weight": np.uint8(60)}),
        ("TRT118", {"ws": np.full(3, 0.1, np.float32)}),
        ("TRT118", {"axis": 9}),
        ("TRT130", {"bias": np.zeros(4, np.float16)}),
    ],
)
def test_a_layout_that_tensorrt_refuses_is_an_error(rule: str, changes: dict[str, Any]) -> None:
    assert only(convolution(**changes), rule).severity == "error"


@pytest.mark.parametrize(
    ("rule", "changes"),
    [
        ("TRT119", {"scale": np.full(4, 0.1, np.float32), "point": np.zeros(4, np.int8)}),
        ("TRT120", {"axis": 1}),
    ],
)
def test_a_layout_that_tensorrt_may_not_fuse_is_a_warning(rule: str, changes: dict[str, Any]) -> None:
    found = lint(convolution(**changes), ["tensorrt"])
    assert {(item.rule, item.severity) for item in found} == {(rule, "warning")}


def test_an_int32_bias_is_an_error() -> None:
    text = "<float s = {0.1}, int32[4] b = {0,0,0,0}> { d = DequantizeLinear(b, s) y = Add(x, d) }"
    assert only(graph(f"(float[1,4] x) => (float[1,4] y) {text}"), "TRT117").node == "d"


@pytest.mark.parametrize(
    ("scale", "fine"),
    [("s = Mul(t, t)", True), ("s = Identity(t)", True), ("s = ReduceMax<keepdims=0>(x)", False)],
)
def test_a_scale_is_a_constant_or_computed_from_constants(scale: str, fine: bool) -> None:
    body = f"{{ {scale} q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) y = Relu(d) }}"
    assert ("TRT110" not in rules(graph(f"{X} <float t = {{0.1}}, int8 z = {{0}}> {body}"))) is fine


def test_a_scale_of_zero_is_found_through_arithmetic() -> None:
    body = "{ s = Sub(t, t) q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) y = Relu(d) }"
    assert "TRT111" in rules(graph(f"{X} <float t = {{0.1}}, int8 z = {{0}}> {body}"))


PAIR = "q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z)"
SCALES = "<float s = {0.1}, float t = {0.2}, int8 z = {0}, float[4,4,1,1] w = {1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1}>"


@pytest.mark.parametrize(
    ("rule", "body"),
    [
        ("TRT121", f"{PAIR} y = Conv(d, w)"),
        ("TRT122", f"{PAIR} y = Add(d, x)"),
        ("TRT124", "q = QuantizeLinear(x, s, z) y = DequantizeLinear(q, s, z)"),
        ("TRT125", f"{PAIR} p = QuantizeLinear(x, t, z) e = DequantizeLinear(p, t, z) y = Add(d, e)"),
        ("TRT126", f"{PAIR} y = Sigmoid(d)"),
    ],
)
def test_what_costs_speed_or_accuracy_in_int8_is_a_warning(rule: str, body: str) -> None:
    assert only(graph(f"{X} {SCALES} {{ {body} }}"), rule).severity == "warning"


def test_both_inputs_of_a_residual_sum_may_be_quantized() -> None:
    assert rules(graph(f"{X} {SCALES} {{ {PAIR} e = Add(d, d) y = Relu(e) }}")) == set()


def test_half_precision_scales_need_opset_19() -> None:
    head = "(float16[1,4] x) => (float16[1,4] y) <float16 s = {14336}, int8 z = {0}>"  # 14336: the bits of 0.5
    body = "{ q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) y = Relu(d) }"
    assert rules(graph(f"{head} {body}", opset=19)) == set()
    assert "TRT131" in rules(graph(f"{head} {body}", opset=17))


def test_a_half_scale_makes_the_convolution_mixed() -> None:
    """DequantizeLinear gives its scale's type, also where an old opset says float."""
    assert only(convolution(scale=np.float16(0.1)), "TRT130").node == "conv"


def test_a_custom_operator_is_an_error_everywhere() -> None:
    model = graph(f"{X} {{ y = my.ops.Foo(x) }}")
    found = {(item.rule, item.target, item.severity) for item in lint(model)}
    assert found == {
        ("ORT002", "onnxruntime", "error"), ("OV002", "openvino", "error"),
        ("TRT001", "tensorrt", "error"), ("TRT001", "tensorrt_rtx", "error"),
    }  # fmt: skip


def test_an_operator_that_needs_a_plugin_is_an_error_for_rtx_alone() -> None:
    model = graph("(float[3,3] x) => (int64[2,n] y) { y = NonZero(x) }")
    severities = {item.target: item.severity for item in lint(model) if item.rule == "TRT003"}
    assert severities == {"tensorrt": "warning", "tensorrt_rtx": "error"}


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        ("TRT002", "(float[3,3] x) => (float y) { y = Det(x) }"),
        ("TRT130", "(float[1,3] x, float16[1,3] w) => (float[1,3] y) { y = Add(x, w) }"),
        ("TRT130", "(float[1,3,8,8] x, float16[1,4,4,2] w) => (float[1,3,4,4] y) { y = GridSample(x, w) }"),
        ("TRT132", "(int16[1,3] x) => (float[1,3] y) { y = Cast<to=1>(x) }"),
        ("TRT132", "(float[1,3] x) => (float[1,3] y) { t = Cast<to=5>(x) y = Cast<to=1>(t) }"),
        ("TRT132", "(float[1,3] x) => (float[1,3] y) <uint64[1] w = {1}> { y = Relu(x) }"),
        ("TRT134", "(uint8[1,8,3] x) => (float[1,3,8] y) { t = Transpose<perm=[0,2,1]>(x) y = Cast<to=1>(t) }"),
        ("TRT134", "(float[1,3] x) => (float[1,3] y) { t = Cast<to=2>(x) y = Cast<to=1>(t) }"),
        ("TRT140", "(float[1,3,8,8] x) => (float[1,3,4,4] y) <float[4] s = {1,1,0.5,0.5}> "
                   '{ y = Resize<antialias=1, mode="linear">(x, , s) }'),
        ("TRT141", "(float[1,3,8,8] x) => (float[1,3,4,4] y) { y = MaxPool<kernel_shape=[3,3],dilations=[2,2]>(x) }"),
        ("TRT142", "(float[3,4] x, int64[1,1] i, float[1,4] u) => (float[3,4] y) "
                   '{ y = ScatterND<reduction="add">(x, i, u) }'),
        ("TRT143", "(float[1,3] x) => (float[1,3] y) <float r = {0.5}, bool t = {1}> { y = Dropout(x, r, t) }"),
        ("TRT144", "(float[1,3,8] x) => (float[1,3,7] y, int64[1,3,7] i) { y, i = MaxPool<kernel_shape=[2]>(x) }"),
        ("TRT145", "(float[1,3] x, int64[1] a) => (float[1,1] y) { y = ReduceMean(x, a) }"),
        ("TRT145", "(float[1,3] x) => (float[1,1] y) <int64[1] a = {1}> { b = Mul(a, a) y = ReduceMean(x, b) }"),
        ("TRT145", "(float[1,3] x, int64[1] a) => (float[1,1,3] y) { y = Unsqueeze(x, a) }"),
        ("TRT146", "(float[1,3,8,8] x, float[4] s) => (float[n,c,h,w] y) { y = Resize(x, , s) }"),
        ("TRT147", "(float[8000] x) => (float[4000] y, int64[4000] i) <int64[1] k = {4000}> { y, i = TopK(x, k) }"),
    ],
)  # fmt: skip
def test_what_tensorrt_does_not_have_is_an_error(rule: str, text: str) -> None:
    assert only(graph(text), rule).severity == "error"


@pytest.mark.parametrize(
    "text",
    [
        "(uint8[1,8,3] x) => (float[1,3,8] y) { t = Cast<to=1>(x) y = Transpose<perm=[0,2,1]>(t) }",
        "(float[1,3] x) => (uint8[1,3] y) { y = Cast<to=2>(x) }",
        "(float[1,3] x) => (float[1,1] y) <int32[1] a = {1}> { b = Cast<to=7>(a) y = ReduceMean(x, b) }",
        "(float[1,3] x) => (float[1,1,3] y) <int64[1] a = {1}> { b = Mul(a, a) y = Unsqueeze(x, b) }",
        "(float[1,3,8,8] x, int64[4] s) => (float[n,c,h,w] y) { y = Resize(x, , , s) }",
        "(float[1,3] x) => (float[1,3] y) { y = Dropout(x) }",
        "(float[1,3] x) => (float[1,3] y) <int64 e = {2}> { y = Pow(x, e) }",
    ],
)
def test_what_tensorrt_takes_is_left_alone(text: str) -> None:
    assert rules(graph(text)) == set()


def test_a_rule_looks_into_branches_and_local_functions() -> None:
    then, otherwise = "a () => (float t) { t = Det(x) }", "b () => (float e) { e = ReduceSum<keepdims=0>(x) }"
    branches = f"then_branch = {then}, else_branch = {otherwise}"
    assert "TRT002" in rules(graph(f"(float[3,3] x, bool c) => (float y) {{ y = If(c) <{branches}> }}"))
    inner = helper.make_function(
        "my.ops", "F", ["a"], ["b"], [helper.make_node("Det", ["a"], ["b"])], [helper.make_opsetid("", 18)]
    )
    model = graph("(float[3,3] x) => (float y) { y = my.ops.F(x) }")
    model.functions.append(inner)
    assert rules(model) == {"TRT002"}


def test_a_free_dimension_asks_for_a_profile() -> None:
    found = only(graph("(float[n,3,h,8] x) => (float[n,3,h,8] y) { y = Relu(x) }"), "TRT150")
    assert found.severity == "warning"
    assert "[0, 2]" in found.message


@pytest.mark.parametrize(("opset", "rule"), [(8, "TRT005"), (21, "TRT005"), (9, None), (20, None)])
def test_an_opset_outside_what_jetpack_6_reads_is_a_warning(opset: int, rule: str | None) -> None:
    assert rules(graph(f"{X} {{ y = Relu(x) }}", opset)) == ({rule} if rule else set())


@pytest.mark.parametrize(
    ("opset", "ir_version", "expected"),
    [
        (21, 10, set()),
        (22, 10, {"ORT004"}),
        (18, 11, {"ORT004"}),
        (27, 10, {"ORT003", "ORT004"}),
        (18, 14, {"ORT003", "ORT004"}),
    ],
)
def test_versions_that_onnx_runtime_does_not_read_are_named(opset: int, ir_version: int, expected: set[str]) -> None:
    assert rules(graph(f"{X} {{ y = Relu(x) }}", opset, ir_version), "onnxruntime") == expected


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"point": np.uint8(128)}, set()),
        ({"point": np.uint8(128), "weight": np.int8(65)}, {"ORT110", "OV110"}),
        ({"point": np.int8(0)}, {"ORT111", "OV111"}),
        ({"point": np.uint8(128), "weight": np.uint8(60)}, {"ORT114", "OV114"}),
        ({"point": np.full(4, 128, np.uint8), "scale": np.full(4, 0.1, np.float32)}, {"ORT112"}),
    ],
)
def test_layouts_that_saturate_or_do_not_fuse_on_cpus_are_warnings(changes: dict[str, Any], expected: set[str]) -> None:
    found = lint(convolution(**changes), ["onnxruntime", "openvino"])
    assert {item.rule for item in found} == expected
    assert {item.severity for item in found} <= {"warning"}


RANGE_6 = {"s2": np.float32(6 / 255), "z2": np.uint8(0)}
RANGE_9 = {"s2": np.float32(9 / 255), "z2": np.uint8(0)}
CLIP_6 = {"lo": np.float32(0), "hi": np.float32(6)}


@pytest.mark.parametrize(
    ("after", "values", "fuses"),
    [
        ("Relu", RANGE_6, True),
        ("Clip", {**RANGE_6, **CLIP_6}, True),
        ("Clip", {**RANGE_9, **CLIP_6}, False),
        ("Relu", {"s2": np.float32(0.1), "z2": np.uint8(128)}, False),
        ("HardSwish", RANGE_6, False),
    ],
)
def test_an_activation_before_the_quantizer_stops_fusion_unless_it_changes_nothing(
    after: str, values: dict[str, Any], fuses: bool
) -> None:
    model = convolution(np.uint8(128), after=after, **values)
    assert ("ORT113" not in rules(model, "onnxruntime")) is fuses
    require("onnxruntime")
    assert ("QLinearConv" in _optimized(model)) is fuses


def _optimized(model: Any) -> set[str]:
    """The operators that ONNX Runtime's CPU provider is left with."""
    import tempfile

    import onnxruntime

    with tempfile.TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.optimized_model_filepath = str(Path(folder, "optimized.onnx"))
        onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return {node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node}


def test_half_precision_gains_nothing_on_cpus() -> None:
    weights = ",".join(["14336"] * 9)  # the bits of 0.5
    text = f"(float16[1,3,8,8] x) => (float16[1,3,8,8] y) <float16[3,3,1,1] w = {{{weights}}}> {{ y = Conv(x, w) }}"
    assert rules(graph(text), "onnxruntime", "openvino") == {"ORT120", "OV120"}


def test_operators_without_a_kernel_are_those_that_onnx_runtime_refuses() -> None:
    require("onnxruntime")
    from onnxruntime.capi.onnxruntime_pybind11_state import NotImplemented as NoKernel

    text = "(float[1,3,8,8] x, float[1,4] r, int64[1] b) => (float[1,3,1,1] y) { y = RoiAlign(x, r, b) }"
    for opset, refused in ((21, False), (22, True)):
        model = graph(text, opset)
        assert ("ORT001" in rules(model, "onnxruntime")) is refused
        if refused:
            with pytest.raises(NoKernel, match="RoiAlign"):
                _optimized(model)
        else:
            _optimized(model)


def test_operators_without_a_conversion_rule_are_those_that_openvino_refuses(tmp_path: Path) -> None:
    require("openvino")
    import openvino

    model = graph("(float[3,3] x) => (float y) { y = Det(x) }")
    onnx.save(model, str(tmp_path / "det.onnx"))
    assert rules(model, "openvino") == {"OV001"}
    with pytest.raises(RuntimeError, match="No conversion rule found for operations: Det"):
        openvino.Core().read_model(str(tmp_path / "det.onnx"))


def test_every_rule_has_an_id_a_mend_and_a_link() -> None:
    for rule in RULES:
        assert rule.id.startswith(("TRT", "ORT", "OV"))
        assert rule.id.lstrip("TROV").isdigit()
        assert rule.mend
        assert rule.evidence.startswith("https://")
        assert set(rule.targets) <= set(TARGETS)
    assert len({(rule.id, target) for rule in RULES for target in rule.targets}) == sum(len(r.targets) for r in RULES)


def test_only_errors_answer_for_refusals() -> None:
    """What the parser refuses must not be a warning for the target that was compared with it."""
    assert all(rule.severity == "error" for rule in RULES if rule.refusals and "tensorrt_rtx" in rule.targets)


def test_errors_come_before_warnings() -> None:
    severities = [item.severity for item in lint(convolution(np.uint8(3), weight=np.int8(127)))]
    assert severities == sorted(severities)
    assert set(severities) == {"error", "warning"}


def test_a_node_without_a_name_is_named_by_its_output() -> None:
    found = only(graph("(float[3,3] x) => (float y) { y = Det(x) }"), "TRT002")
    assert found.node == "y"
    assert found.message.startswith("node giving 'y' (Det): ")


def _cut(path: Path) -> None:
    path.write_bytes(convolution().SerializeToString()[:-7])


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (_cut, "is not an ONNX file, or is cut short"),
        (lambda path: path.write_bytes(b""), "is not a whole ONNX model"),
        (lambda path: path.write_text("no model"), "not an ONNX file|not a whole ONNX model"),
        (lambda path: None, "cannot read .*No such file"),
    ],
    ids=["cut", "empty", "text", "missing"],
)
def test_a_broken_file_is_one_line(tmp_path: Path, write: Callable[[Path], object], message: str) -> None:
    write(tmp_path / "model.onnx")
    with pytest.raises(InputError, match=message) as caught:
        lint(tmp_path / "model.onnx")
    assert "\n" not in str(caught.value)


def test_a_node_that_lacks_what_its_operator_needs_is_named() -> None:
    with pytest.raises(InputError, match=r"node giving 'y' \(Conv\) has 1 inputs .* takes 2 to 3 inputs"):
        lint(graph(f"{X} {{ y = Conv(x) }}"))
    with pytest.raises(InputError, match=r"\(Cast\) lacks the attribute 'to'"):
        lint(graph(f"{X} {{ y = Cast(x) }}"))


def test_an_unknown_target_or_type_is_refused() -> None:
    with pytest.raises(InputError, match="unknown lint target 'tensorr'; did you mean 'tensorrt'"):
        lint(convolution(), ["tensorr"])
    with pytest.raises(InputError, match=r"path of an ONNX file or an onnx.ModelProto, got bytes"):
        lint(b"model")


def test_weights_in_another_file_are_read_where_they_are_needed(tmp_path: Path) -> None:
    options = {"save_as_external_data": True, "location": "weights.bin", "size_threshold": 0}
    onnx.save(convolution(scale=np.float32(0)), str(tmp_path / "model.onnx"), **options)
    assert rules(tmp_path / "model.onnx") == {"TRT111"}
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(InputError, match="cannot read the values of"):
        lint(tmp_path / "model.onnx")


def test_the_model_is_not_changed() -> None:
    model = convolution(np.uint8(0))
    before = model.SerializeToString(deterministic=True)
    lint(model)
    assert model.SerializeToString(deterministic=True) == before


OPERATORS = [
    "Add",
    "Cast",
    "Conv",
    "DequantizeLinear",
    "QuantizeLinear",
    "ReduceSum",
    "Reshape",
    "Resize",
    "Shape",
    "TopK",
]
NODES = st.lists(
    st.tuples(st.sampled_from(OPERATORS), st.lists(st.sampled_from(["x", "w", "i", "", "o0", "o1"]), max_size=4)),
    min_size=1,
    max_size=4,
)


@settings(max_examples=150, deadline=None)
@given(NODES)
def test_any_graph_is_linted_or_refused_with_a_reason(parts: list[tuple[str, list[str]]]) -> None:
    nodes = [helper.make_node(kind, names, [f"o{i}"]) for i, (kind, names) in enumerate(parts)]
    stored = [numpy_helper.from_array(np.ones((2, 2), np.float32), "w"), numpy_helper.from_array(np.array([0]), "i")]
    ends = [helper.make_tensor_value_info(name, 1, None) for name in ("x", "o0")]
    proto = helper.make_graph(nodes, "g", ends[:1], ends[1:], stored)
    model = helper.make_model(proto, opset_imports=[helper.make_opsetid("", 18)])
    try:
        found = lint(model)
    except InputError:
        return
    assert all(item.message and item.mend and item.evidence for item in found)


@pytest.mark.parametrize(("point", "status"), [(np.int8(0), 0), (np.uint8(0), 1)])
def test_the_verb_fails_where_there_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], point: Any, status: int
) -> None:
    onnx.save(convolution(point), str(tmp_path / "model.onnx"))
    assert main(["lint", str(tmp_path / "model.onnx"), "--for", "tensorrt"]) == status
    assert ("TRT115 error for tensorrt\n  node 'quantize' (QuantizeLinear)" in capsys.readouterr().out) is bool(status)


@pytest.fixture
def bundle_with(tmp_path: Path) -> Callable[[str], Path]:
    """Write a bundle whose one graph is a misread int8 network under the given file name."""

    def write(name: str) -> Path:
        image = TensorSpec("x", "float32", (1, 4, 8, 8))
        manifest = Manifest(
            format=1,
            name="tiny",
            task="classification",
            graphs={"model": Graph((image,), (image,))},
            preprocess=Preprocess(size=(8, 8)),
            postprocess={},
            labels=None,
            variants={"onnx-int8": Variant("onnxruntime", "int8", {"model": f"onnx-int8/{name}"})},
            source=Source("0.1.0"),
            files={},
        )
        with new_folder(tmp_path / "bundle") as folder:
            (folder / "onnx-int8").mkdir()
            (folder / "onnx-int8" / name).write_bytes(convolution(np.uint8(3)).SerializeToString())
            write_manifest(folder, manifest)
        return tmp_path / "bundle"

    return write


def test_the_verb_reads_the_onnx_graphs_of_a_bundle(
    capsys: pytest.CaptureFixture[str], bundle_with: Callable[[str], Path]
) -> None:
    bundle = bundle_with("model.onnx")
    assert main(["lint", str(bundle), "--for", "tensorrt"]) == 1
    assert capsys.readouterr().out.startswith("onnx-int8/model.onnx: 4 errors")


def test_a_bundle_without_an_onnx_graph_is_refused(
    capsys: pytest.CaptureFixture[str], bundle_with: Callable[[str], Path]
) -> None:
    assert main(["lint", str(bundle_with("model.xml"))]) == 2
    assert "holds no ONNX graph to lint" in capsys.readouterr().err


def test_the_verb_speaks_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    onnx.save(convolution(np.uint8(0)), str(tmp_path / "model.onnx"))
    assert main(["lint", str(tmp_path / "model.onnx"), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert not found["ok"]
    assert found["targets"] == list(TARGETS)
    assert set(found["graphs"]["model.onnx"][0]) == {
        "rule", "severity", "target", "node", "message", "mend", "evidence",
    }  # fmt: skip


def test_the_verb_shortens_a_long_list(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    body = " ".join(f"t{i} = Det(x)" for i in range(8))
    onnx.save(graph(f"(float[3,3] x) => (float y) {{ {body} y = Relu(t0) }}"), str(tmp_path / "model.onnx"))
    assert main(["lint", str(tmp_path / "model.onnx"), "--for", "tensorrt"]) == 1
    assert "model.onnx: 8 errors, 0 warnings for tensorrt" in (out := capsys.readouterr().out)
    assert "and 3 more places; --json lists them" in out


@pytest.mark.parametrize("arguments", [["nowhere.onnx"], ["model.onnx", "--for", "coreml"]])
def test_wrong_input_is_status_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    onnx.save(convolution(), "model.onnx")
    assert main(["lint", *arguments]) == 2
    assert capsys.readouterr().err.startswith("edgecv: ")

"""Bisection: the planted node is named, within the promised number of builds, in chains, branches and QDQ."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgecv.errors import ConversionError
from edgecv.runtimes.session import Session, SessionOptions
from edgecv.tensors import Array
from tests.conftest import require

for _library in ("onnx", "onnxruntime"):
    require(_library)

import onnx  # noqa: E402  (after the check that it is there)
import onnx.numpy_helper  # noqa: E402
import onnx.parser  # noqa: E402

from edgecv.converters.bisecting import Divergence, Side, bisect  # noqa: E402
from edgecv.converters.onnx_to_fp16 import fp16_from_onnx  # noqa: E402
from edgecv.runtimes.ort import OrtSession  # noqa: E402

X = np.random.default_rng(0).normal(size=(2, 4)).astype(np.float32)
BRANCHES = """g (float[n, 4] x) => (float[n, 8] y) {
    [a] a = Add(x, w0) [left] l = Mul(a, w1) [skip] s = Sub(a, w2) [right] r = Mul(s, w3)
    [join] j = Add(l, r) [clip] c = Clip(j, low, high) [both] y = Concat<axis=1>(c, s) }"""


class Counted:
    """Opens parts on ONNX Runtime, and counts them."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, path: Path) -> Session:
        self.count += 1
        return OrtSession(path, SessionOptions(threads=1))


def _graph(text: str, opset: int = 18, **weights: Any) -> Any:
    model = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["": {opset}]> {text}')
    model.graph.initializer.extend(onnx.numpy_helper.from_array(np.asarray(v), k) for k, v in weights.items())
    return model


def _floats(values: Mapping[str, float]) -> dict[str, Any]:
    return {key: np.float32(value) for key, value in values.items()}


def _branches(**changed: float) -> Any:
    weights = {"w0": 0.1, "w1": 2.0, "w2": 0.3, "w3": 0.5, "low": -9.0, "high": 9.0}
    return _graph(BRANCHES, **_floats(weights | changed))


def _chain(length: int, **changed: float) -> Any:
    steps = "".join(f"[n{i}] t{i} = Add(t{i - 1}, w{i}) " for i in range(1, length + 1))
    text = f"g (float[n, 4] t0) => (float[n, 4] t{length}) {{ {steps} }}"
    return _graph(text, **_floats({f"w{i}": changed.get(f"w{i}", i) for i in range(1, length + 1)}))


def _find(a: Any, b: Any, tolerance: float = 1e-6, **inputs: Array) -> tuple[Divergence | None, int]:
    ours, theirs = Counted(), Counted()
    found = bisect(Side(a, ours), Side(b, theirs), inputs or {"x": X}, tolerance)
    assert ours.count == theirs.count
    return found, ours.count


@pytest.mark.parametrize(
    ("weight", "node"),
    [("w0", "a"), ("w1", "left"), ("w2", "skip"), ("w3", "right"), ("low", "clip"), ("high", "clip")],
)
def test_a_wrong_constant_is_found_at_its_node_in_branches(weight: str, node: str) -> None:
    changed = {"low": 0.5, "high": -0.5}.get(weight, 3.0)
    found, builds = _find(_branches(), _branches(**{weight: changed}))
    assert found is not None
    assert (found.node, found.confirmed, found.builds) == (node, True, builds)
    assert builds <= math.ceil(math.log2(7)) + 2
    assert found.inputs is None or found.inputs.share == 0


@settings(max_examples=12, deadline=None)
@given(st.integers(1, 40), st.data())
def test_every_place_of_a_chain_is_found_within_the_promised_builds(length: int, draw: Any) -> None:
    place = draw.draw(st.integers(1, length))
    found, builds = _find(_chain(length), _chain(length, **{f"w{place}": -1.0}), t0=X)
    assert found is not None
    assert found.node == f"n{place}"
    assert builds <= math.ceil(math.log2(length)) + 2


def test_graphs_that_agree_need_one_build() -> None:
    assert _find(_branches(), _branches()) == (None, 1)


def test_a_difference_that_vanishes_on_its_way_is_none() -> None:
    assert _find(_branches(high=-8), _branches(high=-8, w3=0.6)) == (None, 1)  # everything is clipped to -8


def test_a_tolerance_that_covers_the_difference_finds_nothing() -> None:
    assert _find(_branches(), _branches(w1=2.0001))[0] is not None
    assert _find(_branches(), _branches(w1=2.0001), 1e-2) == (None, 1)


def test_both_sides_are_described() -> None:
    found, _ = _find(_branches(), _branches(w1=4.0))
    assert found is not None
    a, b, wanted = found.output.a, found.output.b, 2 * (X + np.float32(0.1))
    assert found.output.tensor == "l"
    assert np.allclose([a.min, a.max, a.mean, a.std], [f(wanted) for f in (np.min, np.max, np.mean, np.std)], atol=1e-5)
    assert np.allclose([b.min, b.max, b.mean, b.std], np.multiply(2, [a.min, a.max, a.mean, a.std]), atol=1e-5)
    assert np.isclose(found.output.max_abs, np.abs(wanted).max(), rtol=1e-5)
    assert np.isclose(found.output.share, np.abs(wanted).max() / wanted.std(), rtol=1e-5)
    assert np.isclose(found.output.cosine, 1)
    lines = str(found).splitlines()
    assert lines[0].startswith("node 'left' (Mul) is the first to differ, by itself: 'l' by at most ")
    assert [line.partition(" min ")[0] for line in lines[1:]] == ["  a:", "  b:"]


def test_differences_that_add_up_are_told_from_a_wrong_node() -> None:
    a = _chain(16)
    b = _chain(16, **{f"w{i}": i + 1e-3 for i in range(1, 17)})
    found, _ = _find(a, b, 5e-3, t0=X)
    assert found is not None
    assert not found.confirmed
    assert found.alone.share < 5e-3 < found.output.share
    assert "by what added up before it" in str(found)


QDQ = """g (float[n, 4] x) => (float[n, 3] y) {
    [q1] a = QuantizeLinear(x, s1, z) [d1] b = DequantizeLinear(a, s1d, z) [dw] v = DequantizeLinear(w, sw, zw)
    [gemm] c = MatMul(b, v) [q2] d = QuantizeLinear(c, s2, z) [d2] e = DequantizeLinear(d, s2d, z)
    [out] y = Relu(e) }"""


def _qdq(**changed: float) -> Any:
    weights = {"s1": 0.02, "s1d": 0.02, "sw": 0.01, "s2": 0.05, "s2d": 0.05}
    rng = np.random.default_rng(1)
    fixed: Any = {"w": rng.integers(-90, 90, (4, 3)).astype(np.int8), "z": np.uint8(128), "zw": np.int8(0)}
    return _graph(QDQ, **(fixed | _floats(weights | changed)))


@pytest.mark.parametrize(("scale", "node"), [("s1", "q1"), ("s1d", "d1"), ("sw", "dw"), ("s2", "q2"), ("s2d", "d2")])
def test_a_wrong_scale_is_found_at_its_quantizer(scale: str, node: str) -> None:
    wrong = {"s1": 0.03, "s1d": 0.03, "sw": 0.015, "s2": 0.07, "s2d": 0.07}[scale]
    found, _ = _find(_qdq(), _qdq(**{scale: wrong}))
    assert found is not None
    assert (found.node, found.confirmed) == (node, True)


def test_float16_with_its_casts_is_compared_by_the_nodes_in_common() -> None:
    assert _find(_branches(), fp16_from_onnx(_branches()), 2e-2) == (None, 1)
    for weight, node in (("w1", "left"), ("w2", "skip"), ("w3", "right")):
        found, _ = _find(_branches(), fp16_from_onnx(_branches(**{weight: 5.0})), 2e-2)
        assert found is not None
        assert (found.node, found.confirmed) == (node, True)


def test_a_node_of_one_graph_alone_is_no_place_to_cut() -> None:
    longer = """g (float[n, 4] x) => (float[n, 4] y) {
        [a] a = Add(x, w) [own] b = Neg(a) [own2] c = Neg(b) [last] y = Mul(c, v) }"""
    right = _graph(longer, w=np.float32(1), v=np.float32(2))
    shorter = "g (float[n, 4] x) => (float[n, 4] y) { [a] a = Add(x, w) [last] y = Mul(a, v) }"
    for a, b in ((0, 1), (1, 0)):
        for v, node in ((2, "a"), (3, "last")):
            other = _graph(shorter, w=np.float32(1 if v == 3 else 4), v=np.float32(v))
            sides = (right, other)
            found, _ = _find(sides[a], sides[b])
            assert found is not None
            assert (found.node, found.confirmed) == (node, True)


def test_nodes_without_names_are_known_by_their_outputs() -> None:
    text = "g (float[n, 4] x) => (float[n, 4] y) { a = Add(x, w) y = Mul(a, v) }"
    found, _ = _find(_graph(text, w=np.float32(1), v=np.float32(2)), _graph(text, w=np.float32(1), v=np.float32(4)))
    assert found is not None
    assert (found.node, found.operator) == ("y", "Mul")


def test_a_branch_inside_a_node_brings_what_it_reads() -> None:
    text = """g (float[n, 4] x) => (float[n, 4] y) {
        c = Constant<value = bool {1}>() [a] a = Add(x, w) [choice] t = If (c) <
        then_branch = u () => (float[n, 4] p) { p = Add(a, a) }, else_branch = v () => (float[n, 4] q) { q = Neg(a) }>
        [last] y = Mul(t, k) }"""
    for weights, node in (({"w": 2, "k": 1}, "a"), ({"w": 1, "k": 2}, "last")):
        right, wrong = (_floats(given) for given in ({"w": 1, "k": 1}, weights))
        found, _ = _find(_graph(text, **right), _graph(text, **wrong))
        assert found is not None
        assert found.node == node


def test_not_a_number_is_a_difference_unless_both_have_it() -> None:
    text = "g (float[n, 4] x) => (float[n, 4] y) { [root] r = Sqrt(x) [add] y = Add(r, w) }"
    assert _find(_graph(text, w=np.float32(1)), _graph(text, w=np.float32(1))) == (None, 1)  # NaN on both sides
    found, _ = _find(_graph(text, w=np.float32(1)), _graph(text, w=np.float32(np.nan)))
    assert found is not None
    assert (found.node, found.output.share) == ("add", np.inf)


def test_graphs_without_a_node_in_common_are_refused() -> None:
    other = _graph("g (float[n, 4] x) => (float[n, 4] y) { [other] y = Neg(x) }")
    with pytest.raises(ConversionError, match="no node in common: their nodes are matched by name"):
        _find(_branches(), other)


def test_a_part_that_a_side_cannot_run_is_told() -> None:
    text = "g (float[n, 4] x) => (float[m, k] y) { [a] a = Add(x, x) [b] y = Reshape(a, s) }"
    good, bad = _graph(text, s=np.array([-1, 4])), _graph(text, s=np.array([-1, 3]))
    with pytest.raises(
        ConversionError, match=r"side b cannot run its graph cut behind node 'b' \(Reshape\): onnxruntime"
    ):
        _find(good, bad)

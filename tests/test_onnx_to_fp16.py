"""float16 in the graph: the same answers within rounding, one float type per node, inputs and outputs untouched."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgecv.errors import ConversionError
from tests.conftest import require

for _library in ("torch", "onnx", "onnxruntime", "openvino"):
    require(_library)

import onnx  # noqa: E402  (after the check that it is there)
import onnx.defs  # noqa: E402
import onnx.numpy_helper  # noqa: E402
import onnx.parser  # noqa: E402
import torch  # noqa: E402
from onnx import TensorProto  # noqa: E402
from torch import nn  # noqa: E402

import edgecv  # noqa: E402
from edgecv import Preprocess, models  # noqa: E402
from edgecv.converters.onnx_check import checked, element_types, opset_of, plain  # noqa: E402
from edgecv.converters.onnx_from_torch import onnx_from_torch  # noqa: E402
from edgecv.converters.onnx_to_fp16 import fp16_from_onnx  # noqa: E402
from edgecv.images import find_images, read_image  # noqa: E402
from edgecv.tensors import Array  # noqa: E402

FLOATS = {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE}


def _graph(text: str, opset: int = 18, **weights: Any) -> Any:
    model = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["": {opset}]> {text}')
    model.graph.initializer.extend(onnx.numpy_helper.from_array(np.asarray(v), k) for k, v in weights.items())
    return model


def _floats(values: Any) -> Array:
    return np.asarray(values, np.float32)


def _answer(model: Any, backend: str, tmp_path: Path, **inputs: Any) -> list[Any]:
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString(deterministic=True))
    with edgecv.open_session(path, backend=backend, threads=1) as session:
        found = session.run(inputs)
        return [found[spec.name] for spec in session.outputs]


def _kinds(model: Any) -> dict[str, set[int]]:
    """The float types each node reads and writes, but for casts and what ONNX fixes as float32."""
    types, found = element_types(checked(model)), {}
    for node in model.graph.node:
        schema = onnx.defs.get_schema(node.op_type, opset_of(model), "")
        formals = list(schema.inputs)
        formals += formals[-1:] * len(node.input)
        read = {
            types[name] for name, formal in zip(node.input, formals, strict=False) if name and len(formal.types) > 1
        }
        if node.op_type != "Cast":
            found[node.name or node.output[0]] = (read | {types[name] for name in node.output}) & FLOATS
    return found


def _casts(model: Any) -> list[str]:
    return [node.output[0] for node in model.graph.node if node.op_type == "Cast"]


class Block(nn.Module):
    """A convolution with its batch norm, a clip, a residual sum and a concatenation."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU6())
        self.second = nn.Conv2d(after, after, 3, padding=1, groups=after)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        first = self.first(image)
        return torch.cat([first + self.second(first), first], 1)


class Means(nn.Module):
    """The mean of every channel."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return image.mean((2, 3))


def _first(model: Any, *operators: str) -> list[str]:
    return [next(node.name for node in model.graph.node if node.op_type == operator) for operator in operators]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Any:
    torch.manual_seed(0)
    pre = Preprocess(size=(32, 32), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    network = nn.Sequential(Block(3, 8), Block(16, 8), Means(), nn.Linear(16, 7)).eval()
    return onnx.load(str(onnx_from_torch(network, tmp_path_factory.mktemp("fp16") / "model.onnx", pre)))


def test_no_node_of_a_network_mixes_float_types(exported: Any) -> None:
    kinds = _kinds(fp16_from_onnx(exported))
    assert all(len(kind) <= 1 for kind in kinds.values()), kinds
    half = [name for name, kind in kinds.items() if kind == {TensorProto.FLOAT16}]
    assert [name for name in kinds if name not in half] == ["node_permute", *_first(exported, "Add")]


def test_a_network_answers_alike_on_both_runtimes(exported: Any, tmp_path: Path) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3)).astype(np.uint8)
    (wanted,) = _answer(exported, "onnxruntime", tmp_path, image=frames)
    for backend in ("onnxruntime", "openvino"):
        (got,) = _answer(fp16_from_onnx(exported), backend, tmp_path, image=frames)
        assert got.dtype == np.float32
        assert 0 < np.abs(got - wanted).max() < 0.02 * wanted.std()


def test_inputs_outputs_names_and_metadata_stay_and_the_weights_halve(exported: Any) -> None:
    half = fp16_from_onnx(exported)
    assert (half.graph.input, half.graph.output) == (exported.graph.input, exported.graph.output)
    assert half.metadata_props == exported.metadata_props
    assert {node.name for node in exported.graph.node} < {node.name for node in half.graph.node}
    assert len(half.graph.node) == len(exported.graph.node) + 2  # after the normalization, and before the output
    sizes = [sum(len(item.raw_data) for item in model.graph.initializer) for model in (half, exported)]
    assert sizes[0] < 0.52 * sizes[1]


def test_the_same_graph_gives_the_same_bytes_and_is_left_alone(exported: Any) -> None:
    before = exported.SerializeToString(deterministic=True)
    first, second = (fp16_from_onnx(exported).SerializeToString(deterministic=True) for _ in range(2))
    assert first == second
    assert exported.SerializeToString(deterministic=True) == before


def test_a_graph_in_float16_stays_as_it_is(exported: Any) -> None:
    half = fp16_from_onnx(exported)
    assert fp16_from_onnx(half).graph.node == half.graph.node


def test_photos_keep_their_class(data: Path, tmp_path: Path) -> None:
    weights = data / "weights" / "squeezenet" / "squeezenet1_1.pth"
    pre = Preprocess(size=(224, 224), resize=256, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    network = models.create("squeezenet1_1", weights=weights).eval()
    single = onnx.load(str(onnx_from_torch(network, tmp_path / "network.onnx", pre)))
    frames = pre.batch([read_image(path) for path in find_images(data / "imagenet" / "images")[::50]])
    (wanted,) = _answer(single, "onnxruntime", tmp_path, image=frames)
    for backend in ("onnxruntime", "openvino"):
        (got,) = _answer(fp16_from_onnx(single), backend, tmp_path, image=frames)
        assert (got.argmax(1) == wanted.argmax(1)).all()
        assert np.abs(got - wanted).max() < 0.02 * wanted.std()


def test_a_weight_beyond_float16_is_refused_with_its_node() -> None:
    model = _graph("g (float[1, 2] x) => (float[1, 2] y) { [head] y = MatMul(x, w) }", w=_floats([[1, 2], [3, -7e4]]))
    with pytest.raises(
        ConversionError, match=r"node 'head' \(MatMul\): 'w' holds -7e\+04, float16 ends at 65504; keep"
    ):
        fp16_from_onnx(model)


def test_the_largest_weights_that_round_into_float16_are_taken() -> None:
    model = _graph("g (float[1, 1] x) => (float[1, 1] y) { y = MatMul(x, w) }", w=_floats([[65519]]))
    assert onnx.numpy_helper.to_array(fp16_from_onnx(model).graph.initializer[0]) == 65504


def test_a_scalar_beyond_float16_keeps_its_node_in_float32(tmp_path: Path) -> None:
    text = "g (float[1, 2] x) => (float[1, 2] y) { r = Relu(x) s = Mul(r, c) t = Div(s, c) y = Sqrt(t) }"
    half = fp16_from_onnx(_graph(text, c=np.float32(1e6)))
    kinds = _kinds(half)
    assert [kinds[name] for name in ("r", "s", "t")] == [{kind} for kind in (10, 1, 1)]
    assert np.allclose(_answer(half, "onnxruntime", tmp_path, x=_floats([[4, 9]]))[0], [[2, 3]])


@pytest.mark.parametrize("limit", [3.4e38, float("inf"), 1e6])
def test_a_bound_beyond_float16_becomes_its_largest_value(limit: float, tmp_path: Path) -> None:
    text = "g (float[1, 2] x) => (float[1, 2] y) { r = Relu(x) y = Clip(r, low, high) }"
    half = fp16_from_onnx(_graph(text, low=np.float32(0), high=np.float32(limit)))
    assert np.allclose(_answer(half, "onnxruntime", tmp_path, x=_floats([[-1, 9]]))[0], [[0, 9]])


def test_a_divisor_that_would_vanish_stays_above_zero(tmp_path: Path) -> None:
    text = "g (float[1, 2] x) => (float[1, 2] y) { r = Relu(x) s = Add(r, c) y = Div(r, s) }"
    half = fp16_from_onnx(_graph(text, c=np.float32(1e-12)))
    assert np.allclose(_answer(half, "onnxruntime", tmp_path, x=_floats([[0, 9]]))[0], [[0, 1]])


def test_sums_of_squares_do_not_overflow(tmp_path: Path) -> None:
    text = "g (float[1, 4] x) => (float[1, 4] y) { r = Relu(x) n = ReduceL2<keepdims=1>(r, axes) y = Div(r, n) }"
    half = fp16_from_onnx(_graph(text, axes=np.array([1])))
    x = _floats([[300, 400, 0, 0]])
    assert np.allclose(_answer(half, "onnxruntime", tmp_path, x=x)[0], x / 500, atol=1e-3)


def test_what_onnx_defines_as_float32_stays_so(tmp_path: Path) -> None:
    text = "g (float[1, 1, 2, 2] x) => (float[1, 1, 4, 4] y) { r = Relu(x) y = Resize<mode='nearest'>(r, , s) }"
    half = fp16_from_onnx(_graph(text.replace("'", '"'), s=_floats([1, 1, 2, 2])))
    types = element_types(half)
    assert (types["s"], types["r"]) == (TensorProto.FLOAT, TensorProto.FLOAT16)
    x = np.arange(4, dtype=np.float32).reshape(1, 1, 2, 2)
    assert (_answer(half, "onnxruntime", tmp_path, x=x)[0] == x.repeat(2, 2).repeat(2, 3)).all()


def test_two_nodes_that_stay_in_float32_share_one_cast(tmp_path: Path) -> None:
    text = """g (float[1, 4] x) => (float[1, 1] y) {
        r = Relu(x) a = ReduceL2(r, axes) b = ReduceSumSquare(r, axes) c = Neg(a) d = Neg(b) y = Div(d, c) }"""
    half = fp16_from_onnx(_graph(text, axes=np.array([1])))
    assert _casts(half) == ["x_fp16", "r_fp32", "a_fp16", "b_fp16", "y"]
    assert np.allclose(_answer(half, "onnxruntime", tmp_path, x=_floats([[3, 4, 0, 0]]))[0], 5)


def test_a_constant_wanted_in_both_types_is_written_in_both(tmp_path: Path) -> None:
    text = "g (float[1, 2] x) => (float[1, 2] y) { a = Mul(x, c) r = Relu(a) y = Mul(r, c) }"
    half = fp16_from_onnx(_graph(text, c=_floats([0.1, 3])))
    assert {item.name: item.data_type for item in half.graph.initializer} == {"c": 1, "c_fp16": 10}
    assert np.allclose(_answer(half, "onnxruntime", tmp_path, x=_floats([[1, 2]]))[0], [[0.01, 18]], rtol=1e-3)


def test_sizes_are_computed_exactly(tmp_path: Path) -> None:
    text = """g (float[1, n] x) => (int64[1] m, float[1, n] y) {
        y = Relu(x) s = Shape<start=1>(x) f = Cast<to=1>(s) h = Mul(f, c) m = Cast<to=7>(h) }"""
    half = fp16_from_onnx(_graph(text, c=np.float32(1)))
    assert _answer(half, "onnxruntime", tmp_path, x=np.zeros((1, 4099), np.float32))[0] == 4099  # float16: 4100


def test_an_output_that_is_read_again_is_computed_once(tmp_path: Path) -> None:
    text = "g (float[1, 2] x) => (float[1, 2] a, float[1, 2] y) { a = Relu(x) y = Sqrt(a) }"
    half = fp16_from_onnx(_graph(text))
    assert _casts(half) == ["x_fp16", "a", "y"]
    assert [list(a[0]) for a in _answer(half, "onnxruntime", tmp_path, x=_floats([[4, 9]]))] == [[4, 9], [2, 3]]


QDQ = """g (float[1, 2] x) => (float[1, 1] y) {
    r = Relu(x)
    q = QuantizeLinear(r, s, z) d = DequantizeLinear(q, s, z) v = DequantizeLinear(w, t, z) y = MatMul(d, v) }"""


@pytest.mark.parametrize(("opset", "scale", "kind"), [(19, 0.05, 10), (18, 0.05, 1), (19, 2e-6, 1)])
def test_quantizers_take_float16_where_the_opset_and_their_scale_allow(
    opset: int, scale: float, kind: int, tmp_path: Path
) -> None:
    weights = {"s": np.float32(scale), "t": np.float32(scale), "z": np.int8(0), "w": np.array([[100], [50]], np.int8)}
    model = _graph(QDQ, opset, **weights)
    half = fp16_from_onnx(model)
    kinds = _kinds(half)
    assert (kinds["d"], kinds["v"], kinds["r"]) == ({kind}, {kind}, {10})
    x = _floats([[40, 20]]) * np.float32(scale)
    wanted = _answer(model, "onnxruntime", tmp_path, x=x)[0]
    assert np.allclose(_answer(half, "onnxruntime", tmp_path, x=x)[0], wanted, rtol=0.01, atol=1e-7)


def test_constant_nodes_and_initializers_among_the_inputs_are_taken_in(tmp_path: Path) -> None:
    text = """g (float[1, 2] x, float[2] w) => (float[1, 2] y) {
        c = Constant<value_floats=[1.0, 2.0]>() d = Constant<value = float[2] {3.0, 4.0}>()
        e = Constant<value_float=0.5>() r = Relu(x) a = Mul(r, w) b = Add(a, c) f = Mul(b, e) y = Add(f, d) }"""
    model = _graph(text, w=_floats([1, 1]))
    assert [value.name for value in plain(model).graph.input] == ["x"]
    half = fp16_from_onnx(model)
    assert {node.op_type for node in half.graph.node} == {"Add", "Cast", "Mul", "Relu"}
    assert np.allclose(_answer(half, "onnxruntime", tmp_path, x=_floats([[1, 2]]))[0], [[4, 6]])


def test_a_local_function_is_taken_apart(tmp_path: Path) -> None:
    text = """<ir_version: 10, opset_import: ["": 18, "own": 1]>
        g (float[1, 2] x) => (float[1, 2] y) { y = own.twice(x) }
        <domain: "own", opset_import: ["": 18]> twice (a) => (b) { r = Relu(a) b = Add(r, r) }"""
    half = fp16_from_onnx(onnx.parser.parse_model(text))
    assert not half.functions
    assert np.allclose(_answer(half, "onnxruntime", tmp_path, x=_floats([[1, 2]]))[0], [[2, 4]])


def test_a_branch_is_refused_with_its_node() -> None:
    text = """g (bool c, float[1] x) => (float[1] y) { [choice] y = If (c) <
        then_branch = a () => (float[1] t) { t = Relu(x) }, else_branch = b () => (float[1] e) { e = Neg(x) }> }"""
    with pytest.raises(ConversionError, match=r"node 'choice' \(If\) holds a graph of its own; export"):
        fp16_from_onnx(_graph(text))


def test_a_node_of_another_domain_stays_in_float32() -> None:
    text = """<ir_version: 10, opset_import: ["": 18, "com.microsoft": 1]>
        g (float[1, 2] x) => (float[1, 2] y) <float[1, 2] r, float[1, 2] a>
        { r = Relu(x) a = com.microsoft.QuickGelu(r) y = Relu(a) }"""
    assert _casts(fp16_from_onnx(onnx.parser.parse_model(text))) == ["x_fp16", "r_fp32", "a_fp16", "y"]


def test_an_invalid_graph_is_refused_in_one_line() -> None:
    model = _graph("g (float[1, 2] x) => (float[1, 2] y) { y = MatMul(x, w) }", w=np.zeros((3, 3), np.float32))
    with pytest.raises(ConversionError, match="the graph is not valid ONNX: ") as raised:
        fp16_from_onnx(model)
    assert "\n" not in str(raised.value)

"""Frames into a graph that took normalized images: the same arithmetic, or a refusal that says what was wanted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from edgecv.errors import ConversionError, InputError
from tests.conftest import require

for _library in ("torch", "onnx", "onnxruntime"):
    require(_library)

import onnx  # noqa: E402  (after the check that it is there)
import onnx.numpy_helper  # noqa: E402
import onnx.parser  # noqa: E402
import onnxruntime  # noqa: E402
import torch  # noqa: E402
from torch import nn  # noqa: E402

from edgecv import Preprocess  # noqa: E402
from edgecv.converters.onnx_batch import free_batch  # noqa: E402
from edgecv.converters.onnx_check import opset_of, plain  # noqa: E402
from edgecv.converters.onnx_prepend import with_frames, with_opset  # noqa: E402
from edgecv.models.framed import Framed  # noqa: E402
from edgecv.tensors import Array  # noqa: E402

SIZE = (2, 3)
PLAIN = Preprocess(size=SIZE)
FRAMES = np.random.default_rng(0).integers(0, 256, (2, *SIZE, 3)).astype(np.uint8)
DOUBLE = "g (float[n, 3, 2, 3] x) => (float[n, 3, 2, 3] y) { y = Add(x, x) }"


def _graph(text: str, opset: int = 18, **weights: Any) -> Any:
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": {opset}]> {text}')
    model.graph.initializer.extend(onnx.numpy_helper.from_array(np.asarray(v), k) for k, v in weights.items())
    return model


def _run(model: Any, **inputs: Any) -> list[Array]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    found: list[Array] = session.run(None, inputs)
    return found


def _normalized(frames: Array, preprocess: Preprocess) -> Array:
    normalized: Array = Framed(nn.Identity(), preprocess).normalize(torch.from_numpy(frames)).numpy()
    return normalized


def _sizes(value: Any) -> list[Any]:
    return [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]


number = st.floats(-2, 2)
spread = st.floats(0.01, 4)


@settings(max_examples=40, deadline=None)
@given(
    frames=arrays.arrays(np.uint8, st.tuples(st.integers(1, 3), *map(st.just, (*SIZE, 3)))),
    mean=st.tuples(number, number, number),
    std=st.tuples(spread, spread, spread),
    color=st.sampled_from(["rgb", "bgr"]),
)
def test_frames_answer_as_normalized_images_did(frames: Array, mean: Any, std: Any, color: Any) -> None:
    preprocess = Preprocess(size=SIZE, mean=mean, std=std, color=color)
    (wanted,) = _run(_graph(DOUBLE), x=_normalized(frames, preprocess))
    (got,) = _run(with_frames(_graph(DOUBLE), preprocess), image=frames)
    assert np.array_equal(got, wanted)  # to the last bit


def test_the_graph_takes_image_and_gives_what_its_output_was_renamed_to() -> None:
    model = with_frames(_graph(DOUBLE), PLAIN, output="logits")
    assert [(v.name, _sizes(v)) for v in model.graph.input] == [("image", ["n", 2, 3, 3])]
    assert [(v.name, _sizes(v)) for v in model.graph.output] == [("logits", ["n", 3, 2, 3])]
    assert [node.op_type for node in model.graph.node] == ["Cast", "Transpose", "Mul", "Add", "Add"]
    assert (opset_of(model), model.ir_version, model.producer_name) == (18, 8, "edgecv")


def test_the_given_model_is_left_alone_and_the_same_bytes_come_twice() -> None:
    model = _graph(DOUBLE)
    before = model.SerializeToString(deterministic=True)
    first, second = (with_frames(model, PLAIN).SerializeToString(deterministic=True) for _ in range(2))
    assert first == second
    assert model.SerializeToString(deterministic=True) == before


@pytest.mark.parametrize(
    ("batch", "wanted"),
    [("n", "n"), ("4", 4), ("", "batch")],
)
def test_the_batch_stays_as_it_is(batch: str, wanted: Any) -> None:
    model = _graph(DOUBLE.replace("n,", f"{batch or 'n'},"))
    if not batch:
        model.graph.input[0].type.tensor_type.shape.dim[0].Clear()
    assert _sizes(with_frames(model, PLAIN).graph.input[0])[0] == wanted


def test_a_free_height_and_width_become_those_of_the_preprocessing() -> None:
    text = "g (float[n, 3, h, w] x) => (float[n, 3, h, w] y) { y = Add(x, x) }"
    model = with_frames(_graph(text), PLAIN)
    assert _sizes(model.graph.input[0]) == ["n", 2, 3, 3]
    assert np.array_equal(_run(model, image=FRAMES)[0], 2 * _normalized(FRAMES, PLAIN))


def test_a_graph_in_float16_gets_its_image_in_float16() -> None:
    text = "g (float16[n, 3, 2, 3] x) => (float16[n, 3, 2, 3] y) { y = Add(x, x) }"
    (got,) = _run(with_frames(_graph(text), PLAIN), image=FRAMES)
    assert np.array_equal(got, 2 * _normalized(FRAMES, PLAIN).astype(np.float16))


@pytest.mark.parametrize("name", ["image", "logits", "image_mul", "node_image_cast"])
def test_names_that_are_taken_do_not_clash(name: str) -> None:
    inner = f"g (float[n, 3, 2, 3] x) => (float[n, 3, 2, 3] y) {{ {name} = Add(x, x) y = Neg({name}) }}"
    outer = f"g (float[n, 3, 2, 3] {name}) => (float[n, 3, 2, 3] y) {{ t = Add({name}, {name}) y = Neg(t) }}"
    for text in (inner, outer):
        model = with_frames(_graph(text), PLAIN, output="logits")
        assert [value.name for value in (*model.graph.input, *model.graph.output)] == ["image", "logits"]
        assert np.array_equal(_run(model, image=FRAMES)[0], -2 * _normalized(FRAMES, PLAIN))


def test_a_branch_inside_the_graph_follows_the_new_name() -> None:
    text = """g (float[n, 3, 2, 3] image) => (float[n, 3, 2, 3] y) { c = Constant<value = bool {1}>() y = If (c) <
        then_branch = a () => (float[n, 3, 2, 3] t) { t = Add(image, image) },
        else_branch = b () => (float[n, 3, 2, 3] e) { e = Neg(image) }> }"""
    assert np.array_equal(_run(with_frames(_graph(text), PLAIN), image=FRAMES)[0], 2 * _normalized(FRAMES, PLAIN))


def test_frames_that_the_graph_takes_already_are_checked_and_kept() -> None:
    framed = with_frames(_graph(DOUBLE), PLAIN)
    again = with_frames(framed, PLAIN)
    assert again.graph == framed.graph
    with pytest.raises(InputError, match=r"uint8\[batch, 4, 4, 3\] is wanted, 'image' is uint8\[any, 2, 3, 3\]"):
        with_frames(framed, Preprocess(size=(4, 4)))


def test_one_of_several_inputs_takes_the_frames_when_it_is_named() -> None:
    text = "g (float[n, 3, 2, 3] x, float[1] gain) => (float[n, 3, 2, 3] y) { y = Mul(x, gain) }"
    with pytest.raises(InputError, match=r"takes 2 inputs \(x, gain\): name the one that takes frames"):
        with_frames(_graph(text), PLAIN)
    with pytest.raises(InputError, match=r"no input 'picture', it takes x, gain"):
        with_frames(_graph(text), PLAIN, "picture")
    model = with_frames(_graph(text), PLAIN, "x")
    (got,) = _run(model, image=FRAMES, gain=np.full(1, 3, np.float32))
    assert np.array_equal(got, 3 * _normalized(FRAMES, PLAIN))


def test_weights_among_the_inputs_are_no_inputs() -> None:
    text = "g (float[n, 3, 2, 3] x, float[1] w) => (float[n, 3, 2, 3] y) { y = Mul(x, w) }"
    model = with_frames(_graph(text, w=np.full(1, 3, np.float32)), PLAIN)
    assert [value.name for value in model.graph.input] == ["image"]


@pytest.mark.parametrize(
    ("shape", "got"),
    [
        ("float[n, 3]", r"'x' is float\[any, 3\]"),
        ("float[n, 1, 2, 3]", r"'x' is float\[any, 1, 2, 3\]"),
        ("float[n, 3, 8, 9]", r"'x' is float\[any, 3, 8, 9\]; give a Preprocess of size \(8, 9\)"),
        ("float[n, 3, 8, w]", r"'x' is float\[any, 3, 8, any\]; give a Preprocess of size \(8, 3\)"),
        ("float[1, 2, 3, 3]", r"'x' is float\[1, 2, 3, 3\]; channels must come first"),
        ("double[n, 3, 2, 3]", r"'x' is double\[any, 3, 2, 3\]"),
    ],
)
def test_an_input_that_is_no_image_of_this_size_is_refused(shape: str, got: str) -> None:
    model = _graph(f"g ({shape} x) => ({shape} y) {{ y = Neg(x) }}")
    with pytest.raises(
        InputError, match=rf"^for this preprocessing an input of float\[batch, 3, 2, 3\] is wanted, {got}"
    ):
        with_frames(model, PLAIN)


def test_frames_with_channels_first_are_refused() -> None:
    model = _graph("g (uint8[n, 3, 2, 3] x) => (float[n, 3, 2, 3] y) { y = Cast<to=1>(x) }")
    with pytest.raises(InputError, match=r"input of uint8\[batch, 2, 3, 3\] is wanted, 'x' is uint8\[any, 3, 2, 3\]"):
        with_frames(model, Preprocess(size=(2, 3)))


def test_outputs_keep_their_names_where_there_are_several() -> None:
    text = "g (float[n, 3, 2, 3] x) => (float[n, 3, 2, 3] a, float[n, 3, 2, 3] b) { a = Neg(x) b = Neg(a) }"
    assert [value.name for value in with_frames(_graph(text), PLAIN).graph.output] == ["a", "b"]
    with pytest.raises(InputError, match=r"gives 2 outputs \(a, b\): they keep their names"):
        with_frames(_graph(text), PLAIN, output="logits")
    with pytest.raises(InputError, match="an output cannot be called 'image'"):
        with_frames(_graph(DOUBLE), PLAIN, output="image")


@pytest.mark.parametrize(("opset", "wanted"), [(11, 18), (17, 18), (18, 18), (20, 20), (22, 20), (25, 20)])
def test_another_opset_is_rewritten(opset: int, wanted: int) -> None:
    text = "g (float[n, 3, 2, 3] x) => (float[n, 18] y) { [a] f = Flatten(x) [b] y = Softmax<axis=1>(f) }"
    model = _graph(text, opset)
    model.metadata_props.add(key="author", value="someone")
    x = _normalized(FRAMES, PLAIN)
    framed = with_frames(model, PLAIN)
    assert (opset_of(framed), [item.key for item in framed.metadata_props]) == (wanted, ["author"])
    assert {"a", "b"} <= {node.name for node in framed.graph.node}
    reference = _run(_graph(text, min(opset, 20)), x=x)[0]
    assert np.abs(_run(framed, image=FRAMES)[0] - reference).max() < 1e-6


@pytest.mark.parametrize(
    ("node", "opset", "culprit"),
    [
        ("[act] y = Swish(x)", 24, r"node 'act' \(Swish\)"),
        ("[old] y = ImageScaler(x)", 9, r"node 'old' \(ImageScaler\)"),
    ],
)
def test_an_operator_without_a_twin_is_refused_by_name(node: str, opset: int, culprit: str) -> None:
    model = _graph(f"g (float[n, 3, 2, 3] x) => (float[n, 3, 2, 3] y) {{ {node} }}", opset)
    with pytest.raises(
        ConversionError, match=rf"opset {opset} cannot be rewritten to \d\d: {culprit}.* 18 to 20$"
    ) as raised:
        with_opset(model)
    assert "\n" not in str(raised.value)


CLASSIFIER = """g (float[1, 3, 2, 3] x) => (float[1, 4] y) <int64[2] s = {1, -1}> {
    p = GlobalAveragePool(x) [flat] f = Reshape(p, s) y = MatMul(f, w) }"""


def test_a_batch_of_one_is_freed() -> None:
    weights = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    model = free_batch(_graph(CLASSIFIER, w=weights))
    assert _sizes(model.graph.input[0])[0] == _sizes(model.graph.output[0])[0] == "batch"
    x = _normalized(np.concatenate([FRAMES, FRAMES[::-1, ::-1]]), PLAIN)
    singles = [_run(_graph(CLASSIFIER, w=weights), x=x[i : i + 1])[0] for i in range(len(x))]
    assert np.abs(_run(model, x=x)[0] - np.concatenate(singles)).max() < 1e-6


def test_a_node_that_fixes_the_batch_is_named() -> None:
    text = """g (float[1, 3, 2, 3] x) => (float[2, 9] y) <int64[2] s = {2, 9}> {
        r = Relu(x) [fold] f = Reshape(r, s) y = Neg(f) }"""
    with pytest.raises(ConversionError, match=r"the batch cannot be freed: node 'fold' \(Reshape\) fixes it"):
        free_batch(_graph(text))


def test_another_batch_than_one_is_not_freed() -> None:
    with pytest.raises(ConversionError, match="input 'x' is fixed to 4"):
        free_batch(_graph(DOUBLE.replace("n,", "4,")))


def test_initializers_that_nothing_reads_are_dropped() -> None:
    model = plain(_graph(DOUBLE, unread=np.zeros(3, np.float32)))
    assert list(model.graph.initializer) == []


@pytest.mark.parametrize("name", ["nanotrackv1_backbone", "nanotrackv2_backbone"])
def test_a_published_graph_takes_frames_and_any_batch(data: Path, name: str) -> None:
    model = onnx.load(str(data / "weights" / "nanotrack" / f"{name}.onnx"))
    preprocess = Preprocess(size=(255, 255), std=(1 / 255,) * 3, color="bgr")  # it takes 0-255
    frames = np.random.default_rng(0).integers(0, 256, (2, 255, 255, 3)).astype(np.uint8)
    (got,) = _run(with_frames(free_batch(model), preprocess, output="features"), image=frames)
    x = _normalized(frames, preprocess)
    wanted = np.concatenate([_run(model, **{model.graph.input[0].name: x[i : i + 1]})[0] for i in range(2)])
    assert np.abs(got - wanted).max() < 1e-5 * np.abs(wanted).max()

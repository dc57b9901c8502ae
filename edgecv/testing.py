"""What a backend must do, as tests: subclass ``SessionContract`` and pytest runs them.

    from edgecv.testing import SessionContract

    class TestMyBackend(SessionContract):
        backend = "mybackend"

The tiny models are written as ONNX files (needs ``onnx``) and opened with ``edgecv.open_session``. A backend that reads
another format overrides ``open_model``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgecv.errors import InputError
from edgecv.runtimes.opening import open_session
from edgecv.runtimes.session import Session
from edgecv.tensors import Array

__all__ = ["GRID", "TINY_MODELS", "SessionContract", "TinyModel"]

Arrays = dict[str, Array]
GRID = np.linspace(-1, 1, 2 * 3 * 3 * 3).reshape(2, 3, 3, 3).astype(np.float32)  # a convolution's weights


@dataclass(frozen=True, slots=True)
class TinyModel:
    """A graph of a few nodes, and what it must answer.

    Args:
        build: makes the ``onnx.ModelProto``.
        inputs: ``inputs(batch)`` gives arrays to run on; the first size of each is the batch, which is free.
        expected: the answer, in numpy.
        tolerance: the largest difference allowed.
    """

    name: str
    build: Callable[[], Any]
    inputs: Callable[[int], Arrays]
    expected: Callable[[Arrays], Arrays]
    tolerance: float = 0.0

    def write(self, folder: Path) -> Path:
        """Write the graph as ``NAME.onnx``."""
        path = folder / f"{self.name}.onnx"
        path.write_bytes(self.build().SerializeToString())
        return path


class SessionContract:
    """The tests every backend passes. Set ``backend``, or override ``open_model``."""

    backend = ""

    def open_model(self, model: TinyModel, folder: Path) -> Session:
        """Open a tiny model on this backend."""
        pytest.importorskip("onnx")
        return open_session(model.write(folder), backend=self.backend, threads=1)

    @pytest.fixture(params=["identity", "conv_relu", "two_inputs", "two_outputs", "image", "qdq"])
    def model(self, request: pytest.FixtureRequest) -> TinyModel:
        """Each tiny model in turn."""
        return TINY_MODELS[request.param]

    @pytest.fixture
    def session(self, model: TinyModel, tmp_path: Path) -> Iterator[Session]:
        """The tiny model, opened."""
        with self.open_model(model, tmp_path) as session:
            yield session

    @pytest.fixture
    def conv(self, tmp_path: Path) -> Iterator[Session]:
        """One model for the tests that need not run on all: float ``x[batch, 3, 8, 8]`` to ``y[batch, 2, 6, 6]``."""
        with self.open_model(TINY_MODELS["conv_relu"], tmp_path) as session:
            yield session

    def test_inputs_and_outputs_are_declared(self, model: TinyModel, session: Session) -> None:
        feed = model.inputs(2)
        assert {spec.name for spec in session.inputs} == set(feed)
        assert all(spec.accepts(feed[spec.name]) for spec in session.inputs)
        answers = session.run(feed)
        assert list(answers) == [spec.name for spec in session.outputs]
        assert all(spec.accepts(answers[spec.name]) for spec in session.outputs)

    @pytest.mark.parametrize("batch", [1, 2, 5])
    def test_answers_are_right_at_any_batch(self, model: TinyModel, session: Session, batch: int) -> None:
        feed = model.inputs(batch)
        check(model, feed, session.run(feed))

    def test_batches_may_change_from_run_to_run(self, model: TinyModel, session: Session) -> None:
        for batch in (3, 1, 4, 1):
            feed = model.inputs(batch)
            check(model, feed, session.run(feed))

    def test_the_same_input_gives_the_same_answer(self, model: TinyModel, session: Session) -> None:
        first, second = (session.run(model.inputs(2)) for _ in range(2))
        assert all(np.array_equal(first[name], second[name]) for name in first)

    def test_answers_survive_the_next_run(self, model: TinyModel, session: Session) -> None:
        feed = model.inputs(1)
        answers = session.run(feed)
        kept = {name: value.copy() for name, value in answers.items()}
        session.run({name: np.zeros_like(value) for name, value in feed.items()})
        assert all(np.array_equal(answers[name], kept[name]) for name in kept)

    def test_answers_are_the_callers_to_change(self, model: TinyModel, session: Session) -> None:
        feed = model.inputs(1)
        for value in session.run(feed).values():
            value[...] = 0
        check(model, feed, session.run(feed))

    def test_inputs_are_left_alone_and_may_change_afterwards(self, model: TinyModel, session: Session) -> None:
        feed = model.inputs(1)
        kept = {name: value.copy() for name, value in feed.items()}
        answers = session.run(feed)
        assert all(np.array_equal(feed[name], kept[name]) for name in feed)
        for value in feed.values():
            value[...] = 0
        check(model, kept, answers)

    def test_views_are_as_good_as_copies(self, model: TinyModel, session: Session) -> None:
        feed = {name: np.concatenate([value, value])[::2][:, ...] for name, value in model.inputs(4).items()}
        check(model, {name: value.copy() for name, value in feed.items()}, session.run(feed))

    def test_several_threads_get_their_own_answers(self, model: TinyModel, session: Session) -> None:
        feeds = [{name: np.roll(v, i, axis=-1) for name, v in model.inputs(1 + i % 3).items()} for i in range(24)]
        with ThreadPoolExecutor(4) as pool:
            for feed, answers in zip(feeds, pool.map(session.run, feeds), strict=True):
                check(model, feed, answers)

    def test_run_into_fills_the_callers_arrays(self, model: TinyModel, session: Session) -> None:
        feed = model.inputs(2)
        into = {name: np.zeros_like(value) for name, value in session.run(feed).items()}
        for shift in range(3):  # the same arrays, with other contents
            for value in feed.values():
                value[...] = np.roll(value, shift, axis=-1)
            session.run_into(feed, into)
            check(model, feed, into)

    def test_run_into_follows_when_the_arrays_change(self, model: TinyModel, session: Session) -> None:
        for batch in (1, 3, 1):
            feed = model.inputs(batch)
            into = {name: np.zeros_like(value) for name, value in session.run(feed).items()}
            session.run_into(feed, into)
            check(model, feed, into)

    def test_run_into_works_from_several_threads(self, model: TinyModel, session: Session) -> None:
        def work(shift: int) -> bool:
            feed = {name: np.roll(value, shift, axis=-1) for name, value in model.inputs(1).items()}
            into = {name: np.zeros_like(value) for name, value in session.run(feed).items()}
            for _ in range(5):
                session.run_into(feed, into)
                check(model, feed, into)
            return True

        with ThreadPoolExecutor(4) as pool:
            assert all(pool.map(work, range(8)))

    def test_submit_gives_each_future_its_answer(self, model: TinyModel, session: Session) -> None:
        feeds = [{name: np.roll(v, i, axis=-1) for name, v in model.inputs(1).items()} for i in range(10)]
        for feed, future in zip(feeds, [session.submit(feed) for feed in feeds], strict=True):
            check(model, feed, future.result(timeout=60))

    def test_has_run_tells_whether_it_ran(self, conv: Session) -> None:
        assert not conv.has_run
        conv.run(TINY_MODELS["conv_relu"].inputs(1))
        assert conv.has_run

    @pytest.mark.parametrize(
        ("feed", "telling"),
        [
            ({}, "inputs are: x; got: none"),
            ({"y": np.zeros((1, 3, 8, 8), np.float32)}, "inputs are: x; got: y"),
            ({"x": np.zeros((1, 3, 8, 8), np.float32), "z": np.zeros(1)}, "inputs are: x; got: x, z"),
            ({"x": np.zeros((1, 3, 8, 8))}, r"'x' takes float32\[any, 3, 8, 8\], got float64"),
            ({"x": np.zeros((3, 8, 8), np.float32)}, r"got float32\[3, 8, 8\]"),
            ({"x": np.zeros((1, 3, 8, 9), np.float32)}, r"got float32\[1, 3, 8, 9\]"),
            ({"x": np.zeros((0, 3, 8, 8), np.float32)}, r"got float32\[0, 3, 8, 8\]"),
            ({"x": [[1.0]]}, "takes a numpy array .* got list"),
        ],
    )
    def test_wrong_inputs_are_refused_in_our_words(self, conv: Session, feed: Any, telling: str) -> None:
        for call in (conv.run, conv.submit):
            with pytest.raises(InputError, match=telling):
                call(feed)

    @pytest.mark.parametrize(
        "into",
        [
            {},
            {"y": np.zeros((1, 2, 6, 6), np.float64)},
            {"y": np.zeros((2, 2, 6, 6), np.float32)},
            {"y": np.zeros((1, 2, 6, 12), np.float32)[..., ::2]},
            {"y": np.zeros((1, 2, 6, 6), np.float32), "z": np.zeros(1, np.float32)},
        ],
    )
    def test_outputs_that_do_not_fit_are_refused(self, conv: Session, into: Arrays) -> None:
        with pytest.raises(InputError, match="output"):
            conv.run_into(TINY_MODELS["conv_relu"].inputs(1), into)

    def test_read_only_outputs_are_refused(self, conv: Session) -> None:
        fixed = np.zeros((1, 2, 6, 6), np.float32)
        fixed.flags.writeable = False
        with pytest.raises(InputError, match="writable"):
            conv.run_into(TINY_MODELS["conv_relu"].inputs(1), {"y": fixed})

    def test_a_refused_input_does_no_harm(self, conv: Session) -> None:
        model = TINY_MODELS["conv_relu"]
        with pytest.raises(InputError):
            conv.run({"x": np.zeros((1, 3, 9, 9), np.float32)})
        check(model, model.inputs(2), conv.run(model.inputs(2)))

    def test_closing_twice_is_harmless(self, conv: Session) -> None:
        conv.close()
        conv.close()

    def test_a_closed_session_says_so(self, conv: Session) -> None:
        feed = TINY_MODELS["conv_relu"].inputs(1)
        into = conv.run(feed)
        conv.close()
        for call in (lambda: conv.run(feed), lambda: conv.submit(feed), lambda: conv.run_into(feed, into)):
            with pytest.raises(InputError, match="closed"):
                call()
        assert "closed" in repr(conv)

    def test_closing_waits_for_what_was_submitted(self, conv: Session) -> None:
        model = TINY_MODELS["conv_relu"]
        futures = [conv.submit(model.inputs(1)) for _ in range(4)]
        conv.close()
        for future in futures:
            check(model, model.inputs(1), future.result(timeout=0))

    def test_it_says_what_it_is(self, conv: Session) -> None:
        assert "x: float32[any, 3, 8, 8]" in repr(conv)
        assert conv.backend
        assert conv.versions


def check(model: TinyModel, feed: Arrays, answers: Arrays) -> None:
    """Assert that ``answers`` are what ``model`` must give for ``feed``."""
    wanted = model.expected(feed)
    assert set(answers) == set(wanted)
    for name, value in wanted.items():
        assert answers[name].shape == value.shape
        difference = np.abs(answers[name].astype(np.float64) - value.astype(np.float64))
        assert difference.max() <= model.tolerance, (name, difference.max())


def _random(batch: int, *shape: int) -> Array:
    return np.random.default_rng(batch).normal(size=(batch, *shape)).astype(np.float32)


def _graph(nodes: list[Any], inputs: list[Any], outputs: list[Any], weights: Arrays | None = None) -> Any:
    """Nodes ``(op, inputs, outputs, attributes)`` and values ``(name, dtype, shape)`` as an ONNX model."""
    import onnx
    from onnx import helper

    def value(name: str, dtype: str, *shape: int) -> Any:
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        return helper.make_tensor_value_info(name, kind, ["batch", *shape])

    graph = helper.make_graph(
        [helper.make_node(op, ins, outs, **attributes) for op, ins, outs, attributes in nodes],
        "tiny",
        [value(*item) for item in inputs],
        [value(*item) for item in outputs],
        [onnx.numpy_helper.from_array(array, name) for name, array in (weights or {}).items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def _identity() -> Any:
    return _graph([("Identity", ["x"], ["y"], {})], [("x", "float32", 4)], [("y", "float32", 4)])


def _conv_relu() -> Any:
    nodes: list[Any] = [("Conv", ["x", "w"], ["c"], {}), ("Relu", ["c"], ["y"], {})]
    return _graph(nodes, [("x", "float32", 3, 8, 8)], [("y", "float32", 2, 6, 6)], {"w": GRID})


def _conv_relu_expected(feed: Arrays) -> Arrays:
    windows = np.lib.stride_tricks.sliding_window_view(feed["x"], (3, 3), axis=(2, 3))
    return {"y": np.maximum(np.einsum("bcyxij,ocij->boyx", windows, GRID), 0).astype(np.float32)}


def _two_inputs() -> Any:
    nodes: list[Any] = [("Mul", ["a", "b"], ["y"], {})]
    return _graph(nodes, [("a", "float32", 5), ("b", "float32", 5)], [("y", "float32", 5)])


def _two_outputs() -> Any:
    nodes: list[Any] = [("Neg", ["x"], ["minus"], {}), ("Abs", ["x"], ["size"], {})]
    return _graph(nodes, [("x", "float32", 3)], [("minus", "float32", 3), ("size", "float32", 3)])


def _image() -> Any:
    nodes: list[Any] = [
        ("Cast", ["image"], ["f"], {"to": 1}),
        ("Transpose", ["f"], ["t"], {"perm": [0, 3, 1, 2]}),
        ("GlobalAveragePool", ["t"], ["m"], {}),
        ("Flatten", ["m"], ["logits"], {}),
    ]
    return _graph(nodes, [("image", "uint8", 4, 4, 3)], [("logits", "float32", 3)])


def _image_inputs(batch: int) -> Arrays:
    return {"image": np.random.default_rng(batch).integers(0, 256, (batch, 4, 4, 3)).astype(np.uint8)}


def _qdq() -> Any:
    """Quantize to uint8 and back: steps of 1/16, from -8 to 7.9375."""
    nodes: list[Any] = [
        ("QuantizeLinear", ["x", "scale", "zero"], ["q"], {}),
        ("DequantizeLinear", ["q", "scale", "zero"], ["y"], {}),
    ]
    weights: Arrays = {"scale": np.array(0.0625, np.float32), "zero": np.array(128, np.uint8)}
    return _graph(nodes, [("x", "float32", 6)], [("y", "float32", 6)], weights)


def _qdq_expected(feed: Arrays) -> Arrays:
    steps = np.clip(np.rint(feed["x"] / np.float32(0.0625)) + 128, 0, 255) - 128
    return {"y": (steps * 0.0625).astype(np.float32)}


TINY_MODELS = {
    model.name: model
    for model in (
        TinyModel("identity", _identity, lambda n: {"x": _random(n, 4)}, lambda feed: {"y": feed["x"]}),
        TinyModel("conv_relu", _conv_relu, lambda n: {"x": _random(n, 3, 8, 8)}, _conv_relu_expected, 1e-5),
        TinyModel(
            "two_inputs",
            _two_inputs,
            lambda n: {"a": _random(n, 5), "b": _random(n, 5) + 1},
            lambda feed: {"y": feed["a"] * feed["b"]},
            1e-6,
        ),
        TinyModel(
            "two_outputs",
            _two_outputs,
            lambda n: {"x": _random(n, 3)},
            lambda feed: {"minus": -feed["x"], "size": np.abs(feed["x"])},
        ),
        TinyModel(
            "image",
            _image,
            _image_inputs,
            lambda feed: {"logits": feed["image"].astype(np.float64).mean((1, 2)).astype(np.float32)},
            1e-4,
        ),
        TinyModel("qdq", _qdq, lambda n: {"x": 4 * _random(n, 6)}, _qdq_expected, 1e-6),
    )
}

"""Samples of any inputs: what fits, what does not, and how they are read."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgecv.errors import InputError
from edgecv.pipelines.tensors import batch_of, feeds, open_tensors, run_samples
from edgecv.preprocess import Preprocess
from edgecv.runtimes.session import Session, SessionOptions
from edgecv.tensors import Array, TensorSpec

PREPROCESS = {"photo": Preprocess(size=(4, 6))}


class _Sums(Session):
    """``photo`` and ``state`` to the sum of each item of both; ``whole`` gives one sum for the whole batch."""

    backend = "numpy"

    def __init__(self, batch: int | None = None, whole: bool = False) -> None:
        inputs = [TensorSpec("photo", "uint8", (batch, 4, 6, 3)), TensorSpec("state", "float32", (batch, 2))]
        super().__init__(inputs, [TensorSpec("sum", "float32", None)])
        self.whole = whole
        self.batches: list[int] = []

    @classmethod
    def open(cls, path: Path, options: SessionOptions) -> Session:
        raise NotImplementedError

    def _run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        self.batches.append(len(inputs["photo"]))
        sums = inputs["photo"].sum((1, 2, 3), dtype=np.float32) + inputs["state"].sum(1)
        return {"sum": sums.sum(keepdims=True) if self.whole else sums}


def _sample(value: float = 0.5) -> dict[str, Array]:
    return {"photo": np.ones((8, 12, 3), np.uint8), "state": np.array([value, 1], np.float32)}


@given(st.integers(1, 9), st.integers(1, 4), st.none() | st.integers(1, 4))
def test_answers_come_in_order_whatever_the_batch(count: int, batch: int, fixed: int | None) -> None:
    session = _Sums(fixed)
    found = run_samples(session, PREPROCESS, [_sample(index) for index in range(count)], batch=batch)
    assert found["sum"].tolist() == [73 + index for index in range(count)]
    assert max(session.batches) <= (fixed or batch)


@pytest.mark.parametrize("key", ["photo", "state"])
def test_a_batch_of_one_is_an_item(key: str) -> None:
    item = _sample()
    packed = {**item, key: item[key][None], "note": np.zeros(3)}
    (one, other) = run_samples(_Sums(), PREPROCESS, [item, packed], batch=2)["sum"]
    assert one == other


WRONG: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "lacking": (lambda item: item.pop("state"), "sample 1, input 'state': the sample lacks it, it has 'photo'"),
    "another type": (lambda item: item.update(state=np.zeros(2)), "it takes float32[2], got float64[2]"),
    "another shape": (lambda item: item.update(state=np.zeros(3, np.float32)), "it takes float32[2], got float32[3]"),
    "two items": (lambda item: item.update(state=np.zeros((2, 2), np.float32)), "takes float32[2], got float32[2, 2]"),
    "a list": (lambda item: item.update(state=[0.5, 1.0]), "input 'state': a numpy array is wanted, got list"),
    "no frame": (lambda item: item.update(photo=np.zeros((4, 6), np.uint8)), "input 'photo': a frame is uint8 RGB"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_sample_that_does_not_fit_is_refused_by_number_and_input(name: str) -> None:
    change, message = WRONG[name]
    wrong: dict[str, Any] = _sample()
    change(wrong)
    with pytest.raises(InputError, match=re.escape(message)):
        run_samples(_Sums(), PREPROCESS, [_sample(), wrong], batch=8)


def test_what_is_no_mapping_is_refused() -> None:
    frames: Any = [np.zeros((4, 6, 3), np.uint8)]
    with pytest.raises(InputError, match="sample 0 is a mapping from inputs' names to arrays, got ndarray"):
        run_samples(_Sums(), PREPROCESS, frames, batch=8)
    with pytest.raises(InputError, match="at least one sample"):
        run_samples(_Sums(), PREPROCESS, [], batch=8)


def test_an_output_without_the_batch_in_front_is_refused() -> None:
    with pytest.raises(InputError, match=r"the batch of 2 must be the first dimension of output 'sum', \[1\]"):
        run_samples(_Sums(whole=True), PREPROCESS, [_sample(), _sample()], batch=8)


def test_items_of_one_batch_have_one_size() -> None:
    free = TensorSpec("x", "float32", (None, None))
    items = {index: {"x": np.zeros(index + 1, np.float32)} for index in range(2)}
    with pytest.raises(InputError, match="samples of input 'x' must be of one size"):
        feeds([free], {}, items)


@pytest.mark.parametrize(
    ("shapes", "wanted"), [([(None, 2), (None,)], None), ([(3, 2), (3,)], 3), ([(None, 2), (3,)], 3), ([], None)]
)
def test_the_batch_is_that_of_all_inputs(shapes: list[tuple[int | None, ...]], wanted: int | None) -> None:
    assert batch_of([TensorSpec(f"x{i}", "float32", shape) for i, shape in enumerate(shapes)]) == wanted


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ([(2, 2), (3,)], "all inputs share one batch, here it is 'x0' 2, 'x1' 3"),
        ([(None, 2), ()], "needs the batch as its first dimension, 'x1' is float32[]"),
        ([None], "needs the batch as its first dimension, 'x0' is float32[…]"),
    ],
)
def test_inputs_that_share_no_batch_are_refused(shapes: list[tuple[int, ...] | None], message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        batch_of([TensorSpec(f"x{i}", "float32", shape) for i, shape in enumerate(shapes)])


def test_files_are_read_by_name_and_spread(tmp_path: Path) -> None:
    for index in range(6):
        np.savez(tmp_path / f"{index}.npz", x=np.full(2, index))
    (tmp_path / "notes.txt").write_text("no sample")
    assert [int(item["x"][0]) for item in open_tensors(tmp_path)] == list(range(6))
    assert [int(item["x"][0]) for item in open_tensors(tmp_path, 3)] == [0, 2, 4]
    assert [int(item["x"][0]) for item in open_tensors(tmp_path / "4.npz")] == [4]


def test_a_folder_without_files_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no \.npz file: one for each sample is wanted"):
        open_tensors(tmp_path)


def _pickled(path: Path) -> None:
    np.savez(path, x=np.array([{"a": 1}], dtype=object))


def _cut(path: Path) -> None:
    np.savez(path, x=np.arange(1000))
    path.write_bytes(path.read_bytes()[:-400])


@pytest.mark.parametrize("write", [_pickled, _cut, lambda path: path.write_bytes(b""), lambda path: path.mkdir()])
def test_a_file_that_is_none_is_refused(write: Callable[[Path], object], tmp_path: Path) -> None:
    write(tmp_path / "0.npz")
    with pytest.raises(InputError, match=r"cannot read .*0.npz as an .npz file of arrays"):
        open_tensors(tmp_path)[0]

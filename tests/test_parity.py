"""Parity: what is measured, what is let through, and what is not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from edgecv.errors import InputError
from edgecv.parity import TOLERANCE, compare, gate, worst_gate

LOGITS = np.random.default_rng(0).normal(size=(50, 10)).astype(np.float32)


def test_equal_answers_agree_entirely() -> None:
    found = compare(LOGITS, LOGITS.copy(), 0.1)
    assert (found.samples, found.max_abs, found.mean_abs, found.cosine, found.top1_agreement) == (50, 0, 0, 1, 1)
    assert gate(LOGITS, LOGITS, "fp32").ok


def test_the_figures_are_those_of_the_definitions() -> None:
    wanted = np.array([[3.0, 4.0], [1.0, 0.0]])
    got = np.array([[4.0, 3.0], [1.0, 0.5]])
    found = compare(wanted, got, 0.1)
    assert found.max_abs == 1
    assert found.mean_abs == 0.625
    assert found.cosine == pytest.approx(1 / np.sqrt(1.25))
    assert found.top1_agreement == 0.5


@pytest.mark.parametrize("precision", TOLERANCE)
def test_rounding_passes_and_ten_times_the_tolerance_does_not(precision: str) -> None:
    allowed = TOLERANCE[precision] * float(LOGITS.std())
    for share, ok in ((0.5, True), (10.0, False)):
        other = LOGITS.copy()
        other[7, np.argmin(other[7])] -= allowed * share  # top-1 stays
        found = gate(LOGITS, other, precision)
        assert found.ok is ok
        assert ok or "largest difference" in found.failures[0]


def test_the_tolerance_follows_the_scale_of_the_answers() -> None:
    rounding = LOGITS * np.float32(1 + 1e-6)
    for scale in (1e-6, 1.0, 1e6):
        assert gate(LOGITS * np.float32(scale), rounding * np.float32(scale), "fp32").ok


@pytest.mark.parametrize(
    "fault",
    [
        lambda a: a[:, ::-1],  # classes in another order
        lambda a: a[::-1],  # answers of other images
        lambda a: a + 0.05,
        lambda a: a * 1.01,
        lambda a: a * 0,
        lambda a: -a,
        lambda a: np.where(np.arange(50)[:, None] == 3, np.nan, a),
        lambda a: np.where(np.arange(50)[:, None] == 3, np.inf, a),
    ],
)
def test_faults_are_refused(fault: Any) -> None:
    found = gate(LOGITS, fault(LOGITS), "fp32")
    assert not found.ok
    assert found.failures


def test_infinite_differences_still_fit_into_json() -> None:
    found = compare(LOGITS, np.full_like(LOGITS, np.nan), 0.1)
    assert found.max_abs == np.finfo(np.float64).max
    assert np.isfinite([found.mean_abs, found.cosine]).all()


def test_a_flipped_guess_is_refused_even_when_it_is_near() -> None:
    close = np.zeros((100, 2), np.float32)
    close[:, 0] = 1e-5
    close[0] = (1000, 0)  # a wide spread, so that the differences are small beside it
    flipped = close.copy()
    flipped[1:, 0] = -1e-5
    found = gate(close, flipped, "fp32")
    assert found.failures == ("top-1 agrees on 1.0% of the samples, 99% wanted",)


def test_top1_is_left_out_where_it_has_no_meaning() -> None:
    assert compare(LOGITS[:, :1], LOGITS[:, :1], 0.1).top1_agreement is None
    assert compare(LOGITS.reshape(50, 2, 5), LOGITS.reshape(50, 2, 5), 0.1).top1_agreement is None


def test_the_worst_output_decides() -> None:
    wanted = {"a": LOGITS, "b": LOGITS, "c": LOGITS}
    got = {"a": LOGITS + np.float32(1e-5), "b": LOGITS[:, ::-1], "c": LOGITS}
    assert worst_gate(wanted, got, "fp32").parity.max_abs > 1
    assert worst_gate({"a": LOGITS, "c": LOGITS}, {"a": got["a"], "c": LOGITS}, "fp32").parity.max_abs > 0


def test_other_shapes_are_refused() -> None:
    with pytest.raises(InputError, match="cannot be compared"):
        compare(LOGITS, LOGITS[:, :9], 0.1)


@given(arrays.arrays(np.float32, (4, 3), elements=st.floats(-1e6, 1e6, width=32)))
def test_anything_agrees_with_itself(answers: Any) -> None:
    assert gate(answers, answers, "fp32").ok
    found = compare(answers, answers, 1.0)
    assert found.max_abs == 0
    assert found.cosine == pytest.approx(1)

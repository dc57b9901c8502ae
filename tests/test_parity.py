"""Parity: what is measured, what is let through, and what is not."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from edgecv.errors import InputError
from edgecv.evaluation import wilson_interval
from edgecv.parity import BOUNDS, Gate, compare, gate, mean_iou, worst_gate
from edgecv.schema import dumps, encode

LOGITS = np.random.default_rng(0).normal(size=(50, 10)).astype(np.float32)


def test_equal_answers_agree_entirely() -> None:
    found = compare(LOGITS, LOGITS.copy())
    assert (found.samples, found.max_abs, found.mean_abs, found.cosine, found.top1_agreement) == (50, 0, 0, 1, 1)
    assert (found.psnr_db, found.top5_agreement, found.rank1_agreement, found.mean_iou) == (None, 1, None, None)
    assert gate(LOGITS, LOGITS, "fp32") == Gate(found, ())


def test_the_figures_are_those_of_the_definitions() -> None:
    wanted = np.array([[3.0, 4.0], [1.0, 0.0]])
    got = np.array([[4.0, 3.0], [1.0, 0.5]])
    found = compare(wanted, got, "fp16")
    assert found.max_abs == 1
    assert found.tolerance == pytest.approx(0.15 * wanted.std())
    assert found.psnr_db == pytest.approx(20 * np.log10(4 / 0.75), abs=0.05)  # 4 to 0; squares 1, 1, 0 and 0.25
    assert found.top1_interval == wilson_interval(1, 2)
    assert found.mean_abs == 0.625
    assert found.cosine == pytest.approx(1 / np.sqrt(1.25))
    assert found.top1_agreement == 0.5


@pytest.mark.parametrize("precision", BOUNDS)
def test_rounding_passes_and_ten_times_the_tolerance_does_not(precision: str) -> None:
    allowed = BOUNDS[precision].difference * float(LOGITS.std())
    for share, ok in ((0.5, True), (10.0, False)):
        other = LOGITS.copy()
        other[7, np.argmin(other[7])] -= allowed * share  # the best classes stay
        found = gate(LOGITS, other, precision)
        assert found.ok is ok
        assert ok or "largest difference" in found.failures[0]


@pytest.mark.parametrize(("many", "ok"), [(2, True), (3, True), (10, False)])
def test_of_int8_a_few_images_may_differ_more(many: int, ok: bool) -> None:
    allowed = BOUNDS["int8"].difference * float(LOGITS.std())
    other = LOGITS.copy()
    for row in range(many):
        other[row, np.argmin(other[row])] -= 1.4 * allowed
    found = gate(LOGITS, other, "int8")
    assert [item for item in found.failures if "difference" in item] == (
        [] if ok else [f"largest difference {1.4 * allowed:.3g}, at most {allowed:.3g} allowed on 95% of the samples; "
                       f"{many} of 50 have more"]
    )  # fmt: skip
    assert any("difference" in item for item in gate(LOGITS, other, "fp16").failures)


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
        lambda a: a + 5e-4,  # within the largest difference, but everywhere
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
    found = compare(LOGITS, np.full_like(LOGITS, np.nan))
    assert found.max_abs == np.finfo(np.float64).max
    assert np.isfinite([found.mean_abs, found.cosine]).all()
    for value in (np.nan, np.inf, -np.inf, 1e308):
        dumps(encode(compare(LOGITS, np.full(LOGITS.shape, value))))
        dumps(encode(compare(np.full(LOGITS.shape, value), LOGITS)))


def test_a_flipped_guess_is_refused_even_when_it_is_near() -> None:
    close = np.zeros((100, 2), np.float32)
    close[:, 0] = 1e-5
    close[0] = (1000, 0)  # a wide spread, so that the differences are small beside it
    flipped = close.copy()
    flipped[1:, 0] = -1e-5
    found = gate(close, flipped, "fp32")
    assert found.failures == ("top-1 agrees on 1.0% of the samples, 100% wanted",)


def test_top1_is_left_out_where_it_has_no_meaning() -> None:
    assert compare(LOGITS[:, :1], LOGITS[:, :1]).top1_agreement is None
    assert compare(LOGITS.reshape(50, 2, 5), LOGITS.reshape(50, 2, 5)).top1_agreement is None


def test_the_worst_output_decides() -> None:
    wanted = {"a": LOGITS, "b": LOGITS, "c": LOGITS}
    got = {"a": LOGITS + np.float32(1e-5), "b": LOGITS[:, ::-1], "c": LOGITS}
    assert worst_gate(wanted, got, "fp32").parity.max_abs > 1
    assert worst_gate({"a": LOGITS, "c": LOGITS}, {"a": got["a"], "c": LOGITS}, "fp32").parity.max_abs > 0


def test_an_output_that_is_missing_is_named() -> None:
    with pytest.raises(InputError, match="the reference gives a, the variant b, c: no 'a'"):
        worst_gate({"a": LOGITS}, {"b": LOGITS, "c": LOGITS}, "fp32")


@pytest.mark.parametrize(("lead", "same"), [(1e-6, 1.0), (1e-3, 0.5)])
def test_two_classes_that_tie_are_one_decision(lead: float, same: float) -> None:
    wanted = np.array([[10, 10 + 10 * lead, 0], [0, 0, 1.0]])
    got = np.array([[10 + 10 * lead, 10, 0], [0, 0, 1.0]])
    assert compare(wanted, got).top1_agreement == same
    assert gate(wanted, got, "fp32").ok is (same == 1)


def _flipped(samples: int, flips: int) -> Gate:
    """The gate of fp16 answers, some of which have another best class at no great difference."""
    wanted = np.tile(np.array([[1000.0, 50, 0]]), (samples, 1))
    wanted[:, 0] = np.where(np.arange(samples) < samples // 2, 1000, 60)
    got = wanted.copy()
    got[samples - flips :, 1] = 61
    return gate(wanted, got, "fp16")


@pytest.mark.parametrize(("samples", "flips", "ok"), [(20, 0, True), (20, 1, True), (20, 3, False), (6, 1, False)])
def test_a_share_fails_where_its_interval_lies_below_the_bound(samples: int, flips: int, ok: bool) -> None:
    found = _flipped(samples, flips)
    assert found.ok is ok
    assert ok or re.fullmatch(r"top-1 agrees on .* of the samples, 99% wanted", found.failures[0])


@given(st.integers(1, 400))
def test_equal_answers_pass_however_many_there_are(samples: int) -> None:
    answers = np.tile(np.eye(7), (samples, 1))[:samples]
    for task in ("classification", "embedding"):
        assert gate(answers, answers, "fp32", task).ok


def test_the_five_best_classes_are_compared_as_a_set() -> None:
    wanted = np.tile(np.arange(10.0), (4, 1))
    reordered, other = wanted.copy(), wanted.copy()
    reordered[:, 5:] = reordered[:, :4:-1]
    other[0, 0] = 20
    assert compare(wanted, reordered).top5_agreement == 1
    assert compare(wanted, other).top5_agreement == pytest.approx(19 / 20)
    assert compare(wanted[:, :5], other[:, :5]).top5_agreement is None


def test_embeddings_agree_on_their_nearest_neighbours() -> None:
    angles = np.array([0.0, 0.1, 1.0, 1.2, 3.0])
    wanted, got = (np.stack([np.cos(a), np.sin(a)], axis=1) for a in (angles, angles + np.array([0, 0.8, 0, 0, 0])))
    found = gate(wanted, got, "fp32", "embedding")
    assert found.parity.rank1_agreement == pytest.approx(3 / 5)  # 1 and 2 are nearest to each other now
    assert found.parity.top1_agreement is None
    assert [failure.split()[0] for failure in found.failures] == ["largest", "PSNR", "smallest", "nearest"]
    assert compare(wanted, wanted * 7, task="embedding").rank1_agreement == 1
    assert compare(wanted[:2], got[:2], task="embedding").rank1_agreement is None


def test_boxes_are_compared_by_their_overlap() -> None:
    wanted = np.array([[10, 10, 20, 20], [0, 0, 4, 4], [5, 5, 0, 0.0]])
    moved = wanted + np.array([[10, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
    assert mean_iou(wanted, moved) == pytest.approx((1 / 3 + 1 + 1) / 3)
    found = gate(wanted, moved, "int8", "boxes")
    assert found.parity.mean_iou == mean_iou(wanted, moved)
    assert "mean IoU of the boxes is 0.778, 0.85 wanted" in found.failures
    assert gate(wanted, wanted, "fp32", "boxes").ok


def test_other_shapes_are_refused() -> None:
    with pytest.raises(InputError, match="cannot be compared"):
        compare(LOGITS, LOGITS[:, :9])


@given(arrays.arrays(np.float32, (4, 3), elements=st.floats(-1e6, 1e6, width=32)))
def test_anything_agrees_with_itself(answers: Any) -> None:
    assert gate(answers, answers, "fp32").ok
    found = compare(answers, answers)
    assert found.max_abs == 0
    assert found.cosine == pytest.approx(1)

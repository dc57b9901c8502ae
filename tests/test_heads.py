"""Heads and confidence: answers worked out by hand, and measures that follow what they measure."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from edgecv.errors import InputError
from tests.conftest import require

require("opencv")

from edgecv.pipelines.tracking import Confidence, TrackerSettings  # noqa: E402  (after the check that OpenCV is there)
from edgecv.pipelines.tracking.calibration import cover, cut_out, roc_auc  # noqa: E402
from edgecv.pipelines.tracking.confidence import Measures, agreement, calibrate, measure  # noqa: E402
from edgecv.pipelines.tracking.heads import head_for  # noqa: E402
from edgecv.schema import decode, encode  # noqa: E402
from tests.tracking import scene  # noqa: E402

POINTS = TrackerSettings(head="points", stride=16)
ANCHORS = TrackerSettings(head="anchors", stride=8, ratios=(0.25, 1.0, 4.0), anchor=64.0)
PEAK = TrackerSettings(head="peak", stride=8, scales=3, penalty=0.97, window=0.1, rate=0.5, step=1.1)
Floats = NDArray[np.float32]


def _map(size: int, row: int, column: int, height: float = 8.0) -> Floats:
    found = np.full((size, size), -4, np.float32)
    found[row, column] = height
    return found


def _bump(size: int, row: float, column: float) -> Floats:
    y, x = np.mgrid[:size, :size]
    return np.asarray(8 * np.exp(-((y - row) ** 2 + (x - column) ** 2) / 8) - 4, np.float32)


def test_a_point_s_distances_make_the_box() -> None:
    score, sides = np.stack([np.zeros((16, 16), np.float32), _map(16, 8, 9)]), np.ones((4, 16, 16), np.float32)
    sides[:, 8, 9] = 10, 20, 30, 40
    found = head_for(POINTS).locate({"score": score[None], "box": sides[None]}, (40, 60))
    assert found.shift == pytest.approx((16 + 10, 0 + 10))
    assert found.size == pytest.approx((40, 60))
    assert found.score > 0.99
    assert found.response.shape == (16, 16)


@pytest.mark.parametrize("distance", [-50.0, 0.0, 1e30, float("inf"), float("-inf")])
def test_a_broken_point_s_box_is_finite_and_has_an_area(distance: float) -> None:
    score = np.stack([np.zeros((16, 16), np.float32), _map(16, 8, 9)])
    outputs = {"score": score[None], "box": np.full((1, 4, 16, 16), distance, np.float32)}
    found = head_for(replace(POINTS, penalty=0.1)).locate(outputs, (40, 60))
    assert np.isfinite([*found.shift, *found.size]).all()
    assert min(found.size) > 0


def test_an_anchor_s_offsets_make_the_box() -> None:
    score, box = np.full((2, 3, 17, 17), -5, np.float32), np.zeros((4, 3, 17, 17), np.float32)
    score[1, 2, 8, 10], box[:, 2, 8, 10] = 5, (0.5, -0.25, math.log(2), 0)
    outputs = {"score": score.reshape(1, 6, 17, 17), "box": box.reshape(1, 12, 17, 17)}
    found = head_for(ANCHORS).locate(outputs, (64, 128))
    assert found.shift == pytest.approx((16 + 0.5 * 32, -0.25 * 128))  # the anchor is 32 wide and 128 high
    assert found.size == pytest.approx((64, 128), rel=1e-3)


def test_a_peak_of_the_larger_scale_grows_the_target() -> None:
    maps = np.stack([_bump(17, 8, 8) - 2, _bump(17, 8, 8) - 2, _bump(17, 8, 10)])[:, None]
    found = head_for(PEAK).locate({"score": maps}, (50, 50))
    assert found.shift == pytest.approx((16 * 1.1, 0), abs=1.0)
    assert found.size == pytest.approx((50 * 1.05, 50 * 1.05))


def test_a_stiller_scale_is_preferred_by_the_penalty() -> None:
    maps = np.stack([_bump(17, 8, 8) - 0.01, _bump(17, 8, 8) - 0.02, _bump(17, 8, 8)])[:, None]
    assert head_for(PEAK).locate({"score": maps}, (50, 50)).size == (50, 50)


def test_the_window_prefers_the_nearer_of_two_equals() -> None:
    score = np.stack([np.zeros((16, 16), np.float32), np.maximum(_map(16, 8, 9), _map(16, 1, 1))])
    outputs = {"score": score[None], "box": np.full((1, 4, 16, 16), 20, np.float32)}
    settings = TrackerSettings(head="points", stride=16, window=0.4)
    assert head_for(settings).locate(outputs, (40, 40)).shift == (16, 0)


def test_a_change_of_shape_lowers_a_score() -> None:
    score = np.stack([np.zeros((16, 16), np.float32), np.maximum(_map(16, 8, 8, 3.0), _map(16, 8, 12, 3.1))])
    sides = np.full((4, 16, 16), 20, np.float32)
    sides[:, 8, 12] = 60, 5, 60, 5
    settings = TrackerSettings(head="points", stride=16, penalty=0.2)
    found = head_for(settings).locate({"score": score[None], "box": sides[None]}, (40, 40))
    assert found.shift == (0, 0)


@pytest.mark.parametrize("settings", [POINTS, ANCHORS, PEAK])
def test_wild_answers_stay_finite(settings: TrackerSettings) -> None:
    cells, anchors = 17, len(settings.ratios) or 1
    channels = 1 if settings.head == "peak" else 2 * anchors
    outputs = {
        "score": np.full((settings.scales, channels, cells, cells), 1e4, np.float32),
        "box": np.full((1, 4 * anchors, cells, cells), 1e4, np.float32),
    }
    found = head_for(settings).locate(outputs, (40, 40))
    assert np.isfinite([*found.shift, *found.size, found.score]).all()


def test_a_sharp_peak_measures_more_than_a_flat_or_a_double_one() -> None:
    sharp, flat = measure(_map(16, 7, 7)), measure(np.random.default_rng(0).normal(size=(16, 16)).astype(np.float32))
    double = measure(np.maximum(_map(16, 2, 2), _map(16, 12, 12)))
    assert sharp.psr > double.psr > flat.psr
    assert sharp.apce > double.apce > flat.apce


@pytest.mark.parametrize("value", [0.0, -7.0, 3.0])
def test_a_map_without_a_peak_measures_finite(value: float) -> None:
    assert np.isfinite(measure(np.full((16, 16), value, np.float32))).all()


def test_agreement_is_1_with_itself_and_blind_to_the_border() -> None:
    features = np.random.default_rng(0).normal(size=(1, 48, 8, 8)).astype(np.float32)
    changed = features.copy()
    changed[..., :2, :] = 9
    assert agreement(features, changed) == pytest.approx(1, abs=1e-6)
    assert abs(agreement(features, np.roll(features, 3, 1))) < 0.3


def test_calibration_separates_what_can_be_separated() -> None:
    random = np.random.default_rng(0)
    present = [bool(index % 4 == 0) for index in range(400)]
    values = [(Measures(*random.normal(2.0 * there, 1, 3)), float(random.normal(there, 1))) for there in present]
    constants = calibrate(values, present)
    chances = [constants.probability(found, agreed) for found, agreed in values]
    assert roc_auc(chances, present) > 0.98
    assert np.mean([chance > 0.5 for chance, there in zip(chances, present, strict=True) if there]) > 0.9
    assert roc_auc([constants.probability(found) for found, _ in values], present) > 0.95


def test_calibration_needs_both_outcomes() -> None:
    with pytest.raises(InputError, match="some with the target and some without"):
        calibrate([(Measures(1, 1, 1), 1.0)] * 3, [True] * 3)
    with pytest.raises(InputError, match="frames with the target and frames without"):
        roc_auc([1.0, 2.0], [False, False])


def test_roc_auc_counts_ties_half() -> None:
    assert roc_auc([3, 2, 1, 0], [True, True, False, False]) == 1
    assert roc_auc([1, 1], [True, False]) == 0.5


def test_hiding_changes_the_target_and_nothing_else() -> None:
    frame, box = scene((100, 80, 40, 30)), (100.0, 80.0, 40.0, 30.0)
    for changed in (cut_out(frame, box), cover(frame, box, np.random.default_rng(0))):
        assert (changed != frame).any(2)[80:110, 100:140].mean() > 0.99
        assert np.array_equal(changed[:70], frame[:70])
        assert np.array_equal(changed[:, :90], frame[:, :90])
    assert cut_out(frame, box).max() < 255 or (cut_out(frame, box) == 255).all(2).sum() == 0


@pytest.mark.parametrize("box", [(-10.0, -10.0, 60.0, 50.0), (300.0, 200.0, 60.0, 60.0), (0.0, 0.0, 320.0, 240.0)])
def test_targets_at_the_border_can_be_hidden(box: tuple[float, float, float, float]) -> None:
    assert cut_out(scene(None), box).shape == cover(scene(None), box, np.random.default_rng(0)).shape == (240, 320, 3)


@pytest.mark.parametrize(
    "settings", [POINTS, ANCHORS, PEAK, TrackerSettings("points", confidence=Confidence((1,) * 4, (1,) * 5))]
)
def test_settings_go_into_a_manifest_and_back(settings: TrackerSettings) -> None:
    assert decode(TrackerSettings, encode(settings), "settings") == settings


@pytest.mark.parametrize(
    ("options", "telling"),
    [
        ({"head": "cells"}, "head is"),
        ({"head": "points", "exemplar": 300}, "exemplar <= search"),
        ({"head": "points", "search": 99999}, "1024"),
        ({"head": "points", "context": -1.0}, "context"),
        ({"head": "points", "stride": 0}, "stride"),
        ({"head": "anchors"}, "anchors need ratios"),
        ({"head": "peak", "scales": 2}, "odd"),
        ({"head": "points", "rate": 1.5}, "rate"),
    ],
)
def test_settings_that_cannot_be_are_refused(options: dict[str, object], telling: str) -> None:
    with pytest.raises(InputError, match=telling):
        TrackerSettings(**options)  # type: ignore[arg-type]  # that is the point


def test_constants_that_cannot_be_are_refused() -> None:
    with pytest.raises(InputError, match="4 and 5 constants"):
        Confidence((1,), (1,))  # type: ignore[arg-type]  # that is the point
    with pytest.raises(InputError, match="absent <= doubt"):
        Confidence((1,) * 4, (1,) * 5, absent=0.6)

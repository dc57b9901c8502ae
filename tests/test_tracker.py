"""The tracker: following, refusing, staying bounded, and telling when the target is gone."""

from __future__ import annotations

import math
import tracemalloc
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgecv.errors import InputError
from tests.conftest import require

require("opencv")

import cv2  # noqa: E402  (after the check that OpenCV is there)

from edgecv.pipelines.tracking import Tracker  # noqa: E402
from edgecv.pipelines.tracking.boxes import Box, iou, overlaps  # noqa: E402
from edgecv.pipelines.tracking.crops import cut, cut_near, fill_colour  # noqa: E402
from edgecv.tensors import Array  # noqa: E402
from tests.tracking import SETTINGS, Search, Template, scene  # noqa: E402

FIRST: Box = (100, 80, 40, 30)
numbers = st.floats(-1e6, 1e6, allow_nan=False)


def _tracker() -> Tracker:
    return Tracker(Template(), Search(), SETTINGS)


def test_a_moving_growing_target_is_followed() -> None:
    tracker = _tracker()
    tracker.init(scene(FIRST), FIRST)
    for step in range(1, 30):
        truth = (100 + 4 * step, 80 + 2 * step, 40 + step // 2, 30 + step // 2)
        state = tracker.update(scene(truth))
        assert state.status == "tracking"
        assert iou(state.box, truth) > 0.6
    assert state.confidence > 0.9


def test_the_first_answer_is_the_given_box() -> None:
    state = _tracker().init(scene(FIRST), FIRST)
    assert (state.box, state.status) == (FIRST, "tracking")


@pytest.mark.parametrize(
    ("box", "telling"),
    [
        ((0, 0, 0, 10), "at least 1 pixel"),
        ((10, 10, -5, 10), "at least 1 pixel"),
        ((500, 10, 20, 20), "outside the frame of 320 x 240"),
        ((-30, 10, 20, 20), "outside the frame"),
        ((10, math.nan, 20, 20), "four finite numbers"),
        ((10, 10, math.inf, 20), "four finite numbers"),
        ((10, 10, 20), "four numbers"),
        ("abcd", "four numbers"),
        (None, "four numbers"),
    ],
)
def test_a_degenerate_first_box_is_refused(box: Box, telling: str) -> None:
    with pytest.raises(InputError, match=telling):
        _tracker().init(scene(None), box)


@pytest.mark.parametrize("frame", [np.zeros((8, 8), np.uint8), np.zeros((0, 8, 3), np.uint8), np.zeros((8, 8, 3)), "x"])
def test_what_is_no_frame_is_refused(frame: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> None:
    tracker = _tracker()
    with pytest.raises(InputError, match="a frame is"):
        tracker.init(frame, FIRST)
    tracker.init(scene(FIRST), FIRST)
    with pytest.raises(InputError, match="a frame is"):
        tracker.update(frame)


def test_update_before_init_is_refused() -> None:
    with pytest.raises(InputError, match=r"call init\(frame, box\)"):
        _tracker().update(scene(None))


def test_a_refused_init_leaves_the_old_target() -> None:
    tracker = _tracker()
    tracker.init(scene(FIRST), FIRST)
    with pytest.raises(InputError):
        tracker.init(scene(FIRST), (0, 0, 0, 0))
    assert iou(tracker.update(scene(FIRST)).box, FIRST) > 0.8


def test_a_hidden_target_is_unsure_then_lost_with_its_box_frozen() -> None:
    tracker = _tracker()
    tracker.init(scene(FIRST), FIRST)
    before = tracker.update(scene(FIRST)).box
    states = [tracker.update(scene(None)) for _ in range(20)]
    assert [state.status for state in states[:3]] == ["unsure", "unsure", "lost"]
    assert {state.status for state in states[2:]} == {"lost"}
    assert all(state.box == before for state in states)
    assert max(state.confidence for state in states) < 0.1


@pytest.mark.parametrize("where", [FIRST, (180, 120, 40, 30), (10, 10, 40, 30)])
def test_a_lost_target_is_found_again(where: Box) -> None:
    tracker = _tracker()
    tracker.init(scene(FIRST), FIRST)
    for _ in range(10):
        tracker.update(scene(None))
    states = [tracker.update(scene(where)) for _ in range(60)]
    assert states[-1].status == "tracking"
    assert iou(states[-1].box, where) > 0.6


def test_a_lost_target_costs_one_search_a_frame_and_never_a_larger_crop() -> None:
    search = Search()
    tracker = Tracker(Template(), search, SETTINGS)
    tracker.init(scene(FIRST), FIRST)
    for _ in range(50):
        tracker.update(scene(None))
    assert len(search.crops) == 50
    assert tracker.update(scene(None)).box[2:] == FIRST[2:]


def test_without_constants_every_frame_is_tracking() -> None:
    tracker = Tracker(Template(), Search(), replace(SETTINGS, confidence=None))
    tracker.init(scene(FIRST), FIRST)
    assert {tracker.update(scene(None)).status for _ in range(10)} == {"tracking"}


def test_the_exemplar_is_compared_only_in_doubt() -> None:
    template = Template()
    tracker = Tracker(template, Search(), SETTINGS)
    tracker.init(scene(FIRST), FIRST)
    tracker.update(scene(FIRST))
    assert template.runs == 1
    tracker.update(scene(None))
    assert template.runs == 2


def test_examine_leaves_the_tracker_as_it_is() -> None:
    tracker = _tracker()
    tracker.init(scene(FIRST), FIRST)
    there, agreed = tracker.examine(scene(FIRST), FIRST)
    gone, _ = tracker.examine(scene(None), (10, 10, 90, 90))
    assert there.peak > 5 > -5 > gone.peak
    assert agreed == pytest.approx(1)
    assert iou(tracker.update(scene(FIRST)).box, FIRST) > 0.8


class Rounded(Search):
    """The same answers, as another runtime's rounding has them."""

    def _run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        noise = np.random.default_rng(len(self.crops))
        answers = super()._run(inputs)
        return {
            name: value + noise.uniform(-1e-5, 1e-5, value.shape).astype(np.float32) for name, value in answers.items()
        }


def test_a_runtime_s_rounding_does_not_add_up() -> None:
    exact, other = _tracker(), Tracker(Template(), Rounded(), SETTINGS)
    for tracker in (exact, other):
        tracker.init(scene(FIRST), FIRST)
    for step in range(1, 40):
        frame = scene((100 + 2.7 * step, 80 + 1.3 * step, 40 + step / 3, 30))
        assert exact.update(frame).box == other.update(frame).box


def test_frames_may_change_their_size() -> None:
    tracker = _tracker()
    tracker.init(scene(FIRST), FIRST)
    state = tracker.update(scene(None, (40, 50)))
    assert np.isfinite(state.box).all()


def test_memory_does_not_grow() -> None:
    tracker = _tracker()
    search = tracker._search
    tracker.init(scene(FIRST), FIRST)
    frames = [scene(FIRST), scene(None)]

    def some() -> None:
        for index in range(60):
            tracker.update(frames[index // 15 % 2])
        assert isinstance(search, Search)
        search.crops.clear()

    some()
    tracemalloc.start()
    some()
    first = tracemalloc.get_traced_memory()[0]
    some()
    some()
    assert tracemalloc.get_traced_memory()[0] < first + 20_000
    tracemalloc.stop()


def test_closing_closes_both_sessions() -> None:
    with _tracker() as tracker:
        tracker.init(scene(FIRST), FIRST)
    with pytest.raises(InputError, match="closed"):
        tracker.update(scene(FIRST))


@pytest.mark.parametrize(
    ("centre", "side"),
    [((160, 120), 1e7), ((-1e6, 5), 50), ((160, 120), 1e-3), ((319, 239), 300), ((160.5, 120.5), 255)],
)
@pytest.mark.parametrize(("way", "most"), [(cut, 100_000), (cut_near, 5_000_000)], ids=["exact", "near"])
def test_any_square_is_cut_in_little_memory(way: Any, most: int, centre: tuple[float, float], side: float) -> None:
    frame, out = scene(FIRST), np.zeros((255, 255, 3), np.uint8)
    tracemalloc.start()
    way(frame, centre, side, fill_colour(frame), out)
    assert tracemalloc.get_traced_memory()[1] < most
    tracemalloc.stop()


@given(st.tuples(st.floats(-60, 380), st.floats(-60, 300)), st.floats(20, 700))
@settings(max_examples=100, deadline=None)
def test_a_near_square_is_near_and_says_where_it_is(centre: tuple[float, float], side: float) -> None:
    frame = cv2.GaussianBlur(scene(FIRST), (0, 0), 3)
    near, exact = np.zeros((127, 127, 3), np.uint8), np.zeros((127, 127, 3), np.uint8)
    where, whole = cut_near(frame, centre, side, fill_colour(frame), near)
    pixel = side / 127
    assert whole == pytest.approx(side, abs=0.6 * pixel)
    assert all(abs(one - other) <= 0.6 * pixel for one, other in zip(where, centre, strict=True))
    cut(frame, where, whole, fill_colour(frame), exact)
    assert np.abs(near[2:-2, 2:-2].astype(int) - exact[2:-2, 2:-2]).mean() < 0.7


def test_a_square_of_the_crop_s_own_size_is_copied() -> None:
    frame, out = scene(FIRST), np.zeros((101, 101, 3), np.uint8)
    cut(frame, (150.5, 100.5), 101, (0, 0, 0), out)
    assert np.array_equal(out, frame[50:151, 100:201])


def test_outside_the_frame_is_its_mean_colour() -> None:
    frame = np.zeros((50, 60, 3), np.uint8)
    frame[:] = 10, 20, 30
    out = np.zeros((31, 31, 3), np.uint8)
    cut(frame, (-100, -100), 31, fill_colour(frame), out)
    assert (out == (10, 20, 30)).all()


@given(st.tuples(numbers, numbers, numbers, numbers), st.tuples(numbers, numbers, numbers, numbers))
def test_iou_is_symmetric_and_0_to_1(first: Box, second: Box) -> None:
    assert 0 <= iou(first, second) <= 1
    assert iou(first, second) == pytest.approx(iou(second, first))


def test_overlaps_are_those_worked_out_by_hand() -> None:
    first = np.array([[0, 0, 10, 10], [0, 0, 10, 10], [0, 0, 10, 10], [0, 0, 0, 0]])
    second = np.array([[0, 0, 10, 10], [5, 0, 10, 10], [10, 0, 5, 5], [0, 0, 0, 0]])
    assert overlaps(first, second).tolist() == [1, pytest.approx(1 / 3), 0, 0]

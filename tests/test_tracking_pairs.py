"""Pairs of crops from sequences: where the target is in them, which frames they come from, and that they repeat."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgecv.errors import InputError
from tests.conftest import require

for _name in ("torch", "opencv"):
    require(_name)

from edgecv.pipelines.tracking import TrackerSettings, open_sequences  # noqa: E402  (after the check that it is there)
from edgecv.training import PairConfig, TrackingPairs  # noqa: E402
from edgecv.training.tracking_pairs import hold_out_sequences  # noqa: E402
from tests.tracking import write_frames  # noqa: E402

SETTINGS = TrackerSettings(head="points", exemplar=63, search=127)
PLAIN: dict[str, Any] = {"flip": False, "grey": 0.0, "blur": 0.0, "brightness": 0.0, "contrast": 0.0}
Array = NDArray[Any]


class Squares:
    """A bright rectangle of one colour on a dark ground; the ground's brightness is the frame's number."""

    def __init__(self, boxes: list[tuple[float, ...]], colour: int = 0, name: str = "squares") -> None:
        self.name, self.colour = name, colour
        self.boxes = np.array(boxes, np.float64)
        self.visible = np.ones(len(boxes), bool)

    def __len__(self) -> int:
        return len(self.boxes)

    def __getitem__(self, index: int) -> NDArray[np.uint8]:
        frame = np.full((120, 160, 3), index, np.uint8)
        x, y, w, h = self.boxes[index].astype(int)
        frame[max(y, 0) : y + h, max(x, 0) : x + w, self.colour] = 255
        return frame


def _squares(count: int = 12, **changes: Any) -> Squares:
    return Squares([(30 + 4 * index, 40, 24, 18) for index in range(count)], **changes)


def _pairs(*sequences: Any, **changes: Any) -> TrackingPairs:
    seed = changes.pop("seed", 0)
    return TrackingPairs(sequences or (_squares(),), SETTINGS, PairConfig(**{"pairs": 20, **changes}), seed=seed)


def _found(crop: Array, colour: int = 0) -> list[float]:
    """Centre and sides of what is bright, in pixels from the crop's centre."""
    rows, columns = np.nonzero(crop[..., colour] > 150)
    edges = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]) - len(crop) / 2
    return [*((edges[:2] + edges[2:]) / 2), *(edges[2:] - edges[:2])]


def _same(first: Any, second: Any) -> bool:
    return all(np.array_equal(a, b) for a, b in zip((*first[0], first[1]), (*second[0], second[1]), strict=True))


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize(("shift", "scale"), [(0.0, 0.0), (20.0, 0.0), (12.0, 0.2)])
def test_a_target_is_where_the_pair_says(shift: float, scale: float, flip: bool) -> None:
    pairs = _pairs(**{**PLAIN, "flip": flip}, shift=shift, scale=scale)
    for index in range(len(pairs)):
        (exemplar, search), target = pairs[index]
        assert np.abs(_found(search) - target[:4]).max() < 1.6
        assert np.abs(_found(exemplar)[:2]).max() < 1.1
        assert np.abs(target[:2]).max() <= shift
        assert target[4] == 1


def test_both_crops_are_those_of_the_runtime_s_tracker() -> None:
    """A target of 24x18 has a context of 41.3 pixels, which the exemplar of 63 shows whole, the search crop twice."""
    (exemplar, search), target = _pairs(shift=0.0, scale=0.0, **PLAIN)[0]
    side = ((24 + 21) * (18 + 21)) ** 0.5
    assert target[2:4] == pytest.approx([24 * 63 / side, 18 * 63 / side], rel=1e-5)
    assert (exemplar.shape, search.shape) == ((63, 63, 3), (127, 127, 3))


def test_a_mirrored_pair_is_the_other_in_a_mirror() -> None:
    straight, mirrored = _pairs(flip=False, seed=3), _pairs(flip=True, seed=3)
    turned = 0
    for index in range(20):
        first, second = straight[index], mirrored[index]
        if second[1][0] != first[1][0]:
            turned += 1
            assert second[1][0] == -first[1][0]
            (exemplar, search), target = second
            target[0] = -target[0]
            second = (exemplar[:, ::-1], search[:, ::-1]), target
        assert _same(first, second)
    assert 4 <= turned <= 16


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 2**31), st.integers(0, 9), st.integers(0, 19))
def test_a_pair_depends_on_seed_epoch_and_index_alone(seed: int, epoch: int, index: int) -> None:
    first, second = _pairs(seed=seed), _pairs(seed=seed)
    _ = second[0], second[(index + 1) % 20]
    first.set_epoch(epoch)
    second.set_epoch(epoch)
    assert _same(first[index], second[index])
    second.set_epoch(epoch + 1)
    assert not _same(first[index], second[index])


def test_a_negative_pair_shows_the_target_of_another_sequence() -> None:
    pairs = _pairs(_squares(), _squares(colour=2, name="blue"), negatives=0.5, **PLAIN)
    there = []
    for index in range(len(pairs)):
        (exemplar, search), target = pairs[index]
        own, shown = (int(crop.reshape(-1, 3).astype(float).max(0).argmax()) for crop in (exemplar, search))
        assert (own == shown) == bool(target[4])
        assert np.abs(_found(search, shown) - target[:4]).max() < 1.6
        there.append(target[4])
    assert 4 <= sum(there) <= 16


def test_frames_are_at_most_a_gap_apart_and_never_hidden_ones() -> None:
    sequence = _squares()
    sequence.visible[[2, 7]] = False
    sequence.boxes[5] = np.nan
    pairs = _pairs(sequence, gap=3, pairs=80, **PLAIN)
    for index in range(80):
        numbers = [int(np.median(crop[..., 1])) for crop in pairs[index][0]]
        assert abs(numbers[0] - numbers[1]) <= 3
        assert not {2, 5, 7} & set(numbers)


@pytest.mark.parametrize("change", ["grey", "blur", "brightness", "contrast"])
def test_a_change_of_the_image_leaves_the_target_where_it_is(change: str) -> None:
    plain, changed = (_pairs(seed=1, **{**PLAIN, change: value}) for value in (0.0, 1.0))
    assert any(not np.array_equal(plain[i][0][1], changed[i][0][1]) for i in range(5))
    for index in range(5):
        assert np.array_equal(plain[index][1], changed[index][1])
    if change == "grey":
        exemplar, search = changed[0][0]
        assert all(np.ptp(crop.astype(int), axis=2).max() == 0 for crop in (exemplar, search))


@pytest.mark.parametrize(
    ("place", "frames", "truth"),
    [
        ("val/GOT-10k_Val_000001", "", "groundtruth.txt"),
        ("Basketball", "img", "groundtruth_rect.txt"),
        ("bag", "color", "groundtruth.txt"),
        ("airplane/airplane-1", "img", "groundtruth.txt"),
    ],
)
def test_every_layout_of_folders_gives_pairs(tmp_path: Path, place: str, frames: str, truth: str) -> None:
    write_frames(tmp_path / place / frames, 4, (48, 64))
    (tmp_path / place / truth).write_text("".join(f"{index},5,8,6\n" for index in range(1, 5)))
    (_, search), target = _pairs(*open_sequences(tmp_path), shift=0.0, scale=0.0, **PLAIN)[0]
    assert np.abs(_found(search) - target[:4]).max() < 10  # one pixel of the frame is 4.6 of the crop


def test_sequences_are_held_out_whole() -> None:
    sequences = [_squares(name=str(index)) for index in range(7)]
    kept, held = hold_out_sequences(sequences, every=3)
    assert [one.name for one in held] == ["2", "5"]
    assert [one.name for one in kept] == ["0", "1", "3", "4", "6"]
    assert [one.name for one in hold_out_sequences(sequences[:2])[1]] == ["1"]
    with pytest.raises(InputError, match="one sequence cannot be held out"):
        hold_out_sequences(sequences[:1])


@pytest.mark.parametrize(
    ("changes", "telling"),
    [
        ({"pairs": 0}, "pairs is 1 or more"),
        ({"shift": -1}, "shift 0 to 1024 pixels"),
        ({"negatives": 1.5}, "negatives is from 0 to 1, got 1.5"),
        ({"scale": float("nan")}, "scale is from 0 to 1"),
        ({"negatives": 0.5}, "negative pairs come from another sequence"),
    ],
)
def test_what_pairs_cannot_be_drawn_with_is_refused(changes: dict[str, Any], telling: str) -> None:
    with pytest.raises(InputError, match=telling):
        _pairs(**changes)


def test_sequences_without_a_target_are_refused() -> None:
    hidden = _squares()
    hidden.visible[:] = False
    with pytest.raises(InputError, match="none of 1 sequences has a frame with its target"):
        _pairs(hidden)
    outside = Squares([(500, 40, 24, 18)] * 3, name="far")
    with pytest.raises(InputError, match="sequence far: its boxes lie outside its frames"):
        _pairs(outside)[0]
    with pytest.raises(IndexError):
        _pairs()[20]

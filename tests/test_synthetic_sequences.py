"""Synthetic sequences: they repeat, their boxes are true, and their folders read as anyone's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgecv.errors import InputError
from tests.conftest import require

for _name in ("torch", "opencv"):
    require(_name)

from edgecv.pipelines.tracking import TrackerSettings, open_sequences  # noqa: E402  (after the check that it is there)
from edgecv.training import PairConfig, TrackingPairs  # noqa: E402
from edgecv.training.synthetic import SceneConfig, SyntheticSequence, synthetic_sequences, write_sequences  # noqa: E402
from edgecv.training.textures import Path2D, outline, shape_mask, texture  # noqa: E402

SMALL: dict[str, Any] = {"frames": 8, "height": 80, "width": 100, "smallest": 12, "largest": 24}


def _sequence(seed: int = 0, **changes: Any) -> SyntheticSequence:
    return SyntheticSequence(seed, SceneConfig(**{**SMALL, **changes}))


def test_a_seed_draws_the_same_frames_in_any_order() -> None:
    first, second = _sequence(3), _sequence(3)
    frames = list(first)
    assert len(frames) == len(first) == 8
    for index in (5, 0, 7):
        assert np.array_equal(second[index], frames[index])
    assert not np.array_equal(_sequence(4)[0], frames[0])
    assert (first.name, first.boxes.tolist()) == ("synthetic_000003", second.boxes.tolist())


def test_frames_are_rgb_bytes_that_change() -> None:
    sequence = _sequence()
    assert sequence[0].shape == (80, 100, 3)
    assert sequence[0].dtype == np.uint8
    assert sequence[0].std() > 15
    assert np.abs(sequence[0].astype(int) - sequence[1]).mean() > 1
    with pytest.raises(IndexError):
        sequence[8]


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 10_000))
def test_a_box_is_the_hull_of_what_the_target_changes(seed: int) -> None:
    """Drawn twice, with and without the target: what differs is the target, and lies in its box."""
    sequence = _sequence(seed, noise=0, light=0, occluders=0, distractors=0)
    canvas = sequence._ground(sequence._camera(2))
    bare = canvas.copy()
    sequence._target.paint(canvas, 2)
    rows, columns = np.nonzero(np.abs(canvas.astype(int) - bare).max(2) > 2)
    x, y, w, h = sequence.boxes[2]
    height, width = canvas.shape[:2]
    wanted = [max(x, 0), max(y, 0), min(x + w, width), min(y + h, height)]
    found = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    assert np.abs(np.array(found) - wanted).max() <= 2.5  # a pixel's edge, and where both happen to be alike


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10_000))
def test_the_first_frame_shows_the_whole_target_and_the_last_its_centre(seed: int) -> None:
    sequence = _sequence(seed, frames=40, occluders=2)
    assert sequence.visible[0]
    assert sequence.cover[0] == pytest.approx(1.0)
    centres = sequence.boxes[:, :2] + sequence.boxes[:, 2:] / 2
    assert (centres > 0).all()
    assert (centres < [100, 80]).all()
    assert ((sequence.cover >= 0) & (sequence.cover <= 1)).all()


def test_posts_cover_targets() -> None:
    hidden = [_sequence(seed, frames=60, occluders=3).cover.min() for seed in range(8)]
    assert min(hidden) < 0.15
    assert _sequence(0, occluders=0).cover.min() == 1.0


def test_what_is_asked_for_is_what_moves() -> None:
    still = _sequence(speed=0, zoom=0, turn_deg=0, pan=0, noise=0, light=0, distractors=0, occluders=0)
    assert np.ptp(still.boxes, axis=0).max() < 1e-9
    assert np.array_equal(still[0], still[7])
    steps = np.abs(np.diff(_sequence(frames=40, speed=2.0, zoom=0, turn_deg=0).boxes[:, :2], axis=0))
    assert 0.2 < steps.max() <= 4.0
    sizes = _sequence(frames=60, speed=0, zoom=0.5, turn_deg=0).boxes[:, 2]
    assert sizes.max() / sizes.min() > 1.2


def test_distractors_are_of_the_target_s_kind() -> None:
    sequence = _sequence(distractors=3)
    for other in sequence._others:
        assert (other.kind, other.side, other.ratio) == (
            sequence._target.kind,
            sequence._target.side,
            sequence._target.ratio,
        )
        assert not np.array_equal(other.patch, sequence._target.patch)


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_a_folder_reads_as_got10k_s(tmp_path: Path, suffix: str) -> None:
    sequences = synthetic_sequences(2, SceneConfig(**{**SMALL, "frames": 4}), seed=5)
    sequences[1].visible[2] = False
    assert write_sequences(sequences, tmp_path / "data", suffix=suffix) == tmp_path / "data"
    found = open_sequences(tmp_path / "data")
    assert [one.name for one in found] == ["synthetic_000005", "synthetic_000006"]
    assert (tmp_path / "data" / "list.txt").read_text().split() == [one.name for one in found]
    for written, read in zip(sequences, found, strict=True):
        assert np.abs(read.boxes - written.boxes).max() <= 5e-5
        assert read.visible.tolist() == written.visible.tolist()
        apart = np.abs(read[1].astype(int) - written[1])
        assert apart.max() == 0 if suffix == ".png" else apart.mean() < 10


def test_nothing_is_written_where_something_is_or_as_something_else(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="not empty"):
        write_sequences([_sequence()], tmp_path)
    with pytest.raises(InputError, match=r"\.jpg or \.png, got '\.doc'"):
        write_sequences([_sequence()], tmp_path / "data", suffix=".doc")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_they_are_footage_to_train_on_as_they_are() -> None:
    pairs = TrackingPairs([_sequence()], TrackerSettings(head="peak", exemplar=31, search=63), PairConfig(pairs=2))
    (exemplar, search), target = pairs[1]
    assert (exemplar.shape, search.shape, target[4]) == ((31, 31, 3), (63, 63, 3), 1)


@pytest.mark.parametrize(
    ("changes", "telling"),
    [
        ({"frames": 0}, "1 frame or more"),
        ({"width": 8}, "32 to 4096 pixels a side"),
        ({"smallest": 30}, "smallest first; got 30 and 24"),
        ({"largest": 90}, "0.6 of the frame's shorter side"),
        ({"noise": -1}, "noise is 0 or more, got -1"),
    ],
)
def test_scenes_that_cannot_be_are_refused(changes: dict[str, Any], telling: str) -> None:
    with pytest.raises(InputError, match=telling):
        SceneConfig(**{**SMALL, **changes})


@given(st.integers(0, 2**31), st.floats(0, 20), st.floats(0, 100))
def test_a_way_stays_within_its_reach_and_its_speed(seed: int, speed: float, reach: float) -> None:
    way = Path2D(np.random.default_rng(seed), speed, (reach, 0.0))
    places = np.array([way(index) for index in range(50)])
    assert np.abs(places[:, 0]).max() <= reach + 1e-9
    assert not places[:, 1].any()
    assert np.abs(np.diff(places[:, 0])).max() <= 2 * speed + 1e-9


@pytest.mark.parametrize("kind", [0, 1, 2])
def test_a_mask_fills_its_outline(kind: int) -> None:
    x, y = outline(kind, 96).T
    area = abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))) / 2  # of a polygon, by its corners
    assert shape_mask(kind, 96).sum() == pytest.approx(area, rel=0.02)


def test_textures_have_contrast_and_differ() -> None:
    random = np.random.default_rng(0)
    first, second = texture(random, (40, 60), 4), texture(random, (40, 60), 4)
    assert first.shape == (40, 60, 3)
    assert first.dtype == np.uint8
    assert first.std() > 15
    assert np.abs(first.astype(int) - second).mean() > 20

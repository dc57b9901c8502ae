"""One-pass evaluation: measures worked out by hand, folder layouts, and result files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from edgecv.errors import InputError
from tests.conftest import require

require("opencv")

from edgecv.pipelines.tracking import (  # noqa: E402  (after the check that OpenCV is there)
    Run,
    Tracker,
    TrackSequence,
    evaluate_tracker,
    open_sequences,
    score_all,
    score_sequence,
    write_results,
)
from edgecv.pipelines.tracking.results import read_boxes  # noqa: E402
from tests.tracking import SETTINGS, Search, Template, write_frames  # noqa: E402

BOXES = "".join(f"{index},5,8,6\n" for index in range(1, 6))
Floats = NDArray[np.float64]


def _layout(root: Path, frames: str, truth: str, text: str = BOXES, count: int = 5) -> Path:
    write_frames(root / frames, count)
    (root / truth).write_text(text)
    return root


def _run(boxes: Floats, truth: Floats, visible: list[bool] | None = None) -> Run:
    seen = np.array(visible or [True] * len(truth))
    sequence = TrackSequence("made", (Path("none"),) * len(truth), truth, seen)
    return Run(sequence, boxes, np.full(len(truth), 0.01), (100, 100))


def _boxes(*shifts: float) -> Floats:
    return np.array([[10 + shift, 10, 20, 20] for shift in shifts], np.float64)


def test_a_perfect_run_scores_the_most_there_is() -> None:
    scores = score_sequence(_run(_boxes(0, 0, 0), _boxes(0, 0, 0)))
    assert scores.success == pytest.approx(20 / 21)  # nothing overlaps by more than 1, the last threshold
    assert (scores.precision, scores.ao, scores.sr50, scores.sr75) == (1, 1, 1, 1)
    assert scores.fps == pytest.approx(100)
    assert scores.frames == 3


def test_measures_are_those_worked_out_by_hand() -> None:
    scores = score_sequence(_run(_boxes(0, 10, 4, 50), _boxes(0, 0, 0, 0)))
    overlaps = np.array([1, 1 / 3, 2 / 3, 0])
    assert scores.ao == pytest.approx(overlaps[1:].mean())
    assert [scores.sr50, scores.sr75] == pytest.approx([1 / 3, 0])
    assert scores.success == pytest.approx(np.mean([(overlaps > bar).mean() for bar in np.arange(21) / 20]))
    assert scores.precision == 0.75


def test_frames_in_which_the_target_is_hidden_do_not_count() -> None:
    hidden = score_sequence(_run(_boxes(0, 0, 60), _boxes(0, 0, 0), [True, True, False]))
    assert (hidden.ao, hidden.precision) == (1, 1)


def test_overall_success_is_over_sequences_and_overlap_over_frames() -> None:
    good, bad = _run(_boxes(0, 0, 0, 0), _boxes(0, 0, 0, 0)), _run(_boxes(0, 50), _boxes(0, 0))
    scores = score_all([good, bad])
    assert scores.success == pytest.approx((score_sequence(good).success + score_sequence(bad).success) / 2)
    assert scores.ao == pytest.approx(0.75)
    assert scores.frames == 6


def test_what_cannot_be_scored_is_refused() -> None:
    truth = np.concatenate([_boxes(0), np.full((2, 4), np.nan)])
    with pytest.raises(InputError, match="no boxes to score against"):
        score_sequence(_run(_boxes(0, 0, 0), truth))
    with pytest.raises(InputError, match="3 frames, its results have 2 boxes"):
        score_sequence(_run(_boxes(0, 0), _boxes(0, 0, 0)))
    with pytest.raises(InputError, match="no run to score"):
        score_all([])


@pytest.mark.parametrize(
    ("place", "frames", "truth"),
    [
        ("val/GOT-10k_Val_000001", "", "groundtruth.txt"),
        ("Basketball", "img", "groundtruth_rect.txt"),
        ("bag", "color", "groundtruth.txt"),
        ("airplane/airplane-1", "img", "groundtruth.txt"),
    ],
)
def test_every_layout_is_read(tmp_path: Path, place: str, frames: str, truth: str) -> None:
    _layout(tmp_path / place, frames, truth)
    (sequence,) = open_sequences(tmp_path)
    assert (sequence.name, len(sequence)) == (Path(place).name, 5)
    assert sequence.boxes[2].tolist() == [3, 5, 8, 6]
    assert sequence[0].shape == (24, 32, 3)
    assert sequence.visible.all()


@pytest.mark.parametrize("separator", [",", "\t", " ", ", "])
def test_otb_s_separators_are_read(tmp_path: Path, separator: str) -> None:
    _layout(tmp_path / "Car", "img", "groundtruth_rect.txt", BOXES.replace(",", separator))
    assert open_sequences(tmp_path)[0].first_box == (1, 5, 8, 6)


def test_several_targets_of_one_folder_are_several_sequences(tmp_path: Path) -> None:
    _layout(tmp_path / "Jogging", "img", "groundtruth_rect.1.txt")
    _layout(tmp_path / "Jogging", "img", "groundtruth_rect.2.txt")
    assert [sequence.name for sequence in open_sequences(tmp_path)] == ["Jogging.1", "Jogging.2"]


def test_a_polygon_is_taken_as_its_hull(tmp_path: Path) -> None:
    _layout(tmp_path / "bag", "color", "groundtruth.txt", "4,1,9,6,5,11,0,7\n" * 5)
    assert open_sequences(tmp_path)[0].first_box == (0, 1, 9, 10)


@pytest.mark.parametrize(
    ("name", "text"),
    [("absence.label", "0\n0\n1\n0\n0"), ("cover.label", "8\n8\n0\n1\n8"), ("out_of_view.txt", "0,0,1,0,0")],
)
def test_hidden_frames_are_known(tmp_path: Path, name: str, text: str) -> None:
    _layout(tmp_path / "seen", "img", "groundtruth.txt")
    (tmp_path / "seen" / name).write_text(text)
    assert open_sequences(tmp_path)[0].visible.tolist() == [True, True, False, True, True]


def test_a_frame_without_a_box_is_one_without_the_target(tmp_path: Path) -> None:
    _layout(tmp_path / "seen", "img", "groundtruth.txt", "1,5,8,6\nnan,nan,nan,nan\n0,0,0,0\n4,5,8,6\n5,5,8,6\n")
    assert open_sequences(tmp_path)[0].visible.tolist() == [True, False, False, True, True]


def test_a_test_sequence_has_only_its_first_box(tmp_path: Path) -> None:
    _layout(tmp_path / "GOT-10k_Test_000001", "", "groundtruth.txt", "1,5,8,6\n")
    (sequence,) = open_sequences(tmp_path)
    assert (len(sequence), sequence.annotated) == (5, False)


@pytest.mark.parametrize(
    ("text", "telling"),
    [
        ("", "holds no sequence"),
        ("1,2,3\n" * 5, "4 numbers"),
        ("a,b,c,d\n", "could not convert"),
        ("0,0,0,0\n" * 5, "area"),
    ],
)
def test_broken_annotations_are_refused(tmp_path: Path, text: str, telling: str) -> None:
    _layout(tmp_path / "broken", "img", "groundtruth.txt", text)
    with pytest.raises(InputError, match=telling):
        open_sequences(tmp_path)


def test_what_is_no_sequence_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not a folder"):
        open_sequences(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "groundtruth.txt").write_text(BOXES)
    with pytest.raises(InputError, match="has no frames"):
        open_sequences(tmp_path)


@pytest.mark.parametrize(("layout", "name"), [("got10k", "{0}/{0}_001.txt"), ("otb", "{0}.txt")])
def test_results_come_back_as_they_were_written(tmp_path: Path, layout: str, name: str) -> None:
    _layout(tmp_path / "data" / "Car", "img", "groundtruth_rect.txt")
    runs = evaluate_tracker(Tracker(Template(), Search(), SETTINGS), open_sequences(tmp_path / "data"))
    (written,) = write_results(runs, tmp_path / "results", layout)  # type: ignore[arg-type]  # parametrized
    assert written == tmp_path / "results" / name.format("Car")
    assert np.abs(read_boxes(written) - runs[0].boxes).max() <= 5e-4
    times = next((tmp_path / "results").rglob("*_time.txt"))
    assert np.loadtxt(times).shape == (5,)


def test_an_unknown_layout_and_a_broken_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="'got10k' or 'otb'"):
        write_results([], tmp_path, "vot")  # type: ignore[arg-type]  # that is the point
    (tmp_path / "bad.txt").write_text("1,2\n")
    with pytest.raises(InputError, match="x,y,w,h"):
        read_boxes(tmp_path / "bad.txt")

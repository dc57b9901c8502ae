"""Labelled and unlabelled images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgecv.data import ArraySamples, ImageFolder, digits, hold_out, open_frames, open_samples, spread
from edgecv.errors import InputError
from tests.conftest import require


def _save(path: Path, level: int) -> None:
    require("opencv")
    import cv2

    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.full((6, 7, 3), level, np.uint8))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes: one image of cats, two of dogs."""
    for index, name in enumerate(["cat/a.png", "dog/a.png", "dog/b.png"]):
        _save(tmp_path / "data" / name, index)
    (tmp_path / "data" / ".cache").mkdir()
    (tmp_path / "data" / "README").write_text("not a class")
    return tmp_path / "data"


def test_the_digits_are_split_once_and_for_all() -> None:
    require("sklearn")
    train, test = digits("train"), digits("test")
    assert (len(train), len(test)) == (1437, 360)
    frame, target = test[0]
    assert (frame.shape, frame.dtype.name, target) == ((8, 8, 3), "uint8", 0)
    assert int(max(train[i][0].max() for i in range(50))) == 255
    seen = {train[i][0].tobytes() for i in range(len(train))}
    assert not any(test[i][0].tobytes() in seen for i in range(len(test)))
    assert {test[i][1] for i in range(len(test))} == set(range(10))


def test_sub_folders_are_classes(folder: Path) -> None:
    samples = ImageFolder(folder)
    assert samples.labels == ("cat", "dog")
    assert [samples[i][1] for i in range(len(samples))] == [0, 1, 1]
    assert samples[2][0][0, 0].tolist() == [2, 2, 2]


def test_a_networks_labels_set_the_order(folder: Path) -> None:
    samples = ImageFolder(folder, ["dog", "bird", "cat"])
    assert samples.labels == ("dog", "bird", "cat")
    assert [samples[i][1] for i in range(len(samples))] == [2, 0, 0]
    with pytest.raises(InputError, match="cat is none of the 2 labels"):
        ImageFolder(folder, ["dog", "bird"])


def test_folders_without_images_are_refused(folder: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        ImageFolder(folder / "nothing")
    with pytest.raises(InputError, match="no sub-folders"):
        ImageFolder(folder / "cat")
    (folder / "bird").mkdir()
    with pytest.raises(InputError, match="bird holds no image"):
        ImageFolder(folder)


def test_an_unreadable_image_is_named(folder: Path) -> None:
    (folder / "cat" / "b.png").write_bytes(b"no")
    samples = ImageFolder(folder)
    with pytest.raises(InputError, match=r"cat/b\.png"):
        samples[1]


def test_frames_come_from_a_file_a_folder_classes_or_the_digits(folder: Path) -> None:
    require("sklearn")
    assert len(open_frames(folder / "cat" / "a.png")) == 1
    assert len(open_frames(folder / "dog")) == 2
    assert len(open_frames(folder)) == 3
    assert [frame[0, 0, 0] for frame in open_frames(folder)] == [0, 1, 2]
    assert len(open_frames("digits", 7)) == len(list(open_frames("digits", 7))) == 7
    assert len(open_frames("digits:train")) == 1437


@pytest.mark.parametrize("source", ["nothing", "digit", "/no/such/place"])
def test_frames_from_nowhere_are_refused(source: str) -> None:
    with pytest.raises(InputError, match="does not exist"):
        open_frames(source)


def test_an_empty_folder_and_a_split_nobody_made_are_refused(tmp_path: Path) -> None:
    require("sklearn")
    with pytest.raises(InputError, match="holds no image"):
        open_frames(tmp_path)
    with pytest.raises(InputError, match="splits 'train' and 'test', got 'val'"):
        open_samples("digits:val")


def test_a_folder_named_like_the_digits_is_a_folder(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.rename(tmp_path / "digits")
    monkeypatch.chdir(tmp_path)
    assert open_samples("digits").labels == ("cat", "dog")


@pytest.mark.parametrize(
    ("frames", "targets", "telling"),
    [(3, [0, 1], "3 frames and 2 targets"), (1, [2], "target 2 is not an index"), (1, [-1], "target -1")],
)
def test_arrays_that_do_not_fit_are_refused(frames: int, targets: list[int], telling: str) -> None:
    with pytest.raises(InputError, match=telling):
        ArraySamples(np.zeros((frames, 4, 4, 3), np.uint8), targets, ["a", "b"])


@given(st.integers(1, 200), st.integers(2, 12))
def test_held_out_samples_are_never_trained_on(count: int, every: int) -> None:
    frames: Any = np.arange(count, dtype=np.uint8)[:, None, None, None] * np.ones((1, 1, 1, 3), np.uint8)
    samples = ArraySamples(frames, [0] * count, ["a"])
    if count < every:
        with pytest.raises(InputError, match="too few"):
            hold_out(samples, every)
        return
    parts = [sorted(int(part[i][0].max()) for i in range(len(part))) for part in hold_out(samples, every)]
    assert sorted(parts[0] + parts[1]) == list(range(count))
    assert len(parts[1]) == count // every


@given(st.integers(0, 1000), st.none() | st.integers(1, 1000))
def test_spread_indices_are_even_and_within(count: int, limit: int | None) -> None:
    indices = spread(count, limit)
    assert len(indices) == min(count, limit if limit is not None else count)
    assert len(set(indices)) == len(indices)
    assert all(0 <= i < count for i in indices)
    steps = np.diff(indices)
    assert len(steps) == 0 or steps.max() - steps.min() <= 1

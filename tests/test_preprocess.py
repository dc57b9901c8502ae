"""Preprocessing: against torch's own resize, and its geometry as laws."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgecv.errors import InputError
from edgecv.preprocess import Placement, Preprocess, resize
from tests.conftest import require

SIDES = st.integers(1, 90)


def _frame(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)


@pytest.mark.parametrize(
    ("source", "target"),
    [((8, 8), (32, 32)), ((97, 131), (32, 48)), ((480, 640), (224, 224)), ((1, 1), (5, 7)), ((50, 3), (7, 90))],
)
@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
def test_resizing_is_torchs_antialiased_filter(source: tuple[int, int], target: tuple[int, int], mode: Any) -> None:
    require("torch")
    import torch

    frame = _frame(*source)
    image = torch.from_numpy(frame).permute(2, 0, 1)[None].float()
    wanted = torch.nn.functional.interpolate(image, target, mode=mode, antialias=True)[0].permute(1, 2, 0)
    difference = np.abs(resize(frame, *target, mode).astype(np.float64) - wanted.clamp(0, 255).numpy())
    assert difference.max() <= 0.502  # rounding to whole levels, and float32 sums


@given(SIDES, SIDES, SIDES, SIDES, st.integers(0, 255))
@settings(max_examples=60, deadline=None)
def test_a_frame_of_one_colour_stays_so(height: int, width: int, tall: int, wide: int, level: int) -> None:
    frame = np.full((height, width, 3), level, np.uint8)
    for mode in ("bilinear", "bicubic"):
        assert np.array_equal(resize(frame, tall, wide, mode), np.full((tall, wide, 3), level, np.uint8))


def test_crops_are_torchvisions() -> None:
    """Resize(short side) and CenterCrop: the long side is truncated, the offset rounded."""
    pre = Preprocess(size=(224, 200), resize=256)
    placed = pre.placement(300, 401)
    assert placed == Placement((342 / 401, 256 / 300), (-71, -16))
    whole = resize(_frame(300, 401), 256, 342)
    assert np.array_equal(pre(_frame(300, 401)), whole[16:240, 71:271])


def test_a_frame_already_of_its_size_is_copied() -> None:
    frame = _frame(32, 32)
    result = Preprocess(size=(32, 32))(frame)
    assert np.array_equal(result, frame)
    assert not np.shares_memory(result, frame)


@pytest.mark.parametrize("mode", [None, "letterbox", 40])
def test_views_are_as_good_as_copies(mode: Any) -> None:
    pre = Preprocess(size=(32, 40), resize=mode)
    view = _frame(60, 80)[::-1, ::2]
    assert np.array_equal(pre(view), pre(view.copy()))


@given(SIDES, SIDES, SIDES, SIDES, st.floats(0, 1), st.floats(0, 1), st.sampled_from([None, "letterbox", 100]))
@settings(max_examples=80, deadline=None)
def test_points_survive_the_round_trip(
    height: int, width: int, tall: int, wide: int, across: float, down: float, mode: Any
) -> None:
    placed = Preprocess(size=(tall, wide), resize=mode).placement(height, width)
    point = np.array([across * width, down * height])
    assert np.abs(placed.to_frame(placed.to_graph(point)) - point).max() < 1e-9


@given(SIDES, SIDES, SIDES, SIDES)
@settings(max_examples=80, deadline=None)
def test_a_letterboxed_frame_lies_within_the_canvas(height: int, width: int, tall: int, wide: int) -> None:
    pre = Preprocess(size=(tall, wide), resize="letterbox", pad_value=7)
    corners = pre.placement(height, width).to_graph(np.array([[0, 0], [width, height]]))
    assert corners.min() >= 0
    assert np.all(corners[1] <= [wide + 1e-9, tall + 1e-9])
    drawn = np.argwhere((pre(np.full((height, width, 3), 200, np.uint8)) == 200).all(axis=2))
    assert np.allclose(drawn.min(axis=0), corners[0][::-1])
    assert np.allclose(drawn.max(axis=0) + 1, corners[1][::-1])


@pytest.mark.parametrize("mode", [None, "letterbox", 64])
def test_placement_says_where_a_dot_lands(mode: Any) -> None:
    frame = np.zeros((120, 200, 3), np.uint8)
    frame[50:54, 90:94] = 255
    pre = Preprocess(size=(64, 64), resize=mode, pad_value=0)
    light = pre(frame).sum(axis=2).astype(float)
    rows, columns = np.mgrid[0:64, 0:64] + 0.5
    centre = np.array([(columns * light).sum(), (rows * light).sum()]) / light.sum()
    assert np.abs(centre - pre.placement(120, 200).to_graph(np.array([92, 52]))).max() < 0.1


@pytest.mark.parametrize("shape", [(1, 4000), (4000, 1), (1, 1), (2, 16384)])
def test_extreme_frames_are_brought_to_size(shape: tuple[int, int]) -> None:
    for mode in (None, "letterbox"):
        assert Preprocess(size=(24, 32), resize=mode)(_frame(*shape)).shape == (24, 32, 3)


def test_batches_take_frames_of_any_sizes() -> None:
    pre = Preprocess(size=(16, 16))
    batch = pre.batch([_frame(8, 8), _frame(30, 20)])
    assert batch.shape == (2, 16, 16, 3)
    assert np.array_equal(batch[1], pre(_frame(30, 20)))
    with pytest.raises(InputError, match="at least one frame"):
        pre.batch([])


@pytest.mark.parametrize(
    ("frame", "telling"),
    [
        (np.zeros((4, 4), np.uint8), "for grey frames use np.stack"),
        (np.zeros((4, 4, 4), np.uint8), "drop the alpha channel"),
        (np.zeros((3, 4, 5), np.uint8), "channels come last"),
        (np.zeros((1, 4, 4, 3), np.uint8), "list of frames"),
        (np.zeros((4, 4, 3), np.float32), "values 0-255 as uint8"),
        (np.zeros((0, 4, 3), np.uint8), r"got uint8\[0, 4, 3\]"),
        (np.zeros((1, 16385, 3), np.uint8), "at most 16384"),
        ([[1]], "got list"),
        ("cat.jpg", "got str"),
        (None, "got NoneType"),
    ],
)
def test_what_is_not_a_frame_is_refused(frame: Any, telling: str) -> None:
    with pytest.raises(InputError, match=telling):
        Preprocess(size=(8, 8))(frame)


@pytest.mark.parametrize(
    ("settings_", "telling"),
    [
        ({"size": (0, 8)}, "size is"),
        ({"size": (8,)}, "size is"),
        ({"size": (8.0, 8)}, "size is"),
        ({"size": (8, 99999)}, "size is"),
        ({"size": (8, 8), "resize": 7}, "8 or more"),
        ({"size": (8, 8), "resize": "crop"}, "letterbox"),
        ({"size": (8, 8), "mean": (0.5, 0.5)}, "three finite"),
        ({"size": (8, 8), "std": (1, 1, float("nan"))}, "three finite"),
        ({"size": (8, 8), "std": (1, 0, 1)}, "above 0"),
        ({"size": (8, 8), "color": "RGB"}, "'rgb' or 'bgr'"),
        ({"size": (8, 8), "pad_value": 256}, "0 to 255"),
    ],
)
def test_what_cannot_be_preprocessed_is_refused(settings_: dict[str, Any], telling: str) -> None:
    with pytest.raises(InputError, match=telling):
        Preprocess(**settings_)

"""Augmentation: within its limits, repeatable, and off where it is off."""

from __future__ import annotations

from typing import Any

import pytest

from edgecv.errors import InputError
from tests.conftest import require

require("torch")

import numpy as np  # noqa: E402  (after the check that torch is there)
import torch  # noqa: E402

from edgecv.training.augment import PRESETS, Augment, preset  # noqa: E402


def _images(count: int = 8) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (count, 16, 20, 3)).astype(np.uint8))


def _apply(augment: Augment, images: torch.Tensor, seed: int = 0) -> torch.Tensor:
    return augment.apply(images, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", PRESETS)
def test_presets_keep_dtype_and_shape_and_repeat(name: str) -> None:
    images = _images()
    before = images.clone()
    first, second = (_apply(preset(name), images) for _ in range(2))
    assert (first.dtype, first.shape) == (torch.uint8, images.shape)
    assert torch.equal(first, second)
    assert torch.equal(images, before)
    assert name == "none" or not torch.equal(first, images) or PRESETS[name].crop


def test_nothing_is_changed_by_nothing() -> None:
    assert torch.equal(_apply(Augment(), _images()), _images())
    # A rotation by 0 goes through the resampler and must come out the same, to rounding.
    unchanged = _apply(Augment(rotate_deg=1e-9), _images())
    assert (unchanged.int() - _images().int()).abs().max() <= 1


def test_half_of_the_images_are_mirrored() -> None:
    images = _images(400)
    changed = _apply(Augment(flip=True), images)
    mirrored = [bool((changed[i].int() - images[i].flip(1).int()).abs().max() <= 1) for i in range(400)]
    same = [bool((changed[i].int() - images[i].int()).abs().max() <= 1) for i in range(400)]
    assert all(a != b for a, b in zip(mirrored, same, strict=True))
    assert 150 < sum(mirrored) < 250


def test_a_shift_moves_as_far_as_it_says() -> None:
    images = torch.zeros(200, 21, 21, 3, dtype=torch.uint8)
    images[:, 10, 10] = 255
    changed = _apply(Augment(shift=0.2), images)[..., 0].float()
    columns = (changed.sum(1) * torch.arange(21)).sum(1) / changed.sum((1, 2)) - 10
    assert columns.abs().max() <= 0.2 * 21 + 0.1
    assert columns.abs().max() > 0.15 * 21
    assert columns.min() < -1
    assert columns.max() > 1


@pytest.mark.parametrize(("settings", "low", "high"), [({"brightness": 0.2}, 77, 179), ({"contrast": 0.5}, 128, 128)])
def test_tone_changes_stay_within_their_limits(settings: dict[str, Any], low: int, high: int) -> None:
    changed = _apply(Augment(**settings), torch.full((100, 4, 4, 3), 128, dtype=torch.uint8))
    assert changed.min() >= low
    assert changed.max() <= high


def test_crops_are_parts_of_the_frame() -> None:
    frame = np.arange(30 * 40 * 3, dtype=np.uint32).astype(np.uint8).reshape(30, 40, 3)
    generator = np.random.default_rng(0)
    shapes = set()
    for _ in range(100):
        part = Augment(crop=(0.3, 0.9)).crop_frame(frame, generator)
        height, width = part.shape[:2]
        shapes.add((height, width))
        assert np.shares_memory(part, frame)
        assert 0.25 <= height * width / (30 * 40) <= 0.95 or (height, width) == (30, 40)
        assert 0.7 <= width / height <= 1.4
    assert len(shapes) > 50
    assert Augment().crop_frame(frame, generator) is frame


def test_unknown_presets_come_with_a_guess() -> None:
    with pytest.raises(InputError, match="did you mean 'digits'"):
        preset("digit")

"""Mixup and cutmix: shares that are what they say, drawn from the given generator alone."""

from __future__ import annotations

from typing import Any

import pytest

from edgecv.errors import InputError
from tests.conftest import require

require("torch")

import torch  # noqa: E402  (after the check that torch is there)
from torch.nn import functional  # noqa: E402

from edgecv.training.mixing import mix  # noqa: E402

CLASSES = 6


def _batch(height: int = 8, width: int = 10) -> tuple[torch.Tensor, torch.Tensor]:
    """Images whose pixels all hold the image's number, and a class of its own for each."""
    numbers = torch.arange(CLASSES)
    return numbers.float().view(-1, 1, 1, 1).expand(CLASSES, 3, height, width).clone(), numbers


def _mix(
    seed: int = 0, *, mixup: float = 0.0, cutmix: float = 0.0, height: int = 8, width: int = 10
) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return mix(*_batch(height, width), classes=CLASSES, mixup=mixup, cutmix=cutmix, generator=generator)


def _own(soft: torch.Tensor) -> float:
    """The share an image has kept of its own class, from a row whose image has another partner than itself."""
    return float(soft.diag().min())


@pytest.mark.parametrize("alphas", [(0.2, 0.0), (0.0, 1.0), (0.8, 1.0), (0.0, 0.0)])
def test_dtypes_and_shapes_are_kept_and_rows_sum_to_one(alphas: tuple[float, float]) -> None:
    for seed in range(20):
        images, soft = _mix(seed, mixup=alphas[0], cutmix=alphas[1])
        assert (images.dtype, images.shape) == (torch.float32, (CLASSES, 3, 8, 10))
        assert (soft.dtype, soft.shape) == (torch.float32, (CLASSES, CLASSES))
        assert torch.allclose(soft.sum(1), torch.ones(CLASSES), atol=1e-6)
        assert soft.min() >= 0


def test_half_precision_images_stay_so_and_targets_do_not() -> None:
    images, targets = _batch()
    for settings in ({"mixup": 1.0, "cutmix": 0.0}, {"mixup": 0.0, "cutmix": 1.0}):
        generator = torch.Generator().manual_seed(1)
        mixed, soft = mix(images.half(), targets, classes=CLASSES, generator=generator, **settings)
        assert (mixed.dtype, soft.dtype) == (torch.float16, torch.float32)


def test_off_means_the_same_images_and_hard_targets() -> None:
    images, targets = _batch()
    generator = torch.Generator().manual_seed(0)
    before = generator.get_state()
    mixed, soft = mix(images, targets.to(torch.uint8), classes=9, mixup=0.0, cutmix=0.0, generator=generator)
    assert mixed is images
    assert torch.equal(soft, torch.eye(9)[:CLASSES])
    assert torch.equal(generator.get_state(), before)


def test_mixup_blends_pixels_as_it_blends_targets() -> None:
    for seed in range(50):
        images, soft = _mix(seed, mixup=1.0)
        # A pixel holds its image's number, so the blend is the mean of the class numbers by their shares.
        expected = soft @ torch.arange(CLASSES).float()
        assert torch.allclose(images, expected.view(-1, 1, 1, 1).expand_as(images), atol=1e-5)
        assert ((soft > 0).sum(1) <= 2).all()


def test_mixup_takes_the_share_and_the_partner_of_one_draw() -> None:
    _, soft = _mix(3, mixup=1.0)
    paired = soft.diag() < 1
    assert paired.any()
    kept = soft.diag()[paired]
    assert torch.allclose(kept, kept[0].expand_as(kept))
    assert torch.allclose(soft.sum(0), torch.ones(CLASSES), atol=1e-6)  # a permutation: each image is one partner


@pytest.mark.parametrize(("height", "width"), [(8, 10), (7, 3), (1, 1)])
def test_cutmix_targets_are_the_counted_pixels(height: int, width: int) -> None:
    for seed in range(100):
        images, soft = _mix(seed, cutmix=1.0, height=height, width=width)
        for image, row in zip(images, soft, strict=True):
            assert torch.equal(image[0], image[1])
            assert torch.equal(image[0], image[2])
            counted = torch.bincount(image[0].long().flatten(), minlength=CLASSES) / (height * width)
            assert torch.allclose(row, counted, atol=1e-6)


def test_cutmix_pastes_one_box_of_the_frames_proportions() -> None:
    clipped = whole = 0
    for seed in range(200):
        images, soft = _mix(seed, cutmix=1.0, height=20, width=40)
        pasted = (images != torch.arange(CLASSES).view(-1, 1, 1, 1))[:, 0].any(0)
        if not pasted.any():
            continue
        rows, columns = (pasted.any(axis).nonzero()[:, 0] for axis in (1, 0))
        tall, wide = len(rows), len(columns)
        assert pasted.sum() == tall * wide
        assert int(rows[-1] - rows[0] + 1) == tall
        assert int(columns[-1] - columns[0] + 1) == wide
        assert _own(soft) == pytest.approx(1 - tall * wide / 800, abs=1e-6)
        if rows[0] > 0 and rows[-1] < 19 and columns[0] > 0 and columns[-1] < 39:
            whole += 1
            assert abs(wide - 2 * tall) <= 2
        else:
            clipped += 1
    assert min(clipped, whole) > 20


def test_cutmix_boxes_have_the_drawn_share_and_lie_anywhere() -> None:
    # So large an alpha draws shares of 1/2: the sides are 20 and 40 times the root of it, 14 and 28 pixels.
    heights, widths, above, below = set(), set(), 0, 0
    for seed in range(300):
        images, soft = _mix(seed, cutmix=1e9, height=20, width=40)
        pasted = (images != torch.arange(CLASSES).view(-1, 1, 1, 1))[:, 0].any(0)
        rows, columns = (pasted.any(axis).nonzero()[:, 0].tolist() for axis in (1, 0))
        if rows:
            heights.add(len(rows))
            widths.add(len(columns))
            above, below = above + (rows[-1] < 13), below + (rows[0] > 6)
            assert _own(soft) >= 1 - 14 * 28 / 800 - 1e-6
    assert (min(heights), max(heights)) == (7, 14)
    assert (min(widths), max(widths)) == (14, 28)
    assert 60 < above < 150  # centres in the upper 7 rows of 20, and in the lower 6
    assert 60 < below < 150


@pytest.mark.parametrize("alpha", [1e-4, 0.05, 0.2, 1.0, 4.0])
def test_the_shares_of_mixup_follow_the_beta_distribution(alpha: float) -> None:
    images = torch.tensor([0.0, 1.0]).view(2, 1, 1, 1).expand(2, 3, 1, 1)
    generator = torch.Generator().manual_seed(7)
    kept: list[float] = []
    while len(kept) < 1000:
        mixed, soft = mix(images, torch.tensor([0, 1]), classes=2, mixup=alpha, cutmix=0.0, generator=generator)
        if not torch.equal(soft[0, 0], mixed[1, 0, 0, 0]):
            pytest.fail("pixels and targets were blended by different shares")
        if not torch.equal(mixed, images):
            kept.append(float(soft[0, 0]))
        elif alpha < 0.01:
            # Shares of almost 0 or 1 cannot be told from a pairing of each image with itself.
            kept.append(1.0)
    values = torch.tensor(kept, dtype=torch.float64)
    if alpha < 0.01:
        assert ((values < 1e-3) | (values > 1 - 1e-3)).float().mean() > 0.99
    else:
        spread = 1 / (4 * (2 * alpha + 1))
        assert float(values.mean()) == pytest.approx(0.5, abs=4 * (spread / 1000) ** 0.5)
        assert float(values.var()) == pytest.approx(spread, rel=0.15)


def test_where_both_are_on_each_batch_takes_one_with_equal_chance() -> None:
    generator = torch.Generator().manual_seed(0)
    cut = blended = 0
    for _ in range(400):
        images, _ = mix(*_batch(20, 20), classes=CLASSES, mixup=1.0, cutmix=1.0, generator=generator)
        uniform = bool((images == images[:, :1, :1, :1]).all())
        whole = bool((images == images.round()).all())
        assert uniform or whole
        cut, blended = cut + (whole and not uniform), blended + (uniform and not whole)
    assert 140 < cut < 260
    assert 140 < blended < 260


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.4, 0.0), (0.0, 1.0), (0.4, 1.0)])
def test_the_generator_decides_alone_and_inputs_stay(mixup: float, cutmix: float) -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    images, targets = _batch()
    copies = images.clone(), targets.clone()
    alphas = {"mixup": mixup, "cutmix": cutmix}
    first = mix(images, targets, classes=CLASSES, generator=torch.Generator().manual_seed(5), **alphas)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    second = mix(images, targets, classes=CLASSES, generator=torch.Generator().manual_seed(5), **alphas)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert torch.equal(images, copies[0])
    assert torch.equal(targets, copies[1])
    different = [_mix(seed, mixup=mixup, cutmix=cutmix)[1] for seed in range(5)]
    assert any(not torch.equal(different[0], other) for other in different[1:])


def test_a_generator_goes_on_where_its_state_was_saved() -> None:
    generator = torch.Generator().manual_seed(0)
    arguments: dict[str, Any] = {"classes": CLASSES, "mixup": 0.4, "cutmix": 1.0, "generator": generator}
    mix(*_batch(), **arguments)
    state = generator.get_state()
    expected = mix(*_batch(), **arguments)[0]
    generator.set_state(state)
    assert torch.equal(mix(*_batch(), **arguments)[0], expected)


def test_a_batch_of_one_stays_as_it_is() -> None:
    image, target = torch.randn(1, 3, 5, 5, generator=torch.Generator().manual_seed(0)), torch.tensor([2])
    for mixup, cutmix in ((1.0, 0.0), (0.0, 1.0)):
        mixed, soft = mix(image, target, classes=3, mixup=mixup, cutmix=cutmix, generator=torch.Generator())
        assert torch.allclose(mixed, image)
        assert soft.tolist() == [[0.0, 0.0, 1.0]]


def test_torchs_cross_entropy_takes_soft_targets() -> None:
    """Why there is no soft cross-entropy of our own."""
    logits = torch.tensor([[2.0, 0.0, -1.0], [0.5, 0.5, 0.5]])
    soft = torch.tensor([[0.7, 0.3, 0.0], [0.0, 0.25, 0.75]])
    logs = logits.log_softmax(1)
    assert functional.cross_entropy(logits, soft) == pytest.approx(float(-(soft * logs).sum(1).mean()))
    smoothed = 0.9 * soft + 0.1 / 3
    expected = float(-(smoothed * logs).sum(1).mean())
    assert functional.cross_entropy(logits, soft, label_smoothing=0.1) == pytest.approx(expected)
    hard = torch.tensor([0, 2])
    for smoothing in (0.0, 0.1):
        by_index = functional.cross_entropy(logits, hard, label_smoothing=smoothing)
        by_share = functional.cross_entropy(logits, torch.eye(3)[hard], label_smoothing=smoothing)
        assert float(by_index) == pytest.approx(float(by_share))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"images": torch.zeros(2, 3, 4)}, "images are floats"),
        ({"images": torch.zeros(2, 4, 4, 3)}, "images are floats"),
        ({"images": torch.zeros(2, 3, 4, 4, dtype=torch.uint8)}, "images are floats"),
        ({"images": torch.zeros(0, 3, 4, 4), "targets": torch.zeros(0, dtype=torch.long)}, "images are floats"),
        ({"targets": torch.tensor([0, 1, 1])}, "targets are integers"),
        ({"targets": torch.tensor([0.0, 1.0])}, "targets are integers"),
        ({"targets": torch.tensor([True, False])}, "targets are integers"),
        ({"targets": torch.tensor([[0], [1]])}, "targets are integers"),
        ({"targets": torch.tensor([0, 2])}, "of 2 classes are 0 to 1, got 0 to 2"),
        ({"targets": torch.tensor([-1, 1])}, "got -1 to 1"),
        ({"classes": 0}, "of 0 classes"),
        ({"mixup": -0.1}, "mixup is a finite number of 0 or more, got -0.1"),
        ({"mixup": float("nan")}, "mixup is a finite"),
        ({"cutmix": float("inf")}, "cutmix is a finite"),
        ({"cutmix": -1.0}, "cutmix is a finite"),
    ],
)
def test_wrong_arguments_are_refused_in_one_line(changed: dict[str, Any], message: str) -> None:
    right = {"images": torch.zeros(2, 3, 4, 4), "targets": torch.tensor([0, 1]), "classes": 2, "mixup": 0.0}
    arguments: dict[str, Any] = {**right, "cutmix": 0.0, "generator": torch.Generator(), **changed}
    with pytest.raises(InputError, match=message) as caught:
        mix(**arguments)
    assert "\n" not in str(caught.value)

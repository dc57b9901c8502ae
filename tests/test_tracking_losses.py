"""The losses of trackers: values worked out by hand, what counts and what does not, and degenerate inputs."""

from __future__ import annotations

import math
from typing import Literal

import pytest

from edgecv.errors import InputError
from tests.conftest import require

require("torch")

import torch  # noqa: E402  (after the check that it is there)
from torch import Tensor  # noqa: E402

from edgecv.training.tracking_losses import (  # noqa: E402
    anchor_free_loss,
    anchor_loss,
    balanced_logistic_loss,
    grid,
    iou_of_sides,
)

LN2 = math.log(2)
SQUARE = torch.tensor([[64.0, 64.0]])  # one anchor
ABSENT = [0.0, 0.0, 64.0, 64.0, 0.0]


def _target(x: float = 0.0, y: float = 0.0, w: float = 64.0, h: float = 64.0, there: float = 1.0) -> Tensor:
    return torch.tensor([[x, y, w, h, there]])


def _softplus(value: float) -> float:
    return math.log1p(math.exp(value))


def test_both_classes_of_a_label_map_weigh_the_same() -> None:
    """One positive cell of 9 at logit 2, the others at -1: half of each cell's mean."""
    logits = torch.full((1, 1, 3, 3), -1.0)
    logits[0, 0, 1, 1] = 2.0
    loss = balanced_logistic_loss(logits, _target(), stride=8, radius=4)
    assert float(loss) == pytest.approx(0.5 * _softplus(-2) + 0.5 * _softplus(-1), rel=1e-5)


def test_the_label_map_follows_the_target() -> None:
    logits = torch.full((1, 1, 5, 5), -3.0)
    logits[0, 0, 3, 1] = 3.0  # one row down, one column to the left
    right = balanced_logistic_loss(logits, _target(-8, 8), stride=8, radius=4)
    assert float(right) == pytest.approx(_softplus(-3), rel=1e-5)
    assert balanced_logistic_loss(logits, _target(8, 8), stride=8, radius=4) > 1.0


@pytest.mark.parametrize("target", [ABSENT, [500.0, 0.0, 64.0, 64.0, 1.0]])
def test_a_map_without_a_target_is_all_negative(target: list[float]) -> None:
    loss = balanced_logistic_loss(torch.full((1, 1, 3, 3), 1.5), torch.tensor([target]), stride=8)
    assert float(loss) == pytest.approx(_softplus(1.5), rel=1e-5)


def test_a_map_that_is_all_target_has_the_weight_of_any_other() -> None:
    loss = balanced_logistic_loss(torch.full((1, 1, 3, 3), 1.5), _target(), stride=8, radius=100)
    assert float(loss) == pytest.approx(_softplus(-1.5), rel=1e-5)


def test_pairs_of_a_batch_are_averaged() -> None:
    logits = torch.randn(4, 1, 7, 7, generator=torch.Generator().manual_seed(0))
    targets = torch.cat([_target(8 * index, 0, there=index % 2) for index in range(4)])
    each = [balanced_logistic_loss(logits[i : i + 1], targets[i : i + 1], 8) for i in range(4)]
    assert balanced_logistic_loss(logits, targets, 8) == pytest.approx(float(torch.stack(each).mean()), rel=1e-5)


def test_a_huge_logit_gives_a_finite_loss() -> None:
    logits = torch.full((1, 1, 3, 3), 1e6, requires_grad=True)
    balanced_logistic_loss(logits, _target(), 8).backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_the_cells_of_each_head_lie_where_it_reads_them() -> None:
    like = torch.zeros(1)
    assert grid((1, 3), 8, like=like)[0].tolist() == [-8, 0, 8]
    assert grid((4, 1), 16, like=like)[1].tolist() == [-32, -16, 0, 16]
    assert grid((4, 1), 16, like=like, first=(-24, 0))[1].tolist() == [-24, -8, 8, 24]


def test_what_the_losses_want_is_what_the_runtime_s_heads_read() -> None:
    """A map with one peak, and the offsets that cost nothing: the head finds the target that they were made for."""
    require("opencv")
    from edgecv.pipelines.tracking.heads import head_for
    from edgecv.pipelines.tracking.settings import TrackerSettings

    score, sides = torch.full((1, 2, 6, 6), 0.0), torch.ones(1, 4, 6, 6)
    score[0, 1, 2, 4] = 9.0
    kinds: tuple[Literal["peak", "points", "anchors"], ...] = ("peak", "points", "anchors")
    for kind in kinds:
        settings = TrackerSettings(head=kind, exemplar=23, search=47, stride=8, ratios=(1.0,), rate=1.0)
        first = (-20.0, -20.0) if kind == "peak" else (settings.origin(6), settings.origin(6))
        x, y = (float(value.view(6, 6)[2, 4]) for value in grid((6, 6), 8, like=score, first=first))
        if kind == "points":
            sides[0, :, 2, 4] = torch.tensor([20.0, 14, 20, 14])
        elif kind == "anchors":
            sides[0, :, 2, 4] = torch.tensor([0.0, 0, math.log(40 / 64), math.log(28 / 64)])
        outputs = {"score": (score[:, 1:] if kind == "peak" else score).numpy(), "box": sides.numpy()}
        found = head_for(settings).locate(outputs, (40.0, 28.0))
        assert found.shift == pytest.approx((x, y), abs=0.6)
        assert found.size == pytest.approx((40, 28), rel=1e-2)


def _anchored(offset: float = 0.0, logit: float = 0.0, target: Tensor | None = None, weight: float = 1.0) -> float:
    """5x5 cells 32 pixels apart: the middle one's anchor is the target, its four neighbours overlap by a third."""
    score, offsets = torch.zeros(1, 2, 5, 5), torch.full((1, 4, 5, 5), 9.0)
    score[0, 1, 2, 2] = logit
    offsets[0, :, 2, 2] = torch.tensor([offset, 0, 0, 0])
    return float(anchor_loss(score, offsets, _target() if target is None else target, 32, SQUARE, weight))


@pytest.mark.parametrize(("offset", "loss"), [(0.0, 0.0), (0.5, 0.125), (2.0, 1.5), (-2.0, 1.5)])
def test_offsets_cost_smooth_l1_of_the_positive_anchor_alone(offset: float, loss: float) -> None:
    assert _anchored(offset) == pytest.approx(LN2 + loss, rel=1e-5)
    assert _anchored(offset, weight=3.0) == pytest.approx(LN2 + 3 * loss, rel=1e-5)


def test_anchors_between_the_thresholds_do_not_count() -> None:
    """1 positive and 20 negatives: the four neighbours at an IoU of 1/3 are neither."""
    assert _anchored(logit=2.0) == pytest.approx((_softplus(-2) + 20 * LN2) / 21, rel=1e-5)


def test_offsets_are_in_units_of_the_anchor_and_logarithms() -> None:
    offsets = torch.zeros(1, 4, 1, 1)
    offsets[0, :, 0, 0] = torch.tensor([6 / 64, -3 / 64, math.log(70 / 64), math.log(60 / 64)])
    loss = anchor_loss(torch.zeros(1, 2, 1, 1), offsets, _target(6, -3, 70, 60), 32, SQUARE)
    assert float(loss) == pytest.approx(LN2, abs=1e-5)


def test_answers_are_read_by_anchor_as_the_head_does() -> None:
    """Two anchors of a cell: the second, wide one is the target; its logits and offsets are the second of each."""
    anchors = torch.tensor([[20.0, 80.0], [80.0, 20.0]])
    score = torch.tensor([0.0, 1.0, 0.0, 3.0]).view(1, 4, 1, 1)  # background of both, target of both
    offsets = torch.tensor([5.0, 0.0, 5.0, 0.0, 5.0, 0.0, 5.0, 0.0]).view(1, 8, 1, 1)
    loss = anchor_loss(score, offsets, _target(0, 0, 80, 20), 8, anchors)
    assert float(loss) == pytest.approx((LN2 + _softplus(-2)) / 2, rel=1e-5)


def _cells(logit: float = 0.0, factor: float = 1.0) -> float:
    """5x5 cells 16 pixels apart, a target of 64x64: 5 are in its inner ellipse, 12 outside the outer one."""
    score = torch.zeros(1, 2, 5, 5)
    score[0, 1, 2, 2] = logit
    x, y = (value.view(5, 5) for value in grid((5, 5), 16, like=score))
    sides = torch.stack([32 + x, 32 + y, 32 - x, 32 - y])[None] * factor
    return float(anchor_free_loss(score, sides, _target(), 16))


@pytest.mark.parametrize(("factor", "loss"), [(1.0, 0.0), (2.0, 0.75), (0.5, 0.75)])
def test_boxes_cost_what_they_lack_of_an_iou_of_1(factor: float, loss: float) -> None:
    assert _cells(factor=factor) == pytest.approx(LN2 + loss, rel=1e-5)


def test_cells_between_the_ellipses_do_not_count() -> None:
    assert _cells(logit=2.0) == pytest.approx((_softplus(-2) + 16 * LN2) / 17, rel=1e-5)


def test_iou_of_sides_is_that_of_the_boxes() -> None:
    sides = torch.tensor([[1.0, 1, 1, 1], [2, 1, 2, 1], [0, 0, 0, 0]])
    assert iou_of_sides(sides, torch.ones(3, 4)).tolist() == pytest.approx([1.0, 0.5, 0.0])
    assert iou_of_sides(torch.zeros(1, 4), torch.zeros(1, 4)).tolist() == [0.0]


def _gradients(target: Tensor, size: int = 25) -> tuple[Tensor, Tensor, float]:
    """Of scores and boxes of the anchor-free loss, on cells 4 pixels apart."""
    torch.manual_seed(0)
    score = torch.zeros(len(target), 2, size, size, requires_grad=True)
    sides = torch.full((len(target), 4, size, size), 20.0, requires_grad=True)
    loss = anchor_free_loss(score, sides, target, 4)
    loss.backward()  # type: ignore[no-untyped-call]
    assert score.grad is not None
    assert sides.grad is not None
    return score.grad, sides.grad, float(loss.detach())


def test_at_most_16_positive_cells_and_64_in_all_count() -> None:
    score, sides, _ = _gradients(_target())
    assert int((score[0, 1] != 0).sum()) == 64
    assert int((score[0, 1] < 0).sum()) == 16  # these are to rise
    assert int(sides[0].abs().sum(0).count_nonzero()) == 16


def test_pairs_do_not_mix_in_a_batch() -> None:
    """A pair's own share of the gradient is the same, whatever else is in the batch, where all its cells count."""
    score, sides, _ = _gradients(torch.cat([_target(), torch.tensor([ABSENT]), _target(500)]))
    assert [int((one[1] < 0).sum()) for one in score] == [16, 0, 0]
    assert [int((one[1] != 0).sum()) for one in score] == [64, 64, 64]
    assert [bool(one.count_nonzero()) for one in sides] == [True, False, False]


def test_what_a_negative_pair_shows_is_negative_first() -> None:
    score, sides, _ = _gradients(torch.tensor([ABSENT]))
    falling = score[0, 1] > 0
    assert int(falling.sum()) == 64
    assert int(falling[8:17, 8:17].sum()) >= 16  # the inner ellipse, 16 pixels either way
    assert not sides.count_nonzero()


@pytest.mark.parametrize(
    "target",
    [
        [0.0, 0, 64, 64, 0],
        [900.0, 900, 64, 64, 1],  # outside of every cell
        [0.3, 0.7, 1, 1, 1],  # between cells
        [0.0, 0, 0, 0, 1],
        [0.0, 0, 2000, 2000, 1],  # no cell is negative
    ],
)
def test_degenerate_targets_give_finite_losses_and_gradients(target: list[float]) -> None:
    targets = torch.tensor([target])
    for size in (1, 5):
        score, offsets = (torch.zeros(1, n, size, size, requires_grad=True) for n in (2, 4))
        losses = [
            anchor_loss(score, offsets, targets, 32, SQUARE),
            anchor_free_loss(score, offsets.exp(), targets, 16),
            balanced_logistic_loss(score[:, :1], targets, 8),
        ]
        sum(losses).backward()  # type: ignore[union-attr]  # a tensor
        for tensor in (score, offsets):
            assert tensor.grad is not None
            assert tensor.grad.isfinite().all()
        assert all(bool(loss.detach().isfinite()) for loss in losses)


def test_the_same_generator_draws_the_same_cells() -> None:
    assert torch.equal(_gradients(_target())[0], _gradients(_target())[0])


def test_answers_that_do_not_fit_are_refused() -> None:
    with pytest.raises(InputError, match=r"targets are \[batch, 5\]"):
        balanced_logistic_loss(torch.zeros(1, 1, 3, 3), torch.zeros(1, 4), 8)
    with pytest.raises(InputError, match=r"answers are \[2, …, rows, columns\], got \[1, 2, 3, 3\]"):
        anchor_free_loss(torch.zeros(1, 2, 3, 3), torch.zeros(1, 4, 3, 3), torch.zeros(2, 5), 8)

"""The losses that Siamese trackers are trained with, each of its paper: one per kind of head."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from edgecv.errors import InputError

__all__ = ["anchor_free_loss", "anchor_loss", "balanced_logistic_loss", "grid", "iou_of_sides"]

POSITIVE, NEGATIVE = 0.6, 0.3  # IoU from which an anchor is the target, and up to which it is not
MOST_POSITIVE, MOST = 16, 64  # cells or anchors of one pair that count


def balanced_logistic_loss(logits: Tensor, targets: Tensor, stride: float, radius: float = 16.0) -> Tensor:
    """SiamFC's: the mean logistic loss of a label map, whose two classes weigh the same in every pair.

    A cell is positive within ``radius`` pixels of the target's centre. A pair without the target, or whose target lies
    outside the map, has negative cells only, and these have all its weight.
    (Bertinetto et al., 2016, arXiv:1606.09549, equations 1, 2 and 4.)

    Args:
        logits: ``[batch, 1, rows, columns]``.
        targets: ``[batch, 5]``, as ``TrackingPairs`` has them.
    """
    _check(targets, logits)
    x, y = grid(logits.shape[2:], stride, like=logits, first=[-stride * (count - 1) / 2 for count in logits.shape[2:]])
    apart = torch.hypot(x[None] - targets[:, 0, None], y[None] - targets[:, 1, None])
    positive = (apart <= radius) & (targets[:, 4, None] > 0)
    values = functional.softplus(torch.where(positive, -1.0, 1.0) * logits.flatten(1))
    parts = [_row_means(values, mask) for mask in (positive, ~positive)]
    counts = sum(mask.any(1).to(values.dtype) for mask in (positive, ~positive))
    return ((parts[0] + parts[1]) / counts).mean()


def anchor_loss(
    score: Tensor, offsets: Tensor, targets: Tensor, stride: float, anchors: Tensor, box_weight: float = 1.0
) -> Tensor:
    """SiamRPN's: cross-entropy over at most 64 anchors of a pair, and smooth L1 of the offsets of its positive ones.

    An anchor is positive from an IoU of 0.6 with the target, negative up to 0.3; of each pair at most 16 positive ones
    count, drawn at random from torch's generator. Anchors on what a negative pair shows come first among its negatives.
    (Li et al., 2018, CVPR, section 3.3, equations 4 to 7.)

    Args:
        score: ``[batch, 2 * anchors, rows, columns]``, logits of background for all anchors, then of the target.
        offsets: ``[batch, 4 * anchors, rows, columns]``, x, y, width and height, each of all anchors.
        targets: ``[batch, 5]``, as ``TrackingPairs`` has them.
        anchors: ``[anchors, 2]``, widths and heights in pixels.
        box_weight: of the second part.
    """
    _check(targets, score, offsets)
    count, (rows, columns) = len(anchors), score.shape[2:]
    x, y = grid(score.shape[2:], stride, like=score)
    sides = anchors.to(score).repeat_interleave(rows * columns, 0)
    placed = torch.cat([torch.stack([x, y], 1).repeat(count, 1), sides], 1)  # [anchors * cells, 4]
    overlap = _iou(placed[None], targets[:, None, :4])
    present, near = targets[:, 4, None] > 0, overlap >= POSITIVE
    negative = torch.where(present, overlap <= NEGATIVE, torch.ones_like(near))
    positive, chosen = _drawn(near & present, negative, first=near & ~present)
    logits = score.reshape(len(score), 2, -1)
    aims = torch.cat([(targets[:, None, :2] - placed[:, :2]) / sides, (targets[:, None, 2:4] / sides).log()], 2)
    found = offsets.reshape(len(offsets), 4, -1).transpose(1, 2)
    boxes = functional.smooth_l1_loss(found[positive], aims[positive], reduction="sum") / max(int(positive.sum()), 1)
    return _cross_entropy(logits, positive, chosen) + box_weight * boxes


def anchor_free_loss(
    score: Tensor,
    sides: Tensor,
    targets: Tensor,
    stride: float,
    box_weight: float = 1.0,
    first: Sequence[float] | None = None,
) -> Tensor:
    """SiamBAN's, which NanoTrack is trained with: cross-entropy over at most 64 cells of a pair, and 1 - IoU.

    A cell is positive in the ellipse with a quarter of the target's sides as its half axes, negative outside that with
    half of them, and does not count in between. Of each pair at most 16 positive cells count, drawn at random from
    torch's generator; the IoU is that of the boxes of these. Cells on what a negative pair shows come first among its
    negatives. (Chen et al., 2020, arXiv:2003.06761, section 3.3, equations 3 to 6.)

    Args:
        score: ``[batch, 2, rows, columns]``, logits of background and of the target.
        sides: ``[batch, 4, rows, columns]``, distances in pixels to left, top, right and bottom, above 0.
        targets: ``[batch, 5]``, as ``TrackingPairs`` has them.
        box_weight: of the second part.
        first: where the first row and column of cells lie, as ``grid`` takes it.
    """
    _check(targets, score, sides)
    x, y = grid(score.shape[2:], stride, like=score, first=first)
    across, down = x[None] - targets[:, 0, None], y[None] - targets[:, 1, None]
    w, h = targets[:, 2, None], targets[:, 3, None]
    present = targets[:, 4, None] > 0
    near = (across / (w / 4)) ** 2 + (down / (h / 4)) ** 2 <= 1
    outside = (across / (w / 2)) ** 2 + (down / (h / 2)) ** 2 > 1
    positive, chosen = _drawn(near & present, outside | ~present, first=near & ~present)
    wanted = torch.stack([across + w / 2, down + h / 2, w / 2 - across, h / 2 - down], 2)
    found = sides.flatten(2).transpose(1, 2)
    overlaps = iou_of_sides(found[positive], wanted[positive])
    boxes = (1 - overlaps).sum() / max(int(positive.sum()), 1)
    return _cross_entropy(score.flatten(2), positive, chosen) + box_weight * boxes


def grid(
    shape: Sequence[int], stride: float, *, like: Tensor, first: Sequence[float] | None = None
) -> tuple[Tensor, Tensor]:
    """x and y of each cell of an answer of ``shape`` rows and columns, in pixels from the search crop's centre.

    ``first`` is where the first row and the first column lie; without it, the ones whose number is half their count
    are at the centre.
    """
    starts = first or [-stride * (count // 2) for count in shape]
    places = [
        start + stride * torch.arange(count, dtype=like.dtype, device=like.device)
        for start, count in zip(starts, shape, strict=True)
    ]
    y, x = torch.meshgrid(*places, indexing="ij")
    return x.flatten(), y.flatten()


def iou_of_sides(first: Tensor, second: Tensor) -> Tensor:
    """IoU ``[…]`` of boxes around the same point, each ``[…, 4]``: distances to left, top, right and bottom.

    (Yu et al., 2016, arXiv:1608.01471, section 3.1.)
    """
    shared = torch.minimum(first, second).clamp(min=0)
    both = _area(shared)
    whole = _area(first.clamp(min=0)) + _area(second.clamp(min=0)) - both
    return both / whole.clamp(min=1e-6)


def _area(sides: Tensor) -> Tensor:
    return (sides[..., 0] + sides[..., 2]) * (sides[..., 1] + sides[..., 3])


def _iou(first: Tensor, second: Tensor) -> Tensor:
    """IoU of boxes given as centre x, y, width and height, ``[…, 4]`` each; 0 where one of them has no area."""
    low = torch.maximum(first[..., :2] - first[..., 2:] / 2, second[..., :2] - second[..., 2:] / 2)
    high = torch.minimum(first[..., :2] + first[..., 2:] / 2, second[..., :2] + second[..., 2:] / 2)
    shared = (high - low).clamp(min=0).prod(-1)
    return shared / (first[..., 2:].prod(-1) + second[..., 2:].prod(-1) - shared).clamp(min=1e-6)


def _drawn(positive: Tensor, negative: Tensor, first: Tensor) -> tuple[Tensor, Tensor]:
    """Masks ``[batch, cells]`` of at most 16 positive cells of each pair, and of all that count: at most 64."""
    kept = _some(torch.rand(positive.shape, device=positive.device), positive, MOST_POSITIVE)
    hard = _some(torch.rand(first.shape, device=first.device), first, MOST_POSITIVE)
    order = torch.rand(negative.shape, device=negative.device) + hard
    room = MOST - kept.sum(1, keepdim=True)
    return kept, kept | _some(order, negative, MOST, room)


def _some(order: Tensor, mask: Tensor, most: int, room: Tensor | None = None) -> Tensor:
    """The ``most`` cells of each row of ``mask`` that come first in ``order`` (largest first), or its ``room``."""
    ranked = order.masked_fill(~mask, -1.0).topk(min(most, mask.shape[1]), dim=1).indices
    places = torch.arange(ranked.shape[1], device=mask.device).expand_as(ranked)
    taken = torch.zeros_like(mask).scatter_(1, ranked, places < (most if room is None else room))
    return taken & mask


def _cross_entropy(logits: Tensor, positive: Tensor, chosen: Tensor) -> Tensor:
    """The mean over the chosen cells; ``logits`` are ``[batch, 2, cells]``."""
    losses = functional.cross_entropy(logits, positive.long(), reduction="none")
    return (losses * chosen).sum() / max(int(chosen.sum()), 1)


def _row_means(values: Tensor, mask: Tensor) -> Tensor:
    """The mean of each row where ``mask`` is, 0 where it is nowhere."""
    return (values * mask).sum(1) / mask.sum(1).clamp(min=1)


def _check(targets: Tensor, *outputs: Tensor) -> None:
    if targets.ndim != 2 or targets.shape[1] != 5:
        raise InputError(f"targets are [batch, 5]: x, y, width, height, whether it is there; got {list(targets.shape)}")
    for output in outputs:
        if output.ndim != 4 or len(output) != len(targets):
            raise InputError(f"answers are [{len(targets)}, …, rows, columns], got {list(output.shape)}")

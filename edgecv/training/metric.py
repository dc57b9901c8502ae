"""Siamese metric learning: losses that draw a class together and drive classes apart, and the batches they need."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from torch.utils.data import Sampler

from edgecv.errors import InputError

__all__ = ["ClassBatches", "contrastive_loss", "triplet_loss"]

Mining = Literal["hard", "semihard", "all"]


def triplet_loss(embeddings: Tensor, targets: Tensor, margin: float = 0.2, mining: Mining = "hard") -> Tensor:
    """The mean of ``max(0, d(anchor, positive) - d(anchor, negative) + margin)`` over triplets of the batch.

    Distances are Euclidean, 0 to 2, of ``embeddings[batch, features]`` scaled to unit length; Schroff et al. square
    them, Hermans et al. found that less steady. ``targets[batch]`` are integers. The result is a scalar; 0, with a
    gradient of 0, where the batch holds no triplet.

    Args:
        mining: ``"hard"`` takes the farthest positive and the nearest negative of each anchor (Hermans et al., 2017,
            arXiv:1703.07737, eq. 5). ``"semihard"`` takes, for each anchor and positive, the nearest negative that is
            farther than the positive (Schroff et al., 2015, arXiv:1503.03832, eq. 4), or the farthest negative where
            none is. ``"all"`` takes every triplet, those of no loss too, and memory for ``batch³`` numbers.

    Raises:
        InputError: the shapes do not fit, the margin is negative, or the mining is unknown.
    """
    distances = _distances(embeddings, targets, margin)
    same = targets[:, None] == targets
    positive, negative = same & ~torch.eye(len(same), dtype=torch.bool, device=same.device), ~same
    if mining == "hard":
        gaps = _hard(distances, positive, negative)
    elif mining == "semihard":
        gaps = _semihard(distances, positive, negative)
    elif mining == "all":
        gaps = (distances[:, :, None] - distances[:, None])[positive[:, :, None] & negative[:, None]]
    else:
        raise InputError(f"mining is 'hard', 'semihard' or 'all', got {mining!r}")
    return _mean(functional.relu(gaps + margin))


def contrastive_loss(embeddings: Tensor, targets: Tensor, margin: float = 1.0) -> Tensor:
    """The mean over all pairs of the batch of ``d²/2`` within a class and ``max(0, margin - d)²/2`` between two.

    Distances are those of ``triplet_loss``, so pairs cannot reach a margin above 2. The result is a scalar; 0, with a
    gradient of 0, for a batch of one (Hadsell, Chopra & LeCun, 2006, CVPR, eq. 4).

    Raises:
        InputError: the shapes do not fit, or the margin is negative.
    """
    distances = _distances(embeddings, targets, margin)
    first, second = torch.triu_indices(len(distances), len(distances), 1, device=distances.device)
    apart = distances[first, second]
    return _mean(torch.where(targets[first] == targets[second], apart, functional.relu(margin - apart)).square() / 2)


class ClassBatches(Sampler[list[int]]):
    """Batches of ``per_class`` samples of each of ``classes`` classes, for a ``DataLoader``'s ``batch_sampler``.

    What an epoch has drawn least comes first, of classes and of a class's samples, ties at random. A sample repeats in
    a batch only where its class has fewer than ``per_class``. Batches depend on ``seed`` and the epoch alone: call
    ``set_epoch`` before each, as for PyTorch's ``DistributedSampler``, or every epoch is the same.

    Args:
        targets: the class of each sample, integers ``[samples]``.
        batches: per epoch; by default as many as it takes to draw as many samples as there are.

    Raises:
        InputError: ``targets`` has fewer classes than a batch, a batch has fewer than two classes or two samples of
            each, or an argument is negative.
    """

    def __init__(
        self,
        targets: Sequence[int] | NDArray[np.integer],
        *,
        classes: int,
        per_class: int,
        batches: int | None = None,
        seed: int = 0,
    ) -> None:
        values = np.asarray(targets)
        if values.ndim != 1 or values.dtype.kind not in "iu":
            raise InputError(f"targets are integers [samples], got {values.dtype} {list(values.shape)}")
        self.classes = _at_least(2, "classes", classes)
        self.per_class = _at_least(2, "per_class", per_class)
        self._members = [np.flatnonzero(values == target).tolist() for target in np.unique(values)]
        if len(self._members) < classes:
            raise InputError(f"a batch of {classes} classes needs as many in the data, got {len(self._members)}")
        self.batches = _at_least(1, "batches", -(-len(values) // (classes * per_class)) if batches is None else batches)
        self.seed = _at_least(0, "seed", seed)
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, from 0, whose batches come next."""
        self.epoch = _at_least(0, "epoch", epoch)

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[list[int]]:
        generator = np.random.default_rng((self.seed, self.epoch))
        drawn, drawn_of = np.zeros(len(self._members)), [np.zeros(len(members)) for members in self._members]
        for _ in range(self.batches):
            chosen = _least_drawn(drawn, self.classes, generator)
            yield [self._members[i][j] for i in chosen for j in _least_drawn(drawn_of[i], self.per_class, generator)]


def _least_drawn(drawn: NDArray[np.float64], count: int, generator: np.random.Generator) -> list[int]:
    """Draw ``count`` places, those drawn least so far first, and add them to ``drawn``; all once before any twice."""
    found: list[int] = []
    while len(found) < count:
        share = min(count - len(found), len(drawn))
        picked = np.argpartition(drawn + generator.random(len(drawn)), share - 1)[:share]
        drawn[picked] += 1
        found += picked.tolist()
    return found


def _hard(distances: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
    """How much farther each anchor's farthest positive is than its nearest negative."""
    valid = positive.any(1) & negative.any(1)
    farthest = distances.where(positive, -torch.inf).amax(1)
    nearest = distances.where(negative, torch.inf).amin(1)
    return farthest[valid] - nearest[valid]


def _semihard(distances: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
    """How much farther each positive is than the next farther negative of its anchor, or than the farthest."""
    ordered = distances.where(negative, torch.inf).sort(1).values
    beyond = torch.searchsorted(ordered.detach(), distances.detach(), right=True)
    last = negative.sum(1, keepdim=True) - 1
    chosen = ordered.gather(1, beyond.minimum(last).clamp(min=0))
    valid = positive & (last >= 0)
    return distances[valid] - chosen[valid]


def _distances(embeddings: Tensor, targets: Tensor, margin: float) -> Tensor:
    """Distances ``[batch, batch]`` of unit vectors, whose gradient is finite at distance 0 and for vectors of zeros."""
    if embeddings.ndim != 2 or len(embeddings) == 0 or not embeddings.is_floating_point():
        raise InputError(f"embeddings are floats [batch, features], got {embeddings.dtype} {list(embeddings.shape)}")
    if targets.shape != embeddings.shape[:1] or targets.is_floating_point():
        raise InputError(f"targets are integers [{len(embeddings)}], got {targets.dtype} {list(targets.shape)}")
    if not 0 <= margin < torch.inf:
        raise InputError(f"a margin is 0 or more, got {margin!r}")
    values = embeddings.to(torch.promote_types(embeddings.dtype, torch.float32))
    norms = torch.linalg.vector_norm(values, dim=1, keepdim=True)
    units = values / norms.where(norms != 0, 1.0)
    return torch.cdist(units, units, compute_mode="donot_use_mm_for_euclid_dist")


def _mean(values: Tensor) -> Tensor:
    """The mean, or a 0 that still has a gradient."""
    return values.sum() / max(values.numel(), 1)


def _at_least(low: int, name: str, value: int) -> int:
    if value < low:
        raise InputError(f"{name} is {low} or more, got {value!r}")
    return value

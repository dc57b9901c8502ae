"""How well embeddings tell classes apart: verification of pairs and recall of the nearest sample."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgecv.errors import InputError

__all__ = ["EmbeddingScores", "pair_similarities", "recall_at_1", "roc_auc", "score_embeddings", "tar_at_far"]

DECIMALS = 12  # of a cosine, so that equal embeddings tie in whatever order a matrix product adds

Floats = NDArray[np.floating]
Bools = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class EmbeddingScores:
    """Shares, 0 to 1, over ``pairs`` pairs of ``samples`` samples; a FAR below one in all negative pairs means none."""

    roc_auc: float
    tar_at_far_1e2: float
    tar_at_far_1e3: float
    recall_at_1: float
    pairs: int
    samples: int


def score_embeddings(embeddings: Floats, targets: NDArray[np.integer]) -> EmbeddingScores:
    """Every score of ``embeddings[samples, features]`` whose classes are ``targets[samples]``.

    Raises:
        InputError: the shapes do not fit, a number is not finite, or no two samples are of one class or of two.
    """
    scores, same = pair_similarities(embeddings, targets)
    at_1e2, at_1e3 = (tar_at_far(scores, same, far) for far in (1e-2, 1e-3))
    recall = recall_at_1(embeddings, targets)
    return EmbeddingScores(roc_auc(scores, same), at_1e2, at_1e3, recall, len(scores), len(embeddings))


def pair_similarities(embeddings: Floats, targets: NDArray[np.integer]) -> tuple[NDArray[np.float64], Bools]:
    """The cosine of every pair ``i < j`` of ``embeddings[samples, features]``, and whether its targets are the same.

    Both are ``[samples * (samples - 1) / 2]``, by ``i``, then ``j``. The cosine with an embedding of zeros is 0.

    Raises:
        InputError: fewer than two samples, the shapes do not fit, or a number is not finite.
    """
    cosines, same = _all_pairs(embeddings, targets)
    upper = np.triu(np.ones(cosines.shape, dtype=bool), 1)
    return cosines[upper], same[upper]


def roc_auc(scores: Floats, positive: Bools) -> float:
    """The chance that a positive scores above a negative, ties counted half: the area under the ROC curve.

    ``scores`` and ``positive`` are ``[pairs]``; Mann & Whitney's U over its largest value (Hanley & McNeil, 1982,
    Radiology 143:29).

    Raises:
        InputError: the shapes do not fit, a score is NaN, or there is no positive or no negative.
    """
    right, wrong = _split(scores, positive)
    twice = np.searchsorted(wrong, right, "left") + np.searchsorted(wrong, right, "right")
    return int(twice.sum()) / (2 * len(right) * len(wrong))


def tar_at_far(scores: Floats, positive: Bools, far: float) -> float:
    """The largest share of positives that score at or above a threshold which at most ``far`` of the negatives reach.

    ``scores`` and ``positive`` are ``[pairs]``; ``far``, the false-accept rate, is from 0 to 1.

    Raises:
        InputError: as for ``roc_auc``, or ``far`` is not from 0 to 1.
    """
    if not 0 <= far <= 1:
        raise InputError(f"a false-accept rate is from 0 to 1, got {far!r}")
    right, wrong = _split(scores, positive)
    allowed = int((np.arange(1, len(wrong) + 1) / len(wrong) <= far).sum())
    return 1.0 if allowed == len(wrong) else float((right > wrong[-1 - allowed]).mean())


def recall_at_1(embeddings: Floats, targets: NDArray[np.integer]) -> float:
    """The share of samples whose nearest other sample, by cosine, has the same target.

    Of several equally near, the share with the same target counts: a network that says nothing gains nothing. A sample
    alone in its class is not counted, but may be another's nearest. Shapes are those of ``pair_similarities``.

    Raises:
        InputError: as for ``pair_similarities``, or no class has two samples.
    """
    cosines, same = _all_pairs(embeddings, targets)
    np.fill_diagonal(cosines, -np.inf)
    np.fill_diagonal(same, False)
    counted = same.any(axis=1)
    if not counted.any():
        raise InputError(f"recall needs two samples of one class, got {len(same)} classes of one")
    nearest = cosines == cosines.max(axis=1, keepdims=True)
    return float(((nearest & same).sum(axis=1) / nearest.sum(axis=1))[counted].mean())


def _all_pairs(embeddings: Any, targets: Any) -> tuple[NDArray[np.float64], Bools]:
    """Cosines, and whether targets are the same: ``[samples, samples]`` each."""
    values, classes = np.asarray(embeddings), np.asarray(targets)
    if values.ndim != 2 or len(values) < 2 or values.dtype.kind != "f":
        raise InputError(f"embeddings are floats [2 or more, features], got {values.dtype} {list(values.shape)}")
    if classes.shape != values.shape[:1] or classes.dtype.kind not in "iu":
        raise InputError(f"targets are integers [{len(values)}], got {classes.dtype} {list(classes.shape)}")
    if not np.isfinite(values).all():
        raise InputError(f"embeddings are finite, got {int((~np.isfinite(values)).sum())} numbers that are not")
    norms = np.linalg.norm(values.astype(np.float64), axis=1, keepdims=True)
    units = values / np.where(norms == 0, 1, norms)
    return np.clip(units @ units.T, -1, 1).round(DECIMALS), classes[:, None] == classes


def _split(scores: Any, positive: Any) -> tuple[Floats, Floats]:
    """The sorted scores of positives, and of negatives."""
    values, right = np.asarray(scores), np.asarray(positive)
    if values.ndim != 1 or right.shape != values.shape or right.dtype != bool:
        raise InputError(
            f"scores [pairs] need a bool each, got {list(values.shape)}, {right.dtype} {list(right.shape)}"
        )
    if np.isnan(values).any():
        raise InputError(f"scores are numbers, got {int(np.isnan(values).sum())} NaN")
    if right.all() or not right.any():
        raise InputError(f"a positive and a negative pair are needed, got {int(right.sum())} of {len(right)} positive")
    return np.sort(values[right]), np.sort(values[~right])

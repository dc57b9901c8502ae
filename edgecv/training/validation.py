"""What a validation finds: a loss, a score to choose the best epoch by, and the figures of the task."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

from edgecv.manifest import Accuracy
from edgecv.schema import decode
from edgecv.verification import EmbeddingScores

__all__ = ["Batches", "Images", "Objective", "PairScores", "Scores", "Validation", "decode_scores"]

Images = Tensor | tuple[Tensor, ...]  # exemplars and search crops for a tracker
Batches = Iterable[tuple[Any, Tensor]]


@dataclass(frozen=True, slots=True)
class PairScores:
    """How well a tracker finds targets in single search crops.

    Attributes:
        success: area under the success curve of the boxes, as in one-pass evaluation, 0-1.
        error_px: mean distance of the centres, in pixels of the search crop.
        pairs: on how many pairs.
    """

    success: float
    error_px: float
    pairs: int


Scores = Accuracy | EmbeddingScores | PairScores
KINDS: dict[str, type[Scores]] = {"top1": Accuracy, "roc_auc": EmbeddingScores, "success": PairScores}


@dataclass(frozen=True, slots=True)
class Validation:
    """How good a network is: ``score`` from 0 to 1 is what the best epoch is chosen by."""

    loss: float
    score: float
    scores: Scores


class Objective(Protocol):
    """A loss to train with, and a score to choose the best epoch by."""

    def loss(self, outputs: Any, images: Any, targets: Tensor) -> Tensor:
        """The loss of this process's share of a batch, whose mean over the processes is the joint batch's."""

    def validate(self, network: nn.Module, batches: Batches) -> Validation:
        """Score ``network`` on this process's share of the validation data, ready to run, joined with the others'."""


def decode_scores(values: dict[str, Any]) -> Scores:
    """Scores from what ``encode`` made of them."""
    kind = next(kind for name, kind in KINDS.items() if name in values)
    return decode(kind, values, "scores")

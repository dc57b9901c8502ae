"""What training makes small and validation makes large: for classifiers, embeddings and trackers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from edgecv.errors import InputError
from edgecv.evaluation import wilson_interval
from edgecv.manifest import Accuracy
from edgecv.models.siamese import Siamese
from edgecv.training.config import TrainConfig
from edgecv.training.metric import contrastive_loss, triplet_loss
from edgecv.training.ranks import Ranks
from edgecv.training.tracking_objective import Tracking
from edgecv.training.validation import Batches, Objective, Validation
from edgecv.verification import score_embeddings

__all__ = ["Classification", "Metric", "distillation_loss", "objective_of"]

MOST = 4000  # validation images whose pairs are scored: they grow with the square


def objective_of(config: TrainConfig, network: nn.Module, teacher: nn.Module | None, ranks: Ranks) -> Objective:
    """The objective that ``config.loss`` names, for ``network``."""
    if config.loss == "cross_entropy":
        return Classification(config, teacher, ranks)
    if teacher is not None:
        raise InputError(f"a teacher gives logits to follow; the loss {config.loss!r} has none")
    if isinstance(network, Siamese):
        return Tracking(config, network.settings, ranks)
    return Metric(config, ranks)


class Classification:
    """Cross-entropy with the labels, and with a teacher's answers where there is one; scored by top-1."""

    def __init__(self, config: TrainConfig, teacher: nn.Module | None, ranks: Ranks) -> None:
        self._config, self._teacher, self._ranks = config, teacher, ranks

    def loss(self, outputs: Tensor, images: Tensor, targets: Tensor) -> Tensor:
        if not targets.is_floating_point():
            _check_classes(outputs, targets)
        smoothing = self._config.label_smoothing
        loss = functional.cross_entropy(outputs, targets.to(outputs.device), label_smoothing=smoothing)
        if self._teacher is None:
            return loss
        with torch.no_grad():
            wanted = self._teacher(images)
        share = self._config.distill_weight
        return (1 - share) * loss + share * distillation_loss(outputs, wanted, self._config.distill_temperature)

    def validate(self, network: nn.Module, batches: Batches) -> Validation:
        loss, right, among5, seen = 0.0, 0, 0, 0
        for images, targets in batches:
            logits = network(images).float()
            _check_classes(logits, targets)
            targets = targets.to(logits.device)
            loss += float(functional.cross_entropy(logits, targets, reduction="sum"))
            best5 = logits.topk(min(5, logits.shape[1]), dim=1).indices
            right += int((best5[:, 0] == targets).sum())
            among5 += int((best5 == targets[:, None]).sum())
            seen += len(targets)
        loss, *counts = self._ranks.total(loss, right, among5, seen)
        right, among5, seen = map(int, counts)
        accuracy = Accuracy(right / seen, among5 / seen, seen, wilson_interval(right, seen))
        return Validation(loss / seen, accuracy.top1, accuracy)


class Metric:
    """A loss over the pairs or triplets of a batch; scored by the ROC-AUC of verification.

    The loss is that of the joint batch: every process sees all its embeddings.
    """

    def __init__(self, config: TrainConfig, ranks: Ranks) -> None:
        self._config, self._ranks = config, ranks

    def loss(self, outputs: Tensor, images: Tensor, targets: Tensor) -> Tensor:
        return self._of(self._ranks.joint(outputs), self._ranks.joint(targets.to(outputs.device)))

    def validate(self, network: nn.Module, batches: Batches) -> Validation:
        pairs = [(network(images).float().cpu().numpy(), targets.numpy()) for images, targets in batches]
        shares = [
            [np.concatenate(parts) for parts in zip(*share, strict=True)] for share in self._ranks.together(pairs)
        ]
        embeddings, targets = (_interleaved(parts) for parts in zip(*shares, strict=True))
        few = slice(None, None, -(-len(targets) // MOST))
        scores = score_embeddings(embeddings[few], targets[few])
        chunks = -(-len(targets) // self._config.batch_size)  # strided: data is often sorted by class
        losses = [
            float(self._of(torch.from_numpy(embeddings[i::chunks]), torch.from_numpy(targets[i::chunks])))
            for i in range(chunks)
        ]
        return Validation(sum(losses) / chunks, scores.roc_auc, scores)

    def _of(self, embeddings: Tensor, targets: Tensor) -> Tensor:
        if self._config.loss == "contrastive":
            return contrastive_loss(embeddings, targets, self._config.margin)
        return triplet_loss(embeddings, targets, self._config.margin, self._config.mining)


def distillation_loss(logits: Tensor, wanted: Tensor, temperature: float) -> Tensor:
    """How far answers are from a teacher's: the divergence of both, softened by ``temperature``, times its square.

    Args:
        logits, wanted: ``[batch, classes]``, the student's and the teacher's.

    Source: Hinton, Vinyals & Dean, 2015, arXiv:1503.02531.
    """
    if wanted.shape != logits.shape:
        raise InputError(f"the teacher gives {list(wanted.shape)} where the network gives {list(logits.shape)}")
    soft = functional.log_softmax(logits / temperature, 1), functional.log_softmax(wanted / temperature, 1)
    return functional.kl_div(*soft, reduction="batchmean", log_target=True) * temperature**2


def _interleaved(shares: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """What the processes hold, in the order of the data: each holds every ``len(shares)``-th."""
    whole = np.empty((sum(map(len, shares)), *shares[0].shape[1:]), shares[0].dtype)
    for rank, share in enumerate(shares):
        whole[rank :: len(shares)] = share
    return whole


def _check_classes(logits: Tensor, targets: Tensor) -> None:
    if logits.ndim != 2:
        raise InputError(f"a classifier gives logits [batch, classes], this network gives {list(logits.shape)}")
    if int(targets.min()) < 0 or int(targets.max()) >= logits.shape[1]:
        raise InputError(f"class index {int(targets.max())} in the data, but the network has {logits.shape[1]} classes")

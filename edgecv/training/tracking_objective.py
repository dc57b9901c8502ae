"""Training of trackers: the loss that suits a network's head, and how well it finds targets in held-out pairs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edgecv.errors import InputError
from edgecv.models.siamese import Siamese
from edgecv.pipelines.tracking.boxes import context_side, overlaps
from edgecv.pipelines.tracking.heads import head_for
from edgecv.pipelines.tracking.scoring import OVERLAPS
from edgecv.pipelines.tracking.settings import TrackerSettings
from edgecv.preprocess import Preprocess
from edgecv.training.config import TrainConfig
from edgecv.training.ranks import Ranks
from edgecv.training.tracking_losses import anchor_free_loss, anchor_loss, balanced_logistic_loss
from edgecv.training.tracking_pairs import TrackingPairs
from edgecv.training.validation import Batches, PairScores, Validation

__all__ = ["Tracking", "check_tracking"]

MOST = 1e6


class Tracking:
    """The loss of a tracker's head; scored by the success of the boxes that the head reads, each pair on its own."""

    def __init__(self, config: TrainConfig, settings: TrackerSettings, ranks: Ranks) -> None:
        self._config, self._ranks = config, ranks
        # A pair has one search crop, so a head that compares scales gets the middle one alone.
        self._settings = replace(settings, scales=1)
        self._head = head_for(self._settings)
        ratios = torch.tensor(settings.ratios).sqrt()
        self._anchors = torch.stack([settings.anchor / ratios, settings.anchor * ratios], 1)

    def loss(self, outputs: Any, images: Any, targets: Tensor) -> Tensor:
        stride, weight = self._settings.stride, self._config.box_weight
        score, *rest = (output.float() for output in _each(outputs))  # a GPU may answer in float16
        targets = targets.to(score.device)
        if self._settings.head == "peak":
            return balanced_logistic_loss(score, targets, stride, self._config.radius)
        (box,) = rest
        if self._settings.head == "anchors":
            return anchor_loss(score, box, targets, stride, self._anchors, weight)
        first = [self._settings.origin(count) for count in score.shape[2:]]
        return anchor_free_loss(score, box, targets, stride, weight, first)

    def validate(self, network: nn.Module, batches: Batches) -> Validation:
        total, areas, apart, seen, found = 0.0, 0.0, 0.0, 0, 0
        for crops, targets in batches:
            outputs = network(*crops)
            total += float(self.loss(outputs, crops, targets)) * len(targets)
            seen += len(targets)
            there = targets[:, 4] > 0
            wanted = targets[there].double().numpy()
            # A network in training may answer anything; what is beyond this fits no crop.
            finite = [output.float().cpu()[there].clamp(-MOST, MOST).numpy() for output in _each(outputs)]
            boxes = self._boxes(finite, wanted)
            ious = overlaps(boxes, _corners(wanted))
            areas += float((ious[:, None] > OVERLAPS).mean(1).sum())
            apart += float(np.hypot(*(boxes[:, :2] + boxes[:, 2:] / 2 - wanted[:, :2]).T).sum())
            found += len(wanted)
        total, areas, apart, *counts = self._ranks.total(total, areas, apart, seen, found)
        seen, found = map(int, counts)
        if not found:
            raise InputError("validation pairs must show their target: set negatives below 1")
        scores = PairScores(areas / found, apart / found, found)
        return Validation(total / seen, scores.success, scores)

    def _boxes(self, outputs: list[NDArray[np.float32]], wanted: NDArray[np.float64]) -> NDArray[np.float64]:
        """Where the head finds each target ``[targets, 4]``: x, y, w, h in pixels from the crop's centre."""
        names, boxes = ("score", "box"), np.zeros((len(wanted), 4))
        for index, (w, h) in enumerate(wanted[:, 2:4]):
            # What a tracker takes the size to be gives the crop its scale.
            known = self._settings.exemplar / context_side(float(w), float(h), self._settings.context)
            own = {name: output[index : index + 1] for name, output in zip(names, outputs, strict=False)}
            (x, y), size = (part for part in self._head.locate(own, (w * known, h * known))[:2])
            boxes[index] = x - size[0] / 2, y - size[1] / 2, *size
        return boxes


def check_tracking(
    network: nn.Module, data: tuple[object, object], config: TrainConfig, preprocess: Preprocess
) -> None:
    """Refuse a tracker without pairs, pairs without a tracker, and crops that are not the network's.

    Raises:
        InputError: so it is.
    """
    pairs = [part for part in data if isinstance(part, TrackingPairs)]
    if not isinstance(network, Siamese):
        if pairs or config.loss == "tracking":
            raise InputError(f"the loss 'tracking' and pairs are for trackers, {type(network).__name__} is none")
        return
    if len(pairs) < 2 or config.loss != "tracking":
        raise InputError(f"a tracker is trained on TrackingPairs with loss='tracking', got loss={config.loss!r}")
    if preprocess != network.preprocess:
        raise InputError("a tracker says how its images are normalized: give preprocess=network.preprocess")
    for name in ("exemplar", "search", "context"):
        given, wanted = getattr(pairs[0].settings, name), getattr(network.settings, name)
        if given != wanted or getattr(pairs[1].settings, name) != wanted:
            raise InputError(f"the pairs are cut with {name} {given:g}, the network has {wanted:g}")


def _each(outputs: Any) -> tuple[Tensor, ...]:
    return outputs if isinstance(outputs, tuple) else (outputs,)


def _corners(centred: NDArray[np.float64]) -> NDArray[np.float64]:
    """x, y, w, h of the left upper corner, from those of the centre."""
    return np.concatenate([centred[:, :2] - centred[:, 2:4] / 2, centred[:, 2:4]], axis=1)

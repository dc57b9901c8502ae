"""Accuracy of a pipeline on labelled images."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from edgecv.data import Samples
from edgecv.errors import InputError
from edgecv.manifest import Accuracy
from edgecv.pipelines.classifier import Classifier
from edgecv.progress import Progress, silent

__all__ = ["accuracy_of", "evaluate", "wilson_interval"]


def evaluate(classifier: Classifier, samples: Samples, *, batch: int = 32, progress: Progress = silent) -> Accuracy:
    """Score ``classifier`` on labelled images: top-1, top-5 and the 95 % interval of top-1.

    Raises:
        InputError: there is no sample, or its labels are not the classifier's.
    """
    if len(samples) == 0:
        raise InputError("evaluation needs at least one labelled image, got none")
    if tuple(samples.labels) != classifier.labels:
        raise InputError(
            f"the data's {len(samples.labels)} labels are not the classifier's {len(classifier.labels)}: "
            f"{_first_difference(samples.labels, classifier.labels)}"
        )
    ranks = []
    for start in range(0, len(samples), batch):
        frames, targets = zip(*(samples[i] for i in range(start, min(start + batch, len(samples)))), strict=True)
        ranks.append(_ranks(classifier.outputs(frames), np.array(targets)))
        progress("evaluate", min(start + batch, len(samples)), len(samples))
    return accuracy_of(np.concatenate(ranks))


def accuracy_of(ranks: NDArray[np.int64]) -> Accuracy:
    """Accuracy from the rank (0 is best) that each sample's right class got."""
    count = len(ranks)
    right = int((ranks == 0).sum())
    return Accuracy(right / count, float((ranks < 5).mean()), count, wilson_interval(right, count))


def wilson_interval(successes: int, trials: int, z: float = 1.96) -> tuple[float, float]:
    """The interval that holds a share with the confidence of ``z`` (1.96: 95 %) given its count (Wilson, 1927)."""
    share = successes / trials
    middle = share + z * z / (2 * trials)
    half = z * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    scale = 1 + z * z / trials
    return max(0.0, (middle - half) / scale), min(1.0, (middle + half) / scale)


def _ranks(outputs: NDArray[np.float32], targets: NDArray[np.int64]) -> NDArray[np.int64]:
    order = np.argsort(-outputs, axis=1, kind="stable")
    return np.asarray(np.argmax(order == targets[:, None], axis=1))


def _first_difference(data: tuple[str, ...], classifier: tuple[str, ...]) -> str:
    for index, (left, right) in enumerate(zip(data, classifier, strict=False)):
        if left != right:
            return f"number {index} is {left!r}, not {right!r}"
    return "one list is longer"

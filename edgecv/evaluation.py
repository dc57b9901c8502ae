"""How good a pipeline is on labelled images."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import overload

import numpy as np
from numpy.typing import NDArray

from edgecv.data import Samples
from edgecv.errors import InputError
from edgecv.manifest import Accuracy
from edgecv.pipelines.classifier import Classifier
from edgecv.pipelines.embedder import Embedder
from edgecv.progress import Progress, silent
from edgecv.verification import EmbeddingScores, score_embeddings

__all__ = ["accuracy_of", "evaluate", "wilson_interval"]


@overload
def evaluate(pipeline: Classifier, samples: Samples, *, batch: int = 32, progress: Progress = silent) -> Accuracy: ...


@overload
def evaluate(
    pipeline: Embedder, samples: Samples, *, batch: int = 32, progress: Progress = silent
) -> EmbeddingScores: ...


def evaluate(
    pipeline: Classifier | Embedder, samples: Samples, *, batch: int = 32, progress: Progress = silent
) -> Accuracy | EmbeddingScores:
    """Score a pipeline on labelled images.

    A ``Classifier`` by top-1, top-5 and the 95 % interval of top-1; an ``Embedder``, which may never have seen these
    classes, by how well its vectors tell every pair apart.

    Raises:
        InputError: there is no sample, its labels are not the classifier's, or the pipeline is for another task.
    """
    if len(samples) == 0:
        raise InputError("evaluation needs at least one labelled image, got none")
    if isinstance(pipeline, Embedder):
        shares = [(pipeline(list(frames)), targets) for frames, targets in _batches(samples, batch, progress)]
        vectors, targets = (np.concatenate(parts) for parts in zip(*shares, strict=True))
        return score_embeddings(vectors, targets)
    if not isinstance(pipeline, Classifier):
        raise InputError(f"evaluate scores a Classifier or an Embedder, got {type(pipeline).__name__}")
    _check_labels(samples.labels, pipeline.labels)
    batches = _batches(samples, batch, progress)
    return accuracy_of(np.concatenate([_ranks(pipeline.outputs(frames), targets) for frames, targets in batches]))


def _batches(
    samples: Samples, batch: int, progress: Progress
) -> Iterator[tuple[tuple[NDArray[np.uint8], ...], NDArray[np.int64]]]:
    for start in range(0, len(samples), batch):
        end = min(start + batch, len(samples))
        frames, targets = zip(*(samples[i] for i in range(start, end)), strict=True)
        yield frames, np.array(targets)
        progress("evaluate", end, len(samples))


def _check_labels(data: tuple[str, ...], classifier: tuple[str, ...]) -> None:
    if tuple(data) != classifier:
        raise InputError(
            f"the data's {len(data)} labels are not the classifier's {len(classifier)}: "
            f"{_first_difference(data, classifier)}"
        )


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
    # Exact at the ends, where rounding would leave 1 out of the interval of a perfect score.
    low = 0.0 if successes == 0 else max(0.0, (middle - half) / scale)
    return low, 1.0 if successes == trials else min(1.0, (middle + half) / scale)


def _ranks(outputs: NDArray[np.float32], targets: NDArray[np.int64]) -> NDArray[np.int64]:
    order = np.argsort(-outputs, axis=1, kind="stable")
    return np.asarray(np.argmax(order == targets[:, None], axis=1))


def _first_difference(data: tuple[str, ...], classifier: tuple[str, ...]) -> str:
    for index, (left, right) in enumerate(zip(data, classifier, strict=False)):
        if left != right:
            return f"number {index} is {left!r}, not {right!r}"
    return "one list is longer"

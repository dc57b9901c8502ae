"""The images of a chain: opened before anything is done, so that a wrong name costs nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgecv.chain.recipe import ChainData
from edgecv.data import Samples, hold_out, open_frames, open_samples, spread
from edgecv.errors import InputError
from edgecv.models.checkpoint import Card
from edgecv.pipelines import Classifier, Embedder
from edgecv.preprocess import Preprocess
from edgecv.runtimes.session import Session

__all__ = ["Images", "open_images", "pipeline_of", "preprocess_of"]

HELD_OUT = 10  # every tenth training image validates


@dataclass(frozen=True, slots=True)
class Images:
    """What each step looks at; ``labelled`` are the calibration images with their classes, for pruning."""

    test: Samples
    train: Samples | None
    val: Samples | None
    calibration: Sequence[NDArray[np.uint8]]
    labelled: Sequence[tuple[NDArray[np.uint8], int]]

    def counts(self) -> dict[str, int]:
        """How many images there are of each kind."""
        kinds = {"test": self.test, "train": self.train, "val": self.val, "calibration": self.calibration}
        return {name: len(held) for name, held in kinds.items() if held is not None}


def open_images(data: ChainData, labels: Sequence[str]) -> Images:
    """Open what a recipe names; ``labels`` are the network's.

    Raises:
        InputError: something does not exist, or has other labels than the network.
    """
    train, val = _train_and_val(data, labels)
    labelled = [train[index] for index in spread(len(train), data.limit)] if train else []
    calibration: Sequence[Any] = [frame for frame, _ in labelled]
    if data.calibration is not None and data.calibration != data.train:
        calibration = _frames(data.calibration, data.limit)
    return Images(_labelled(data.test, "test", labels), train, val, calibration, labelled)


def preprocess_of(card: Card, path: str | Path) -> Preprocess:
    """How a checkpoint's images are preprocessed, which a chain has to know."""
    if card.preprocess is None:
        raise InputError(f"{path} does not say how images are preprocessed: save it with preprocess=")
    return card.preprocess


def pipeline_of(session: Session, card: Card, preprocess: Preprocess) -> Any:
    """What scores a session of a chain's network: a ``Classifier`` or an ``Embedder``."""
    if card.recipe.architecture == "embedding":
        return Embedder(session, preprocess)
    return Classifier(session, preprocess, card.labels)


def _train_and_val(data: ChainData, labels: Sequence[str]) -> tuple[Samples | None, Samples | None]:
    val = _labelled(data.val, "test", labels) if data.val not in (None, data.train) else None
    if data.train is None:
        return None, val
    train = _labelled(data.train, "train", labels)
    return (train, val) if val else hold_out(train, every=HELD_OUT)


def _labelled(source: str | None, split: Any, labels: Sequence[str]) -> Samples:
    found = open_samples(source or "", split, labels)
    if labels and tuple(found.labels) != tuple(labels):
        raise InputError(f"{source} has {len(found.labels)} labels that are not the checkpoint's {len(labels)}")
    return found


def _frames(source: str, limit: int) -> Sequence[NDArray[np.uint8]]:
    """Images without labels; of a data set that has splits, those to train on, unless it names another."""
    if Path(source).exists():
        return open_frames(source, limit)
    samples = open_samples(source, "train")
    return [samples[index][0] for index in spread(len(samples), limit)]

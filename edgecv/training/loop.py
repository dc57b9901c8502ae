"""``train``: the training loop."""

from __future__ import annotations

import contextlib
import copy
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from edgecv.errors import InputError, one_line
from edgecv.manifest import Accuracy
from edgecv.models.checkpoint import save_checkpoint
from edgecv.models.recipe import recipe_of
from edgecv.models.siamese import Siamese
from edgecv.preprocess import Preprocess
from edgecv.progress import Progress, silent
from edgecv.training.batches import Data, count_of, labels_of
from edgecv.training.config import TrainConfig
from edgecv.training.objective import objective_of
from edgecv.training.ranks import Ranks, joined
from edgecv.training.run import EpochRecord, RunFolder
from edgecv.training.tracking_objective import check_tracking
from edgecv.training.tracking_pairs import TrackingPairs
from edgecv.training.trainer import Trainer, to_layout
from edgecv.training.validation import PairScores, Scores

__all__ = ["TrainResult", "train"]


@dataclass(frozen=True, slots=True)
class TrainResult:
    """What training gave: the network of the best epoch (in eval mode, on the CPU) and how it got there.

    ``scores`` are an ``Accuracy`` of a classifier, ``EmbeddingScores`` of an embedding, ``PairScores`` of a tracker, on
    the validation data.
    """

    network: nn.Module
    scores: Scores
    best_epoch: int
    history: tuple[EpochRecord, ...]

    @property
    def accuracy(self) -> Accuracy:
        """The ``scores`` of a classifier.

        Raises:
            InputError: an embedding or a tracker was trained.
        """
        if not isinstance(self.scores, Accuracy):
            trained = "a tracker" if isinstance(self.scores, PairScores) else "an embedding"
            raise InputError(f"{trained} has no accuracy; its figures are in .scores")
        return self.scores


def train(
    network: nn.Module,
    train_data: Data,
    val_data: Data,
    config: TrainConfig | None = None,
    *,
    preprocess: Preprocess,
    out: str | Path | None = None,
    teacher: nn.Module | None = None,
    progress: Progress = silent,
) -> TrainResult:
    """Train a network and return its best epoch. ``network`` itself is left as it was.

    In processes that ``torchrun`` started, each trains on its share of every batch, and all return the same. The loss
    is that of one process with the whole batch, but for batch norm on CPUs and random augmentation; a run goes on with
    another number of processes.

    Args:
        network: float images ``[batch, 3, height, width]`` in; logits ``[batch, classes]`` out, or embeddings
            ``[batch, dims]`` for the losses of metric learning; or a tracker of ``edgecv.models.siamese``.
        train_data, val_data: see ``Data``; ``preprocess`` brings their images to the network's size. A tracker's are
            ``TrackingPairs``, and ``preprocess`` is its own.
        teacher: a trained network that takes the same normalized images and gives as many logits; ``network`` learns
            its answers too (``config.distill_weight``).
        out: a folder for the history, the best checkpoint and the state. Calling again with the same folder and the
            same settings goes on after the last finished epoch, and gives the same weights as if never interrupted.

    Raises:
        InputError: there is no data, a class index does not fit the network, training diverges, or ``out`` holds
            something else.
    """
    config = config or TrainConfig()
    sizes = count_of(train_data), count_of(val_data)
    if 0 in sizes:
        raise InputError(f"training needs images, got {sizes[0]} to train on and {sizes[1]} to validate")
    check_tracking(network, (train_data, val_data), config, preprocess)
    settings = {**_settings(network, train_data, val_data, config, preprocess), "teacher": _named(teacher)}
    device = _device(config.device)
    with joined(device) as ranks, torch.random.fork_rng(), _deterministic(config.deterministic):
        run = _open_run(out, settings, ranks)
        taught = _on(teacher, device, config) if teacher is not None else None
        objective = objective_of(config, network, taught, ranks)
        trainer = Trainer(network, (train_data, val_data), config, preprocess, objective, device, ranks)
        if run and (state := run.load(device)):
            trainer.restore(state)
        for epoch in range(len(trainer.history), config.epochs):
            if trainer.is_stuck():
                break
            improved = trainer.epoch(epoch, progress if ranks.is_first else silent)
            if run and ranks.is_first:
                _save(run, trainer, preprocess, labels_of(train_data), improved)
        ranks.wait()
    return TrainResult(trainer.best_network(), trainer.best.scores, trainer.best_epoch, tuple(trainer.history))


def _open_run(out: str | Path | None, settings: dict[str, Any], ranks: Ranks) -> RunFolder | None:
    """The run's folder, which the first process makes."""
    if out is None:
        return None
    if not ranks.is_first:
        ranks.wait()
    run = RunFolder(out, settings)
    if ranks.is_first:
        ranks.wait()
    return run


def _save(run: RunFolder, trainer: Trainer, preprocess: Preprocess, labels: tuple[str, ...], improved: bool) -> None:
    network = trainer.best_network() if improved else None
    if network is not None and recipe_of(network):
        scores = trainer.best.scores
        accuracy = scores if isinstance(scores, Accuracy) else None
        # A tracker says itself how its crops are normalized.
        known = None if isinstance(network, Siamese) else preprocess
        save_checkpoint(network, run.best, preprocess=known, labels=labels, accuracy=accuracy)
    run.save(trainer.state(), trainer.history)


@contextlib.contextmanager
def _deterministic(on: bool) -> Iterator[None]:
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(on or before)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def _on(teacher: nn.Module, device: torch.device, config: TrainConfig) -> nn.Module:
    layout = torch.channels_last if config.channels_last else torch.contiguous_format
    return to_layout(copy.deepcopy(teacher).eval().to(device), layout)


def _device(name: str) -> torch.device:
    """The device of a name; of several GPUs, each process that ``torchrun`` started takes its own."""
    if name == "auto":
        return torch.device(f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"torch cannot use device {name!r}: {one_line(error)}") from error
    return device


def _settings(
    network: nn.Module, train_data: Data, val_data: Data, config: TrainConfig, preprocess: Preprocess
) -> dict[str, Any]:
    """What makes two runs the same run."""
    pairs = [data.describe() for data in (train_data, val_data) if isinstance(data, TrackingPairs)]
    return {
        **({"pairs": pairs} if pairs else {}),
        "network": _named(network),
        "config": config,
        "preprocess": preprocess,
        "train_images": count_of(train_data),
        "val_images": count_of(val_data),
        "labels": list(labels_of(train_data)),
    }


def _named(network: nn.Module | None) -> Any:
    return network if network is None else recipe_of(network) or type(network).__name__

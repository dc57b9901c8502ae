"""One step of a chain: from a network to the next one."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from edgecv.chain.images import Images, pipeline_of
from edgecv.chain.recipe import ChainStep, TrainSettings
from edgecv.compression import ClusterConfig, PruneConfig, QuantizeConfig, cluster, prune, quantize
from edgecv.data import Samples
from edgecv.errors import InputError
from edgecv.evaluation import evaluate
from edgecv.manifest import Accuracy
from edgecv.models.checkpoint import Card
from edgecv.preprocess import Preprocess
from edgecv.progress import Progress, silent
from edgecv.runtimes.pt import TorchSession
from edgecv.training import train
from edgecv.verification import EmbeddingScores

__all__ = ["Steps", "score_network"]


class Steps:
    """What the steps of one chain have in common.

    Args:
        card: of the checkpoint that the chain began with.
        teacher: its network.
    """

    def __init__(
        self, images: Images, card: Card, preprocess: Preprocess, teacher: nn.Module, progress: Progress = silent
    ) -> None:
        self._images, self._card, self._preprocess = images, card, preprocess
        self._teacher, self._progress = teacher, progress

    def apply(self, step: ChainStep, network: nn.Module, run: Path) -> nn.Module:
        """Do one step. What trains keeps its state in the folder ``run``, and goes on from there."""
        config = step.config
        if isinstance(config, PruneConfig):
            return self._prune(network, config)
        if isinstance(config, QuantizeConfig):
            return self._quantize(network, config, run)
        if isinstance(config, ClusterConfig):
            frames = self._images.calibration or None
            return cluster(network, frames, config, preprocess=self._preprocess, progress=self._progress)
        return self._train(network, config, run)

    def _prune(self, network: nn.Module, config: PruneConfig) -> nn.Module:
        shown = self._images.labelled or self._images.calibration or None
        return prune(network, shown, config, preprocess=self._preprocess, progress=self._progress)

    def _train(self, network: nn.Module, settings: TrainSettings, run: Path) -> nn.Module:
        train_data, val_data = self._learned_from()
        teacher = self._teacher if settings.distill else None
        return train(
            network, train_data, val_data, settings.config,
            preprocess=self._preprocess, out=run, teacher=teacher, progress=self._progress,
        ).network  # fmt: skip

    def _quantize(self, network: nn.Module, config: QuantizeConfig, run: Path) -> nn.Module:
        train_data, val_data = self._learned_from() if config.method == "qat" else (None, None)
        return quantize(
            network, self._images.calibration, config, preprocess=self._preprocess, score=self._points,
            train_data=train_data, val_data=val_data, out=run, progress=self._progress,
        )  # fmt: skip

    def _learned_from(self) -> tuple[Samples, Samples]:
        if self._images.train is None or self._images.val is None:
            raise InputError("this step learns from images: give data.train")
        return self._images.train, self._images.val

    def _points(self, network: nn.Module) -> float:
        """The top-1 on the validation images in percent; of an embedding its ROC-AUC."""
        if self._images.val is None:
            raise InputError("max_drop is measured on validation images: give data.val or data.train")
        scores = score_network(network, self._card, self._preprocess, self._images.val)
        return 100 * (scores.top1 if isinstance(scores, Accuracy) else scores.roc_auc)


def score_network(
    network: nn.Module, card: Card, preprocess: Preprocess, samples: Samples, progress: Progress = silent
) -> Accuracy | EmbeddingScores:
    """Score a network in PyTorch on labelled images."""
    with TorchSession.from_network(network, preprocess) as session:
        found: Accuracy | EmbeddingScores = evaluate(pipeline_of(session, card, preprocess), samples, progress=progress)
    return found

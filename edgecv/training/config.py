"""The settings of a training run, and the learning rate they give."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from edgecv.errors import InputError
from edgecv.training.augment import preset

__all__ = ["TrainConfig", "learning_rate"]


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """How a network is trained. The defaults suit small images and short runs on a CPU.

    Args:
        epochs: passes over the training data.
        learning_rate: the peak, for ``batch_size``; it rises from 0 over ``warmup_epochs``.
        schedule: ``"cosine"`` falls to 0 on half a cosine (Loshchilov & Hutter, 2016, arXiv:1608.03983); ``"step"``
            falls to a tenth at each of ``milestones``.
        milestones: shares of the whole training.
        loss: ``"cross_entropy"`` trains a classifier; ``"tracking"`` a tracker on ``TrackingPairs``, by the loss of its
            head; the others an embedding, on batches drawn by class: ``"triplet"`` (see ``triplet_loss``) or
            ``"contrastive"`` (see ``contrastive_loss``).
        margin: by how much a metric loss wants classes apart, in distances of 0 to 2: 0.2 suits triplets, 1 pairs.
        mining: the triplets a batch is searched for: ``"hard"``, ``"semihard"`` or ``"all"`` (see ``triplet_loss``).
        per_class: images of each class in a batch of a metric loss, which has ``batch_size // per_class`` classes.
        radius: pixels of the search crop around the target's centre that a SiamFC calls the target.
        box_weight: of a tracker's loss of boxes, beside that of its scores.
        momentum: of SGD; the first beta of AdamW.
        weight_decay: of weights; biases and norms are left out.
        label_smoothing: probability spread over the wrong classes (Szegedy et al., 2015, arXiv:1512.00567); a metric
            loss has none.
        ema_decay: of the moving average of the weights that is validated and kept; shorter while training is young.
            0 turns it off.
        clip_norm: longest gradient, over all weights together; longer ones are shortened. 0 turns it off.
        augment: a preset: ``"none"``, ``"digits"``, ``"small_photos"``, ``"photos"``.
        randaugment: magnitude, 1 to 30, of two random operations on each image (see ``RandAugment``). 0 turns it off.
        mixup, cutmix: see ``mix``. 0 turns one off, as it must be for a metric loss.
        distill_weight: share of the loss that follows the ``teacher`` given to ``train``; the rest follows the labels.
        distill_temperature: softens both answers before they are compared (Hinton et al., 2015, arXiv:1503.02531).
        patience: stop after so many epochs without a better one. 0 turns it off.
        channels_last: memory layout of images and weights while training: 1.3 to 1.5 times as fast for MobileNetV2 on a
            CPU; turn it off for networks that are slower so.
        compile: ``torch.compile``: some minutes at the start for faster steps; needs a C++ compiler.
        deterministic: only operations whose result never varies; a GPU is slower so. On a CPU they are the same.
        mixed_precision: float16 arithmetic on a GPU; a CPU ignores it.
        device: ``"auto"`` takes a GPU where there is one.
        seed: of shuffling, augmentation and dropout. On one CPU thread count, a seed gives the same weights again.
        workers: processes that load data; 0 loads in the training process.
    """

    epochs: int = 30
    batch_size: int = 64
    optimizer: Literal["adamw", "sgd"] = "adamw"
    learning_rate: float = 3e-3
    momentum: float = 0.9
    weight_decay: float = 0.05
    warmup_epochs: float = 2.0
    schedule: Literal["cosine", "step"] = "cosine"
    milestones: tuple[float, ...] = (0.5, 0.75)
    loss: Literal["cross_entropy", "triplet", "contrastive", "tracking"] = "cross_entropy"
    margin: float = 0.2
    mining: Literal["hard", "semihard", "all"] = "semihard"
    per_class: int = 4
    radius: float = 16.0
    box_weight: float = 1.0
    label_smoothing: float = 0.1
    ema_decay: float = 0.99
    clip_norm: float = 0.0
    augment: str = "none"
    randaugment: int = 0
    mixup: float = 0.0
    cutmix: float = 0.0
    distill_weight: float = 0.5
    distill_temperature: float = 4.0
    patience: int = 0
    channels_last: bool = True
    compile: bool = False
    deterministic: bool = False
    mixed_precision: bool = True
    device: str = "auto"
    seed: int = 0
    workers: int = 0

    def __post_init__(self) -> None:
        _between("epochs", self.epochs, 1, 100_000)
        _between("batch_size", self.batch_size, 1, 1_000_000)
        _between("learning_rate", self.learning_rate, 0, 1e3)
        _between("momentum", self.momentum, 0, 1)
        _between("weight_decay", self.weight_decay, 0, 10)
        _between("warmup_epochs", self.warmup_epochs, 0, self.epochs)
        _between("margin", self.margin, 0, 2)
        _between("per_class", self.per_class, 2, 1_000_000)
        _between("radius", self.radius, 0, 1024)
        _between("box_weight", self.box_weight, 0, 1e6)
        _between("label_smoothing", self.label_smoothing, 0, 1)
        _between("ema_decay", self.ema_decay, 0, 1)
        _between("clip_norm", self.clip_norm, 0, 1e9)
        _between("randaugment", self.randaugment, 0, 30)
        _between("mixup", self.mixup, 0, 1e6)
        _between("cutmix", self.cutmix, 0, 1e6)
        _between("distill_weight", self.distill_weight, 0, 1)
        _between("distill_temperature", self.distill_temperature, 0.01, 1000)
        _between("patience", self.patience, 0, 100_000)
        for milestone in self.milestones:
            _between("a milestone", milestone, 0, 1)
        _between("seed", self.seed, 0, 2**32 - 1)
        _between("workers", self.workers, 0, 1024)
        if self.optimizer not in ("adamw", "sgd"):
            raise InputError(f"optimizer is 'adamw' or 'sgd', got {self.optimizer!r}")
        if self.schedule not in ("cosine", "step"):
            raise InputError(f"schedule is 'cosine' or 'step', got {self.schedule!r}")
        if self.loss not in ("cross_entropy", "triplet", "contrastive", "tracking"):
            raise InputError(f"loss is 'cross_entropy', 'triplet', 'contrastive' or 'tracking', got {self.loss!r}")
        if self.mining not in ("hard", "semihard", "all"):
            raise InputError(f"mining is 'hard', 'semihard' or 'all', got {self.mining!r}")
        if self.loss == "tracking":
            _check_tracking(self)
        elif self.loss != "cross_entropy":
            _check_metric(self)
        preset(self.augment)


def learning_rate(step: int, steps_per_epoch: int, config: TrainConfig) -> float:
    """The learning rate of optimizer step ``step``: linear warm-up, then the schedule, whose end holds on."""
    warmup = config.warmup_epochs * steps_per_epoch
    if step < warmup:
        return config.learning_rate * (step + 1) / (warmup + 1)
    total = config.epochs * steps_per_epoch
    if config.schedule == "step":
        return config.learning_rate * 0.1 ** sum(step >= milestone * total for milestone in config.milestones)
    share = min(1.0, (step - warmup) / max(1.0, total - warmup))
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * share))


def _check_metric(config: TrainConfig) -> None:
    if config.batch_size // config.per_class < 2:
        got = f"batch_size {config.batch_size} and per_class {config.per_class}"
        raise InputError(f"a metric loss needs two classes or more in a batch, got {got}")
    if config.mixup or config.cutmix:
        got = f"mixup {config.mixup} and cutmix {config.cutmix}"
        raise InputError(f"a metric loss needs images of one class each: set mixup and cutmix to 0, got {got}")


def _check_tracking(config: TrainConfig) -> None:
    if config.mixup or config.cutmix or config.randaugment or config.augment != "none":
        raise InputError("a tracker's pairs bring their own augmentation: set augment to 'none', the others to 0")


def _between(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise InputError(f"{name} is from {low} to {high}, got {value!r}")

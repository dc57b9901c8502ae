"""``train``: the training loop of classifiers."""

from __future__ import annotations

import contextlib
import copy
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel

from edgecv.errors import InputError, one_line
from edgecv.evaluation import wilson_interval
from edgecv.manifest import Accuracy
from edgecv.models.checkpoint import save_checkpoint
from edgecv.models.framed import Framed
from edgecv.models.recipe import recipe_of
from edgecv.preprocess import Preprocess
from edgecv.progress import Progress, silent
from edgecv.schema import encode
from edgecv.training.augment import preset
from edgecv.training.batches import Data, batches, labels_of
from edgecv.training.config import TrainConfig
from edgecv.training.mixing import mix
from edgecv.training.randaugment import RandAugment
from edgecv.training.run import EpochRecord, RunFolder

__all__ = ["TrainResult", "distillation_loss", "learning_rate", "train"]


@dataclass(frozen=True, slots=True)
class TrainResult:
    """What training gave: the best network by validation top-1 (in eval mode, on the CPU) and how it got there."""

    network: nn.Module
    accuracy: Accuracy
    best_epoch: int
    history: tuple[EpochRecord, ...]


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
    """Train a classifier and return its best epoch. ``network`` itself is left as it was.

    Args:
        network: float images ``[batch, 3, height, width]`` in, logits ``[batch, classes]`` out.
        train_data, val_data: see ``Data``; ``preprocess`` brings their images to the network's size.
        teacher: a trained network that takes the same normalized images and gives as many logits; ``network`` learns
            its answers too (``config.distill_weight``).
        out: a folder for the history, the best checkpoint and the state. Calling again with the same folder and the
            same settings goes on after the last finished epoch, and gives the same weights as if never interrupted.

    Raises:
        InputError: there is no data, a class index does not fit the network, training diverges, or ``out`` holds
            something else.
    """
    config = config or TrainConfig()
    if len(train_data) == 0 or len(val_data) == 0:
        raise InputError(f"training needs images, got {len(train_data)} to train on and {len(val_data)} to validate")
    settings = {**_settings(network, train_data, val_data, config, preprocess), "teacher": _named(teacher)}
    run = RunFolder(out, settings) if out is not None else None
    trainer = _Trainer(network, train_data, val_data, config, preprocess, teacher)
    state = run.load(trainer.device) if run else None
    if state:
        trainer.restore(state)
    with torch.random.fork_rng(), _deterministic(config.deterministic):
        for epoch in range(len(trainer.history), config.epochs):
            if trainer.is_stuck():
                break
            improved = trainer.epoch(epoch, progress)
            if run and improved and recipe_of(network):
                best, labels = trainer.best_network(), labels_of(train_data)
                save_checkpoint(best, run.best, preprocess=preprocess, labels=labels, accuracy=trainer.accuracy())
            if run:
                run.save(trainer.state(), trainer.history)
    best_epoch = max(range(len(trainer.history)), key=lambda i: trainer.history[i].val_top1)
    return TrainResult(trainer.best_network(), trainer.accuracy(), best_epoch, tuple(trainer.history))


def learning_rate(step: int, steps_per_epoch: int, config: TrainConfig) -> float:
    """The learning rate of optimizer step ``step``: linear warm-up, then the schedule."""
    warmup = config.warmup_epochs * steps_per_epoch
    if step < warmup:
        return config.learning_rate * (step + 1) / (warmup + 1)
    total = config.epochs * steps_per_epoch
    if config.schedule == "step":
        return config.learning_rate * 0.1 ** sum(step >= milestone * total for milestone in config.milestones)
    share = (step - warmup) / max(1.0, total - warmup)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * share))


class _Trainer:
    """The state that changes from step to step."""

    def __init__(
        self,
        network: nn.Module,
        train_data: Data,
        val_data: Data,
        config: TrainConfig,
        preprocess: Preprocess,
        teacher: nn.Module | None,
    ) -> None:
        self.config = config
        self.device = _device(config.device)
        self.history: list[EpochRecord] = []
        self._preprocess = preprocess
        self._train_data, self._val_data = train_data, val_data
        self._layout = torch.channels_last if config.channels_last else torch.contiguous_format
        self._network = _to_layout(copy.deepcopy(network).to(self.device), self._layout)
        self._forward = torch.compile(self._network) if config.compile else self._network
        self._teacher = _to_layout(copy.deepcopy(teacher).eval().to(self.device), self._layout) if teacher else None
        self._framed = Framed(self._network, preprocess).to(self.device)
        self._average = AveragedModel(self._network, avg_fn=self._blend, use_buffers=True)
        self._optimizer = _optimizer(self._network, config)
        self._amp = config.mixed_precision and self.device.type == "cuda"
        self._scaler = torch.amp.GradScaler(self.device.type, enabled=self._amp)
        self._steps = math.ceil(len(train_data) / config.batch_size)
        self._best: dict[str, Tensor] = {}
        self._best_right = -1

    def epoch(self, epoch: int, progress: Progress) -> bool:
        """Train and validate one epoch; tell whether it is the best so far."""
        start = time.perf_counter()
        seed = self.config.seed * 100_003 + epoch
        torch.manual_seed(seed)  # dropout; the caller's generator is restored afterwards
        train_loss = self._train_epoch(epoch, seed, progress)
        val_loss, right = self._validate()
        improved = right > self._best_right
        if improved:
            self._best_right = right
            self._best = {key: value.clone() for key, value in self._kept().state_dict().items()}
        rate = learning_rate((epoch + 1) * self._steps - 1, self._steps, self.config)
        top1 = right / len(self._val_data)
        self.history.append(EpochRecord(epoch, rate, train_loss, val_loss, top1, time.perf_counter() - start))
        return improved

    def is_stuck(self) -> bool:
        """Whether the last ``patience`` epochs brought nothing better."""
        if not self.config.patience or not self.history:
            return False
        best = max(range(len(self.history)), key=lambda i: self.history[i].val_top1)
        return len(self.history) - 1 - best >= self.config.patience

    def best_network(self) -> nn.Module:
        """The kept weights of the best epoch, in eval mode on the CPU."""
        network = copy.deepcopy(self._network)
        network.load_state_dict(self._best)
        return _to_layout(network.eval().cpu(), torch.contiguous_format)

    def accuracy(self) -> Accuracy:
        """Top-1 of the best epoch on the validation data."""
        count = len(self._val_data)
        top1 = self._best_right / count
        return Accuracy(top1, self._top5, count, wilson_interval(self._best_right, count))

    def state(self) -> dict[str, Any]:
        """All that the next epoch depends on, as tensors and plain values."""
        return {
            "network": self._network.state_dict(),
            "average": self._average.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "scaler": self._scaler.state_dict(),
            "best": self._best,
            "best_right": self._best_right,
            "top5": self._top5,
            "history": [encode(record) for record in self.history],
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go back to what ``state`` returned."""
        self._network.load_state_dict(state["network"])
        self._average.load_state_dict(state["average"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._scaler.load_state_dict(state["scaler"])
        self._best, self._best_right, self._top5 = state["best"], state["best_right"], state["top5"]
        self.history = [EpochRecord(**record) for record in state["history"]]

    _top5 = 0.0
    _classes = 0  # known when mixing begins

    def _train_epoch(self, epoch: int, seed: int, progress: Progress) -> float:
        self._network.train()
        total = seen = 0.0
        mixing = torch.Generator().manual_seed(seed + (2 << 40))
        loader = batches(
            self._train_data,
            self._preprocess,
            size=self.config.batch_size,
            augment=preset(self.config.augment),
            randaugment=RandAugment(magnitude=self.config.randaugment) if self.config.randaugment else None,
            seed=seed,
            shuffle=True,
            workers=self.config.workers,
        )
        for index, (images, targets) in enumerate(loader):
            if len(images) > 1 or index == 0:  # batch norm has no statistics of a single image
                images, targets = self._mixed(self._ready(images), targets, mixing)
                loss = self._step(epoch * self._steps + index, images, targets)
                total, seen = total + loss * len(images), seen + len(images)
            progress("train", epoch * self._steps + index + 1, self.config.epochs * self._steps)
        return total / seen

    def _step(self, step: int, images: Tensor, targets: Tensor) -> float:
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate(step, self._steps, self.config)
        with torch.autocast(self.device.type, enabled=self._amp):
            loss = self._loss(self._forward(images), images, targets)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise InputError(f"training diverged at step {step}: the loss is {value}; lower learning_rate")
        self._optimizer.zero_grad(set_to_none=True)
        self._scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        if self.config.clip_norm:
            self._scaler.unscale_(self._optimizer)
            nn.utils.clip_grad_norm_(self._network.parameters(), self.config.clip_norm)
        self._scaler.step(self._optimizer)
        self._scaler.update()
        if self.config.ema_decay:
            self._average.update_parameters(self._network)
        return value

    def _loss(self, logits: Tensor, images: Tensor, targets: Tensor) -> Tensor:
        if not targets.is_floating_point():
            _check_targets(logits, targets)
        loss = functional.cross_entropy(logits, targets.to(self.device), label_smoothing=self.config.label_smoothing)
        if self._teacher is None:
            return loss
        with torch.no_grad():
            wanted = self._teacher(images)
        share = self.config.distill_weight
        return (1 - share) * loss + share * distillation_loss(logits, wanted, self.config.distill_temperature)

    def _mixed(self, images: Tensor, targets: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Mixup and cutmix, where they are on: the targets become shares of classes."""
        mixup, cutmix = self.config.mixup, self.config.cutmix
        if not mixup and not cutmix:
            return images, targets
        if self._classes == 0:
            with torch.no_grad():
                self._classes = copy.deepcopy(self._network).eval()(images[:1]).shape[1]
        return mix(images, targets, classes=self._classes, mixup=mixup, cutmix=cutmix, generator=generator)

    @torch.no_grad()
    def _validate(self) -> tuple[float, int]:
        kept = self._kept().eval()
        loss, right, among5 = 0.0, 0, 0
        for images, targets in batches(self._val_data, self._preprocess, size=self.config.batch_size):
            logits = kept(self._ready(images)).float()
            _check_targets(logits, targets)
            targets = targets.to(self.device)
            loss += float(functional.cross_entropy(logits, targets, reduction="sum"))
            best5 = logits.topk(min(5, logits.shape[1]), dim=1).indices
            right += int((best5[:, 0] == targets).sum())
            among5 += int((best5 == targets[:, None]).sum())
        if right > self._best_right:
            self._top5 = among5 / len(self._val_data)
        return loss / len(self._val_data), right

    def _ready(self, images: Tensor) -> Tensor:
        """Images as the network takes them: on its device, normalized, in its memory layout."""
        images = images.to(self.device)
        ready = images if images.is_floating_point() else self._framed.normalize(images)
        return ready.contiguous(memory_format=self._layout)

    def _kept(self) -> nn.Module:
        return self._average.module if self.config.ema_decay else self._network

    def _blend(self, average: Tensor, value: Tensor, count: Tensor | int) -> Tensor:
        """Exponential moving average whose decay starts low: (1 + n) / (10 + n) until ``ema_decay`` is reached."""
        if not average.is_floating_point():
            return value
        decay = min(self.config.ema_decay, (1 + float(count)) / (10 + float(count)))
        return average.lerp(value, 1 - decay)


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


@contextlib.contextmanager
def _deterministic(on: bool) -> Iterator[None]:
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(on or before)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def _optimizer(network: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    decayed = [p for p in network.parameters() if p.ndim > 1]
    plain = [p for p in network.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=config.learning_rate, momentum=config.momentum, nesterov=config.momentum > 0)
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(config.momentum, 0.999))


def _to_layout(network: nn.Module, layout: torch.memory_format) -> nn.Module:
    moved: nn.Module = network.to(memory_format=layout)  # type: ignore[call-overload]
    return moved


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"torch cannot use device {name!r}: {one_line(error)}") from error
    return device


def _check_targets(logits: Tensor, targets: Tensor) -> None:
    if logits.ndim != 2:
        raise InputError(f"a classifier gives logits [batch, classes], this network gives {list(logits.shape)}")
    if int(targets.min()) < 0 or int(targets.max()) >= logits.shape[1]:
        raise InputError(f"class index {int(targets.max())} in the data, but the network has {logits.shape[1]} classes")


def _settings(
    network: nn.Module, train_data: Data, val_data: Data, config: TrainConfig, preprocess: Preprocess
) -> dict[str, Any]:
    """What makes two runs the same run."""
    return {
        "network": _named(network),
        "config": config,
        "preprocess": preprocess,
        "train_images": len(train_data),
        "val_images": len(val_data),
        "labels": list(labels_of(train_data)),
    }


def _named(network: nn.Module | None) -> Any:
    return network if network is None else recipe_of(network) or type(network).__name__

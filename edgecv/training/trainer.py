"""The state of a training run that changes from step to step."""

from __future__ import annotations

import copy
import functools
import itertools
import math
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import IterableDataset

from edgecv.errors import InputError
from edgecv.manifest import Accuracy
from edgecv.models.framed import Framed
from edgecv.preprocess import Preprocess
from edgecv.progress import Progress
from edgecv.schema import encode
from edgecv.training.augment import preset
from edgecv.training.batches import Data, batches, count_of, pair_batches, targets_of
from edgecv.training.config import TrainConfig, learning_rate
from edgecv.training.metric import ClassBatches
from edgecv.training.mixing import mix
from edgecv.training.randaugment import RandAugment
from edgecv.training.ranks import Ranks
from edgecv.training.run import EpochRecord
from edgecv.training.tracking_pairs import TrackingPairs
from edgecv.training.validation import Images, Objective, Validation, decode_scores

__all__ = ["Trainer", "to_layout"]

UNSCORED = Validation(math.inf, -1.0, Accuracy(0.0, 0.0, 0, (0.0, 1.0)))


class Trainer:
    """A copy of ``network`` in training: one call of ``epoch`` after another, each from a state that can be kept."""

    def __init__(
        self,
        network: nn.Module,
        data: tuple[Data, Data],
        config: TrainConfig,
        preprocess: Preprocess,
        objective: Objective,
        device: torch.device,
        ranks: Ranks,
    ) -> None:
        self.history: list[EpochRecord] = []
        self.best = UNSCORED
        self._config, self._preprocess, self._device, self._ranks = config, preprocess, device, ranks
        self._objective = objective
        self._train_data, self._val_data = data
        self._given = network
        self._layout = torch.channels_last if config.channels_last else torch.contiguous_format
        self._network = to_layout(copy.deepcopy(network).to(device), self._layout)
        forward = ranks.parallel(self._network, device)
        self._forward = torch.compile(forward) if config.compile else forward
        self._framed = Framed(self._network, preprocess).to(device)
        self._average = AveragedModel(self._network, avg_fn=self._blend, use_buffers=True)
        self._optimizer = _optimizer(self._network, config)
        self._amp = config.mixed_precision and device.type == "cuda"
        self._scaler = torch.amp.GradScaler(device.type, enabled=self._amp)
        self._sampler = _sampler(self._train_data, config)
        self._joint = self._sampler.classes * self._sampler.per_class if self._sampler else config.batch_size
        self._steps = self._count_steps()
        self._best_weights: dict[str, Tensor] = {}
        self._classes = 0  # known when mixing begins

    def epoch(self, epoch: int, progress: Progress) -> bool:
        """Train and validate one epoch; tell whether it is the best so far."""
        start = time.perf_counter()
        seed = self._config.seed * 100_003 + epoch
        torch.manual_seed(seed + (self._ranks.rank << 32))  # dropout; the caller's generator is restored afterwards
        train_loss = self._train_epoch(epoch, seed, progress)
        kept = self._kept().eval()
        self._ranks.same(kept)
        with torch.no_grad():
            found = self._objective.validate(kept, self._validation())
        improved = found.score > self.best.score
        if improved:
            self.best = found
            self._best_weights = {key: value.clone() for key, value in kept.state_dict().items()}
        rate = learning_rate((epoch + 1) * self._steps - 1, self._steps, self._config)
        seconds = time.perf_counter() - start
        self.history.append(EpochRecord(epoch, rate, train_loss, found.loss, found.score, seconds))
        return improved

    @property
    def best_epoch(self) -> int:
        """The first epoch with the highest score."""
        return max(range(len(self.history)), key=lambda i: self.history[i].val_score)

    def is_stuck(self) -> bool:
        """Whether the last ``patience`` epochs brought nothing better."""
        if not self._config.patience or not self.history:
            return False
        return len(self.history) - 1 - self.best_epoch >= self._config.patience

    def best_network(self) -> nn.Module:
        """The kept weights of the best epoch, in eval mode on the CPU."""
        network = copy.deepcopy(self._given).cpu()
        network.load_state_dict(self._best_weights)
        return network.eval()

    def state(self) -> dict[str, Any]:
        """All that the next epoch depends on, as tensors and plain values."""
        return {
            "network": self._network.state_dict(),
            "average": self._average.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "scaler": self._scaler.state_dict(),
            "best": encode(self.best),
            "best_weights": self._best_weights,
            "history": [encode(record) for record in self.history],
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go back to what ``state`` returned."""
        self._network.load_state_dict(state["network"])
        self._average.load_state_dict(state["average"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._scaler.load_state_dict(state["scaler"])
        best = state["best"]
        self.best = Validation(best["loss"], best["score"], decode_scores(best["scores"]))
        self._best_weights = state["best_weights"]
        self.history = [EpochRecord(**record) for record in state["history"]]

    def _count_steps(self) -> int:
        """Optimizer steps of one epoch."""
        share, total = self._ranks.share(self._joint), count_of(self._train_data)
        if self._ranks.count > 1 and min(total, count_of(self._val_data)) < 2 * self._ranks.count:
            raise InputError(f"{self._ranks.count} processes need two images each, to train on and to validate")
        if self._sampler:
            return len(self._sampler)
        full, rest = divmod(total, share * self._ranks.count)
        return full + int(full == 0 or (rest >= 2 * self._ranks.count and not self._shares_stream()))

    def _shares_stream(self) -> bool:
        return self._ranks.count > 1 and isinstance(self._train_data, IterableDataset)

    def _train_epoch(self, epoch: int, seed: int, progress: Progress) -> float:
        self._network.train()
        total = seen = 0.0
        mixing = torch.Generator().manual_seed(seed + (2 << 40) + (self._ranks.rank << 42))
        for index, (images, targets) in enumerate(self._training(epoch, seed)):
            step = epoch * self._steps + index
            images, targets = self._mixed(self._ready(images), targets, mixing)
            loss = self._step(
                step, images, targets, len(targets) / self._mean_share(index) if self._ranks.count > 1 else 1.0
            )
            total, seen = total + loss * len(targets), seen + len(targets)
            progress("train", min(step, (epoch + 1) * self._steps - 1) + 1, self._config.epochs * self._steps)
        total, seen = self._ranks.total(total, seen)
        return total / seen

    def _training(self, epoch: int, seed: int) -> Iterator[tuple[Images, Tensor]]:
        """This process's shares of an epoch's batches; of a stream that is shared, as many as every other's."""
        least = 2 * self._ranks.count  # batch norm has no statistics of a single image
        if isinstance(self._train_data, TrackingPairs):
            workers, ranks = self._config.workers, self._ranks
            yield from pair_batches(
                self._train_data, size=self._joint, epoch=epoch, workers=workers, ranks=ranks, least=least
            )
            return
        loader = functools.partial(
            batches,
            self._train_data,
            self._preprocess,
            size=self._joint,
            augment=preset(self._config.augment),
            randaugment=RandAugment(magnitude=self._config.randaugment) if self._config.randaugment else None,
            seed=seed,
            epoch=epoch,
            shuffle=True,
            sampler=self._sampler,
            workers=self._config.workers,
            ranks=self._ranks,
            least=least,
        )
        if not self._shares_stream():
            yield from loader()
            return
        whole = (batch for _ in itertools.count() for batch in loader() if len(batch[0]) == self._mean_share(0))
        yield from itertools.islice(whole, self._steps)

    def _mean_share(self, index: int) -> float:
        """The images of joint batch ``index`` over the number of processes."""
        if self._sampler or self._shares_stream():
            return self._joint / self._ranks.count
        return min(self._joint, count_of(self._train_data) - index * self._joint) / self._ranks.count

    def _step(self, step: int, images: Images, targets: Tensor, weight: float) -> float:
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate(step, self._steps, self._config)
        with torch.autocast(self._device.type, enabled=self._amp):
            outputs = self._forward(*images) if isinstance(images, tuple) else self._forward(images)
            loss = self._objective.loss(outputs, images, targets)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise InputError(f"training diverged at step {step}: the loss is {value}; lower learning_rate")
        self._optimizer.zero_grad(set_to_none=True)
        self._scaler.scale(loss * weight).backward()  # type: ignore[no-untyped-call]
        if self._config.clip_norm:
            self._scaler.unscale_(self._optimizer)
            nn.utils.clip_grad_norm_(self._network.parameters(), self._config.clip_norm)
        self._scaler.step(self._optimizer)
        self._scaler.update()
        if self._config.ema_decay:
            self._average.update_parameters(self._network)
        return value

    def _mixed(self, images: Images, targets: Tensor, generator: torch.Generator) -> tuple[Images, Tensor]:
        """Mixup and cutmix, where they are on: the targets become shares of classes."""
        mixup, cutmix = self._config.mixup, self._config.cutmix
        if isinstance(images, tuple) or not (mixup or cutmix):
            return images, targets
        if self._classes == 0:
            with torch.no_grad():
                self._classes = copy.deepcopy(self._network).eval()(images[:1]).shape[1]
        return mix(images, targets, classes=self._classes, mixup=mixup, cutmix=cutmix, generator=generator)

    def _validation(self) -> Iterator[tuple[Images, Tensor]]:
        if isinstance(self._val_data, TrackingPairs):
            for crops, targets in pair_batches(self._val_data, size=self._joint, ranks=self._ranks):
                yield self._ready(crops), targets
            return
        for images, targets in batches(self._val_data, self._preprocess, size=self._joint, ranks=self._ranks):
            yield self._ready(images), targets

    def _ready(self, images: Images) -> Images:
        """Images as the network takes them: on its device, normalized, in its memory layout."""
        return tuple(map(self._placed, images)) if isinstance(images, tuple) else self._placed(images)

    def _placed(self, images: Tensor) -> Tensor:
        images = images.to(self._device)
        ready = images if images.is_floating_point() else self._framed.normalize(images)
        return ready.contiguous(memory_format=self._layout)

    def _kept(self) -> nn.Module:
        return self._average.module if self._config.ema_decay else self._network

    def _blend(self, average: Tensor, value: Tensor, count: Tensor | int) -> Tensor:
        """Exponential moving average whose decay starts low: (1 + n) / (10 + n) until ``ema_decay`` is reached."""
        if not average.is_floating_point():
            return value
        decay = min(self._config.ema_decay, (1 + float(count)) / (10 + float(count)))
        return average.lerp(value, 1 - decay)


def to_layout(network: nn.Module, layout: torch.memory_format) -> nn.Module:
    """Bring weights to a memory layout, in place."""
    moved: nn.Module = network.to(memory_format=layout)  # type: ignore[call-overload]
    return moved


def _sampler(data: Data, config: TrainConfig) -> ClassBatches | None:
    if config.loss in ("cross_entropy", "tracking"):
        return None
    if isinstance(data, IterableDataset):
        raise InputError(f"the loss {config.loss!r} draws batches by class, which a stream cannot give")
    classes = config.batch_size // config.per_class
    return ClassBatches(targets_of(data), classes=classes, per_class=config.per_class, seed=config.seed)


def _optimizer(network: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    decayed = [p for p in network.parameters() if p.ndim > 1]
    plain = [p for p in network.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=config.learning_rate, momentum=config.momentum, nesterov=config.momentum > 0)
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(config.momentum, 0.999))

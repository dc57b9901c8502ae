"""From labelled images to batches: any of ours, or any PyTorch ``Dataset``, indexable or a stream."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    Sampler,
    SequentialSampler,
    get_worker_info,
)

from edgecv.errors import InputError, one_line
from edgecv.preprocess import Preprocess, check_frame
from edgecv.training.augment import Augment
from edgecv.training.metric import ClassBatches
from edgecv.training.randaugment import RandAugment
from edgecv.training.ranks import Ranks
from edgecv.training.tracking_pairs import TrackingPairs

__all__ = ["Data", "batches", "count_of", "labels_of", "pair_batches", "targets_of"]


class Data(Protocol):
    """What ``train`` takes: indexable, of known length; each item is an image and the index of its class.

    An image is a uint8 RGB array or tensor ``[height, width, 3]``, a PIL image, or a float tensor
    ``[3, height, width]`` that the data set has brought to size and normalized itself.

    A stream does as well: PyTorch's ``IterableDataset`` with a length, such as ``TarShards``. It is never indexed and
    shuffles itself; its ``set_epoch``, where it has one, is called before each epoch. Its batches may depend on the
    number of workers.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> tuple[Any, Any]: ...


@dataclass(frozen=True, slots=True)
class _Preparation:
    """Brings an item to a tensor; its random crop depends on ``seed`` and its place alone."""

    preprocess: Preprocess
    augment: Augment
    seed: int

    def __call__(self, item: tuple[Any, Any], *place: int) -> tuple[Tensor, int]:
        image, target = item
        if isinstance(image, Tensor) and image.is_floating_point():
            return image, int(target)
        frame = _as_frame(image)
        if self.augment.crop is not None:
            frame = self.augment.crop_frame(frame, np.random.default_rng((self.seed, *place)))
            frame = _stretched(self.preprocess)(frame)
        else:
            frame = self.preprocess(frame)
        return torch.from_numpy(frame), int(target)


class _Prepared(Dataset[tuple[Tensor, int]]):
    """Prepared items, by index."""

    def __init__(self, data: Data, prepare: _Preparation) -> None:
        self._data = data
        self._prepare = prepare

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self._prepare(self._data[index], index)


class _Streamed(IterableDataset[tuple[Tensor, int]]):
    """Prepared items, as they come. Without a length: with workers, a loader would hold it to a wrong one."""

    def __init__(self, data: IterableDataset[tuple[Any, Any]], prepare: _Preparation) -> None:
        self._data = data
        self._prepare = prepare

    def __iter__(self) -> Iterator[tuple[Tensor, int]]:
        info = get_worker_info()
        worker = info.id if info else 0
        return (self._prepare(item, worker, place) for place, item in enumerate(self._data))


class _Shares(Sampler[list[int]]):
    """A process's share of each joint batch: every ``count``-th index. A later batch of fewer than ``least`` goes."""

    def __init__(self, joint: Iterable[list[int]], ranks: Ranks, least: int) -> None:
        self._joint, self._ranks, self._least = joint, ranks, least

    def __iter__(self) -> Iterator[list[int]]:
        for place, batch in enumerate(self._joint):
            share = batch[self._ranks.rank :: self._ranks.count]
            if share and (len(batch) >= self._least or place == 0):
                yield share


def batches(
    data: Data,
    preprocess: Preprocess,
    *,
    size: int,
    augment: Augment | None = None,
    randaugment: RandAugment | None = None,
    seed: int = 0,
    epoch: int = 0,
    shuffle: bool = False,
    sampler: ClassBatches | None = None,
    workers: int = 0,
    ranks: Ranks | None = None,
    least: int = 1,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield ``(images, targets)``: uint8 ``[batch, height, width, 3]``, or float ``[batch, 3, height, width]``.

    The same ``seed`` and ``epoch`` give the same batches, whatever ``workers`` is, except from a stream.

    Args:
        epoch: what ``set_epoch`` of a stream and of ``sampler`` is called with; nothing else depends on it.
        shuffle: does not apply to a stream.
        sampler: draws the batches by class, in place of ``size`` and ``shuffle``; not from a stream.
        ranks: the processes that share each batch of ``size``; the joint batches are those of one process.
        least: a joint batch of fewer is left out, unless it is the first; not of a stream.
    """
    ranks = ranks or Ranks()
    # Two generators: workers fetch ahead, so the order in which one would be drawn from depends on their number.
    order, changes = (torch.Generator().manual_seed(seed + part) for part in (0, (1 << 40) + (ranks.rank << 41)))
    augment = augment or Augment()
    prepare = _Preparation(preprocess, augment, seed)
    drawn: tuple[Any, ...] = (data, sampler)
    for source in drawn:
        if hasattr(source, "set_epoch"):
            source.set_epoch(epoch)
    loader: DataLoader[tuple[Tensor, int]]
    if isinstance(data, IterableDataset):
        loader = DataLoader(_Streamed(data, prepare), size // ranks.count, generator=order, num_workers=workers)
    else:
        prepared = _Prepared(data, prepare)
        each = RandomSampler(prepared, generator=order) if shuffle else SequentialSampler(prepared)
        shares = _Shares(sampler or BatchSampler(each, size, drop_last=False), ranks, least)
        loader = DataLoader(prepared, batch_sampler=shares, generator=order, num_workers=workers)
    for images, targets in loader:
        if not images.is_floating_point():
            images = augment.apply(images, changes)
            images = randaugment.apply(images, changes) if randaugment else images
        yield images, targets


def pair_batches(
    pairs: TrackingPairs, *, size: int, epoch: int = 0, workers: int = 0, ranks: Ranks | None = None, least: int = 1
) -> Iterator[tuple[tuple[Tensor, ...], Tensor]]:
    """Yield ``(exemplars, searches), targets`` of an epoch in order: uint8 crops ``[batch, side, side, 3]`` of each.

    Pairs are drawn at random already, so nothing is shuffled; the same epoch gives the same batches, whatever
    ``workers`` is. ``ranks`` and ``least`` are as for ``batches``.
    """
    pairs.set_epoch(epoch)
    order = torch.Generator().manual_seed(pairs.seed)
    shares = _Shares(BatchSampler(range(len(pairs)), size, drop_last=False), ranks or Ranks(), least)
    loader: DataLoader[Any] = DataLoader(pairs, batch_sampler=shares, generator=order, num_workers=workers)  # type: ignore[arg-type]  # indexable
    for crops, targets in loader:
        yield tuple(crops), targets


def count_of(data: Data) -> int:
    """The number of images.

    Raises:
        InputError: it is a stream that does not tell its length.
    """
    try:
        return len(data)
    except TypeError as error:
        raise InputError(f"training needs to know how many images there are: {one_line(error)}") from error


def labels_of(data: Data) -> tuple[str, ...]:
    """The class names a data set carries (``labels``, or torchvision's ``classes``); empty where it has none."""
    names = getattr(data, "labels", None) or getattr(data, "classes", None) or ()
    return tuple(str(name) for name in names)


def targets_of(data: Data) -> tuple[int, ...]:
    """The class of each item: the ``targets`` a data set carries; where it has none, each item is read once.

    Raises:
        InputError: a target is no whole number, or they are not as many as the items.
    """
    known = getattr(data, "targets", None)
    found = [data[i][1] for i in range(len(data))] if known is None else list(known)
    if len(found) != len(data):
        raise InputError(f"{len(data)} images and {len(found)} targets: there must be as many of each")
    try:
        return tuple(int(target) for target in found)
    except (TypeError, ValueError) as error:
        raise InputError(f"targets are indices of classes: {one_line(error)}") from error


def _as_frame(image: Any) -> np.ndarray[Any, np.dtype[np.uint8]]:
    if isinstance(image, Tensor):
        image = image.numpy()
    elif hasattr(image, "convert"):  # a PIL image
        image = np.asarray(image.convert("RGB"))
    check_frame(image)
    if not isinstance(image, np.ndarray):
        raise InputError(f"an image is an array, got {type(image).__name__}")
    return image


def _stretched(preprocess: Preprocess) -> Preprocess:
    """The same size without keeping proportions: what a random crop is brought to."""
    return Preprocess(size=preprocess.size)

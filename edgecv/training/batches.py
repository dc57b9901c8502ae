"""From labelled images to batches: any of ours, or any map-style PyTorch ``Dataset``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from edgecv.errors import InputError
from edgecv.preprocess import Preprocess, check_frame
from edgecv.training.augment import Augment
from edgecv.training.randaugment import RandAugment

__all__ = ["Data", "batches", "labels_of"]


class Data(Protocol):
    """What ``train`` takes: indexable, of known length; each item is an image and the index of its class.

    An image is a uint8 RGB array or tensor ``[height, width, 3]``, a PIL image, or a float tensor
    ``[3, height, width]`` that the data set has brought to size and normalized itself.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> tuple[Any, Any]: ...


class _Prepared(Dataset[tuple[Tensor, int]]):
    """Items brought to tensors of one size; the random crop of an item depends on ``seed`` and its index alone."""

    def __init__(self, data: Data, preprocess: Preprocess, augment: Augment, seed: int) -> None:
        self._data = data
        self._preprocess = preprocess
        self._augment = augment
        self._seed = seed

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image, target = self._data[index]
        if isinstance(image, Tensor) and image.is_floating_point():
            return image, int(target)
        frame = _as_frame(image)
        if self._augment.crop is not None:
            frame = self._augment.crop_frame(frame, np.random.default_rng((self._seed, index)))
            frame = _stretched(self._preprocess)(frame)
        else:
            frame = self._preprocess(frame)
        return torch.from_numpy(frame), int(target)


def batches(
    data: Data,
    preprocess: Preprocess,
    *,
    size: int,
    augment: Augment | None = None,
    randaugment: RandAugment | None = None,
    seed: int = 0,
    shuffle: bool = False,
    workers: int = 0,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield ``(images, targets)``: uint8 ``[batch, height, width, 3]``, or float ``[batch, 3, height, width]``.

    The same ``seed`` gives the same batches, whatever ``workers`` is.
    """
    augment = augment or Augment()
    # Two generators: workers fetch ahead, so the order in which one would be drawn from depends on their number.
    order, changes = (torch.Generator().manual_seed(seed + part) for part in (0, 1 << 40))
    prepared = _Prepared(data, preprocess, augment, seed)
    loader = DataLoader(prepared, size, shuffle=shuffle, generator=order, num_workers=workers)
    for images, targets in loader:
        if not images.is_floating_point():
            images = augment.apply(images, changes)
            images = randaugment.apply(images, changes) if randaugment else images
        yield images, targets


def labels_of(data: Data) -> tuple[str, ...]:
    """The class names a data set carries (``labels``, or torchvision's ``classes``); empty where it has none."""
    names = getattr(data, "labels", None) or getattr(data, "classes", None) or ()
    return tuple(str(name) for name in names)


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

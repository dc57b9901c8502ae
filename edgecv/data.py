"""Labelled and unlabelled images: arrays, folders, and the digits that ship with scikit-learn. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from edgecv.errors import BackendUnavailable, InputError
from edgecv.images import SUFFIXES, find_images, read_image
from edgecv.plugins import Table

__all__ = [
    "DATASETS",
    "ArraySamples",
    "ImageFolder",
    "Samples",
    "digits",
    "hold_out",
    "open_frames",
    "open_samples",
]

Frame = NDArray[np.uint8]


class Samples(Protocol):
    """Labelled images: ``samples[i]`` is a uint8 RGB frame of any size and the index of its label in ``labels``."""

    @property
    def labels(self) -> tuple[str, ...]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[Frame, int]: ...


class ArraySamples:
    """Samples held in memory: uint8 RGB frames ``[height, width, 3]``, and for each the index of its label."""

    def __init__(self, frames: Sequence[Frame] | Frame, targets: Sequence[int], labels: Sequence[str]) -> None:
        if len(frames) != len(targets):
            raise InputError(f"{len(frames)} frames and {len(targets)} targets: there must be as many of each")
        wrong = [target for target in targets if not 0 <= int(target) < len(labels)]
        if wrong:
            raise InputError(f"target {wrong[0]} is not an index into the {len(labels)} labels")
        self.labels = tuple(labels)
        self._frames = frames
        self.targets = tuple(int(target) for target in targets)

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Frame, int]:
        return self._frames[index], self.targets[index]


class ImageFolder:
    """A folder with one sub-folder of images per class; the sorted sub-folder names are the labels.

    Where ``labels`` is given (those of a trained network), each sub-folder must be one of them and indices follow its
    order, so a folder that lacks some classes still scores right.

    Raises:
        InputError: the folder is missing, has no sub-folders, a class has no image, or a name is not in ``labels``.
    """

    def __init__(self, path: str | Path, labels: Sequence[str] | None = None) -> None:
        root = Path(path)
        if not root.is_dir():
            raise InputError(f"image folder {root} does not exist")
        classes = sorted(p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
        if not classes:
            raise InputError(f"{root} has no sub-folders; one per class was expected, such as {root / 'cat'}/1.jpg")
        self.labels = tuple(labels or classes)
        index = {label: i for i, label in enumerate(self.labels)}
        self._items: list[tuple[Path, int]] = []
        for name in classes:
            if name not in index:
                raise InputError(f"{root / name} is none of the {len(self.labels)} labels, such as {self.labels[0]!r}")
            files = find_images(root / name)
            if not files:
                raise InputError(f"class folder {root / name} holds no image ({', '.join(SUFFIXES)})")
            self._items += [(file, index[name]) for file in files]
        self.targets = tuple(target for _, target in self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> tuple[Frame, int]:
        path, target = self._items[index]
        return read_image(path), target


class _Files(Sequence[Frame]):
    """Frames read from files when they are asked for."""

    def __init__(self, files: Sequence[Path]) -> None:
        self._files = files

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> Frame:  # type: ignore[override]  # no slices
        return read_image(self._files[index])


class _Frames(Sequence[Frame]):
    """The frames of labelled samples, ``limit`` of them spread evenly over the whole."""

    def __init__(self, samples: Samples, limit: int | None = None) -> None:
        self._samples = samples
        self._indices = spread(len(samples), limit)

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Frame:  # type: ignore[override]  # no slices
        return self._samples[self._indices[index]][0]

    def __iter__(self) -> Iterator[Frame]:
        return (self._samples[i][0] for i in self._indices)


class _Part:
    """Some of another's samples."""

    def __init__(self, samples: Samples, indices: Sequence[int]) -> None:
        self.labels = samples.labels
        self._samples = samples
        self._indices = indices

    @property
    def targets(self) -> tuple[int, ...]:
        """The class of each sample; images are read only where the whole has no ``targets``."""
        known = getattr(self._samples, "targets", None)
        return tuple(self._samples[i][1] if known is None else int(known[i]) for i in self._indices)

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> tuple[Frame, int]:
        return self._samples[self._indices[index]]


def hold_out(samples: Samples, every: int) -> tuple[Samples, Samples]:
    """Split samples in two: all but every ``every``-th, and these."""
    if every < 2 or len(samples) < every:
        raise InputError(f"{len(samples)} images are too few to hold out one in {every}; give validation data")
    held = range(every - 1, len(samples), every)
    kept = [i for i in range(len(samples)) if i % every != every - 1]
    return _Part(samples, kept), _Part(samples, held)


def digits(split: Literal["train", "test"]) -> ArraySamples:
    """The 1797 handwritten digits of 8x8 pixels that ship with scikit-learn, as RGB frames; nothing is downloaded.

    Every fifth is a test image: 1437 to train on, 360 to test. (UCI "Optical Recognition of Handwritten Digits".)
    """
    if split not in ("train", "test"):
        raise InputError(f"the digits have the splits 'train' and 'test', got {split!r}")
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError as error:
        raise BackendUnavailable("the digits come with scikit-learn: pip install 'edgecv[train]'") from error
    images, targets = load_digits(return_X_y=True)
    grey = np.rint(images.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    chosen = (np.arange(len(grey)) % 5 == 0) == (split == "test")
    frames = np.repeat(grey[chosen][..., None], 3, axis=-1)
    return ArraySamples(frames, targets[chosen].tolist(), tuple("0123456789"))


def digits_named(part: str, split: Literal["train", "test"]) -> ArraySamples:
    """``"digits"`` with what stands behind its colon, which overrules ``split``."""
    return digits(part or split)  # type: ignore[arg-type]  # digits itself refuses what is not a split


# Each is called with what stands behind the colon and the split.
DATASETS = Table(
    kind="data set",
    group="edgecv.datasets",
    builtin={
        "digits": "edgecv.data:digits_named",
        "cifar10": "edgecv.datasets:cifar10",
        "fashion_mnist": "edgecv.datasets:fashion_mnist",
        "mnist": "edgecv.datasets:idx",
    },
)


def open_samples(source: str | Path, split: Literal["train", "test"] = "test", labels: Sequence[str] = ()) -> Samples:
    """Open labelled images by name.

    ``"digits"``, ``"digits:train"`` or ``"digits:test"``; ``"cifar10:PATH"``, ``"mnist:PATH"`` or
    ``"fashion_mnist:PATH"`` for files the user has; or an image folder's path, with a sub-folder per class.
    ``labels`` is a network's: an image folder's classes are then numbered as the network has them.
    """
    name, _, rest = str(source).partition(":")
    if name in DATASETS.names() and not Path(str(source)).exists():
        found: Samples = DATASETS.load(name)(rest, split)
        return found
    return ImageFolder(source, labels or None)


def open_frames(source: str | Path, limit: int | None = None) -> Sequence[Frame]:
    """Open unlabelled images: what ``open_samples`` takes, a flat folder of images, or one image file.

    ``limit`` keeps that many, spread evenly over the whole.
    """
    path = Path(source)
    if path.is_file():
        return _Files([path])
    if path.is_dir():
        files = find_images(path)
        nested = sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
        files = files or nested
        if not files:
            raise InputError(f"{path} holds no image ({', '.join(SUFFIXES)})")
        return _Files([files[i] for i in spread(len(files), limit)])
    if str(source).partition(":")[0] not in DATASETS.names():
        raise InputError(f"{source} does not exist; an image, a folder of images or 'digits' was expected")
    return _Frames(open_samples(source), limit)


def spread(count: int, limit: int | None) -> list[int]:
    """``limit`` indices spread evenly over ``count`` (all of them where there are fewer)."""
    if limit is None or count <= limit:
        return list(range(count))
    return [int(i * count / limit) for i in range(limit)]

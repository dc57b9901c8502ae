"""Readers of published classification data sets (CIFAR-10, MNIST, Fashion-MNIST) from files the user already has."""

from __future__ import annotations

import gzip
import math
import pickle  # noqa: TID251  (a restricted unpickler: see _Plain)
import struct
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray

from edgecv.data import ArraySamples, Samples
from edgecv.errors import InputError, one_line
from edgecv.images import decode_image

__all__ = ["FASHION_MNIST", "cifar10", "fashion_mnist", "idx"]

# fmt: off
FASHION_MNIST = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)
# fmt: on

_CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_BATCHES = {"train": tuple(f"data_batch_{i}" for i in range(1, 6)), "test": ("test_batch",)}
_NUMPY = {("numpy", "ndarray"), ("numpy", "dtype")}
_NUMPY |= {(f"numpy.{core}.multiarray", "_reconstruct") for core in ("core", "_core")}
# What reading a file that is missing, cut short or of another format raises, here, in pickle, numpy, zipfile or gzip.
_BROKEN: tuple[type[Exception], ...] = (OSError, EOFError, MemoryError, RuntimeError, SyntaxError, ValueError)
_BROKEN += (AttributeError, ImportError, LookupError, OverflowError, TypeError, pickle.UnpicklingError)
_BROKEN += (zipfile.BadZipFile, zlib.error)

Frame = NDArray[np.uint8]
Split = Literal["train", "test"]


def cifar10(path: str | Path, split: Split = "test") -> Samples:
    """CIFAR-10: uint8 RGB frames ``[32, 32, 3]`` of ten classes; 50000 to train on, 10000 to test.

    ``path`` is the folder of the "python version" (``data_batch_1`` to ``data_batch_5`` and ``test_batch``) or the one
    above it, held in memory; or an ``.npz`` of JPEG bytes, decoded when asked for: ``jpeg`` uint8 ``[bytes]``,
    ``offsets`` ``[n + 1]`` into it, ``labels`` ``[n]``. Such a file is one split, and is read whichever is asked for.
    The batches are pickles; nothing in them is run.

    Raises:
        InputError: a file is missing, broken, or not of this format.
        BackendUnavailable: a JPEG frame is asked for and OpenCV is not installed.

    Source: Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009; the layout of the batches is
    given at https://www.cs.toronto.edu/~kriz/cifar.html.
    """
    _check_split(split)
    root = Path(path)
    if root.is_file():
        return _open_npz(root)
    nested = root / "cifar-10-batches-py"
    folder = nested if nested.is_dir() else root
    if not folder.is_dir():
        raise InputError(f"{root} does not exist; the folder of CIFAR-10's python version or an .npz was expected")
    _check_names(folder / "batches.meta")
    batches = [_read_batch(folder / name) for name in _BATCHES[split]]
    planes = np.concatenate([rows for rows, _ in batches]).reshape(-1, 3, 32, 32)
    targets = [target for _, targets in batches for target in targets]
    return ArraySamples(np.ascontiguousarray(planes.transpose(0, 2, 3, 1)), targets, _CIFAR10)


def idx(path: str | Path, split: Split = "test", labels: Sequence[str] | None = None) -> ArraySamples:
    """MNIST, or what has its format: grey images as uint8 RGB frames ``[h, w, 3]`` of three equal channels.

    ``path`` is the folder of ``train-images-idx3-ubyte``, ``train-labels-idx1-ubyte``, ``t10k-images-idx3-ubyte`` and
    ``t10k-labels-idx1-ubyte``, each as it is or with ``.gz``. ``labels`` are the names of the classes, ``"0"`` to
    ``"9"`` unless given; Fashion-MNIST's are ``FASHION_MNIST``.

    Raises:
        InputError: a file is missing, cut short, or not of this format; a label is out of range; the counts differ.

    Source: LeCun, Cortes and Burges, "The MNIST database of handwritten digits", http://yann.lecun.com/exdb/mnist (the
    IDX format); Xiao, Rasul and Vollgraf, "Fashion-MNIST", arXiv 1708.07747, 2017.
    """
    _check_split(split)
    prefix = Path(path) / ("train" if split == "train" else "t10k")
    images, answers = _find(f"{prefix}-images-idx3-ubyte"), _find(f"{prefix}-labels-idx1-ubyte")
    grey, targets = _read_idx(images, 3), _read_idx(answers, 1).tolist()
    names = tuple("0123456789") if labels is None else tuple(labels)
    if len(grey) != len(targets):
        raise InputError(f"{images} holds {len(grey)} images and {answers} {len(targets)} labels: they must be as many")
    _check_targets(answers, targets, len(names))
    return ArraySamples(np.repeat(grey[..., None], 3, axis=-1), targets, names)


def fashion_mnist(path: str | Path, split: Split = "test") -> ArraySamples:
    """Fashion-MNIST: ``idx`` with its ten class names (Xiao, Rasul & Vollgraf, 2017, arXiv:1708.07747)."""
    return idx(path, split, FASHION_MNIST)


class _Jpegs:
    """Samples held as JPEG bytes, decoded when they are asked for."""

    labels = _CIFAR10

    def __init__(self, path: Path, jpeg: Frame, offsets: list[int], targets: list[int]) -> None:
        self._path = path
        self._jpeg = jpeg
        self._offsets = offsets
        self.targets = tuple(targets)

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Frame, int]:
        place = range(len(self))[index]
        data = self._jpeg[self._offsets[place] : self._offsets[place + 1]].tobytes()
        return _decode(f"image {place} of {self._path}", data), self.targets[place]


class _Inert:
    """Stands in for whatever a batch may name: it keeps what it is given and does nothing."""

    def __init__(self, *args: Any) -> None:
        self.args = args
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Plain(pickle.Unpickler):
    """Reads plain values, and what a pickled array needs as ``_Inert``: numpy's own would trust forged sizes."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        super().__init__(file, encoding="latin1")  # Python 2's strings, text and bytes alike
        self._path = path

    def find_class(self, module: str, name: str) -> type[_Inert]:
        if (module, name) not in _NUMPY | {("_codecs", "encode")}:
            raise InputError(f"{self._path} is refused: a CIFAR-10 batch has no {one_line(f'{module}.{name}', 80)}")
        return _Inert


@contextmanager
def _reading(path: Path, wanted: str) -> Iterator[None]:
    try:
        yield
    except _BROKEN as error:
        raise InputError(f"cannot read {path} as {wanted}: {one_line(error)}") from error


def _check_split(split: str) -> None:
    if split not in _BATCHES:
        raise InputError(f"the splits are 'train' and 'test', got {split!r}")


def _check_targets(path: Path, targets: Sequence[Any], count: int) -> None:
    if not targets:
        raise InputError(f"{path} holds no labels; one per image was expected")
    for place, target in enumerate(targets):
        if type(target) is not int or not 0 <= target < count:
            raise InputError(f"label {place} of {path} is out of range: 0 to {count - 1} was expected")


def _check_names(path: Path) -> None:
    """Refuse a folder whose ``batches.meta``, where it has one, names other classes."""
    if path.exists() and _load_batch(path).get("label_names") != list(_CIFAR10):
        raise InputError(f"{path} does not name the ten classes of CIFAR-10 in their order")


def _load_batch(path: Path) -> dict[Any, Any]:
    with _reading(path, "a CIFAR-10 batch"), path.open("rb") as file:
        batch = _Plain(file, path).load()
    if not isinstance(batch, dict):
        raise InputError(f"{path} is no CIFAR-10 batch: a dictionary was expected")
    return batch


def _read_batch(path: Path) -> tuple[Frame, list[int]]:
    """One batch: its rows ``[n, 3072]`` (1024 red, 1024 green, 1024 blue) and as many labels."""
    batch = _load_batch(path)
    rows, targets = _array(batch.get("data")), batch.get("labels")
    if rows is None or rows.shape[1:] != (3072,) or not isinstance(targets, list):
        raise InputError(f"{path} is no CIFAR-10 batch: 'data' uint8 [n, 3072] and a list of 'labels' were expected")
    if len(rows) != len(targets):
        raise InputError(f"{path} holds {len(rows)} images and {len(targets)} labels: they must be as many")
    _check_targets(path, targets, len(_CIFAR10))
    return rows, targets


def _array(value: Any) -> Frame | None:
    """The uint8 array that an unpickled one describes; None where it describes anything else."""
    try:
        _, shape, dtype, fortran, raw = value.state
        raw = raw.args[0] if isinstance(raw, _Inert) else raw  # Python 3 writes _codecs.encode(text, "latin1")
        flat = np.frombuffer(raw.encode("latin1") if isinstance(raw, str) else raw, np.uint8)
        return flat.reshape(shape, order="F" if fortran else "C") if dtype.args[0] == "u1" else None
    except _BROKEN:
        return None


def _open_npz(path: Path) -> _Jpegs:
    with _reading(path, "an .npz of 'jpeg', 'offsets' and 'labels'"), path.open("rb") as file:
        with np.lib.npyio.NpzFile(file, allow_pickle=False) as arrays:
            jpeg, offsets, labels = (np.asarray(arrays[key]) for key in ("jpeg", "offsets", "labels"))
            classes = np.asarray(arrays["classes"]).tolist() if "classes" in arrays else list(_CIFAR10)
    if classes != list(_CIFAR10):
        raise InputError(f"{path} does not name the ten classes of CIFAR-10 in their order")
    if jpeg.dtype != np.uint8 or any(a.ndim != 1 or a.dtype.kind not in "iu" for a in (jpeg, offsets, labels)):
        raise InputError(f"{path}: 'jpeg' uint8 [bytes], 'offsets' and 'labels' integers [n + 1] and [n] were expected")
    if len(offsets) != len(labels) + 1:
        raise InputError(f"{path} holds {len(offsets)} offsets and {len(labels)} labels: one offset more was expected")
    if offsets[0] < 0 or offsets[-1] > len(jpeg) or (offsets[1:] <= offsets[:-1]).any():
        raise InputError(f"{path}: 'offsets' must rise and stay within the {len(jpeg)} bytes of 'jpeg'")
    _check_targets(path, labels.tolist(), len(_CIFAR10))
    return _Jpegs(path, jpeg, offsets.tolist(), labels.tolist())


def _decode(name: str, data: bytes) -> Frame:
    frame = decode_image(data, name)
    if frame.shape != (32, 32, 3):
        raise InputError(f"{name} has {frame.shape[0]}x{frame.shape[1]} pixels; 32x32 was expected")
    return frame


def _find(name: str) -> Path:
    for path in (Path(name), Path(f"{name}.gz")):
        if path.is_file():
            return path
    raise InputError(f"{name} does not exist, nor does it with .gz; an idx file was expected")


def _read_idx(path: Path, dims: int) -> Frame:
    """An idx file of bytes: two zeros, 0x08 for uint8, ``dims``, each dimension as a big-endian uint32, the data."""
    start = 4 + 4 * dims
    with _reading(path, "an idx file"), gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        data = file.read()
    if data[:4] != bytes([0, 0, 8, dims]) or len(data) < start:
        raise InputError(
            f"{path} is no idx file of uint8 with {dims} dimensions: it starts with 0x{data[:start].hex()}"
        )
    shape = struct.unpack(f">{dims}I", data[4:start])
    if 0 in shape or len(data) - start != math.prod(shape):
        raise InputError(f"{path}: its shape {shape} takes {math.prod(shape)} bytes of data, got {len(data) - start}")
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)

"""Labelled images streamed from tar shards in the WebDataset layout, for data too large or too slow as small files.

The library of that name is not used: it gives a path such as ``pipe:...`` to a shell, unpickles members named ``.pyd``
when it decodes, takes a shard cut between two members for a whole one, and its order depends on the workers, too.
"""

from __future__ import annotations

import io
import itertools
import os
import re
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from torch import distributed
from torch.utils.data import IterableDataset, get_worker_info

from edgecv.data import Samples
from edgecv.errors import BackendUnavailable, InputError, one_line
from edgecv.files import new_folder
from edgecv.images import decode_image
from edgecv.preprocess import check_frame

__all__ = ["TarShards", "write_shards"]

Frame = NDArray[np.uint8]
Raw = tuple[str, bytes, int]  # what messages call the sample, its image file, its class

_IMAGES = ("jpeg", "jpg", "png", "webp")
_KEY = re.compile(r"(?!__[^/]*__(?:/|$))((?:.*/)?[^./]+)\.([^/]*)", re.DOTALL)  # as the library reads names
# What tarfile raises for a file that is missing, cut short or of another format.
_BROKEN = (tarfile.TarError, OSError, EOFError, MemoryError, RuntimeError, ValueError, ArithmeticError, LookupError)


class TarShards(IterableDataset[tuple[Frame, int]]):
    """Samples of tar files: uint8 RGB frames ``[height, width, 3]`` of any size, each with the index of its label.

    A sample is adjacent members ``KEY.jpg`` (or ``.jpeg``, ``.png``, ``.webp``) and ``KEY.cls``, the index as text;
    others are not read, and nothing is unpacked to disk. ``paths`` is a folder (every ``*.tar`` in it, sorted), a file,
    or a list of these. ``shuffle`` is how many image files are held in memory to draw from; above 0, each epoch has its
    own order of shards, too. Whole shards are dealt out to the ranks of ``torch.distributed``, and a rank's to the
    workers of a ``DataLoader``: the order depends on seed, epoch, ranks and workers, and on nothing else. Have many
    more shards than ranks and workers; ranks may get different numbers of samples.

    Raises:
        InputError: no shard, or an argument out of range; when read, a shard that is no tar or cut short, or a sample
            without image or class, or with one that cannot be decoded or is no index into ``labels``.
        BackendUnavailable: OpenCV is not installed.

    Source: https://github.com/webdataset/webdataset; Aizman, Maltby & Breuel, 2020, arXiv:2001.01858.
    """

    def __init__(
        self, paths: Sequence[str | Path] | str | Path, labels: Sequence[str], *, shuffle: int = 0, seed: int = 0
    ) -> None:
        if min(shuffle, seed) < 0:
            raise InputError(f"shuffle and seed are 0 or more, got {shuffle} and {seed}")
        self.labels = tuple(labels)
        self._shards = _find([paths] if isinstance(paths, (str, Path)) else paths)
        self._shuffle, self._seed = shuffle, seed
        self._epoch = torch.zeros((), dtype=torch.int64)
        self._epoch.share_memory_()  # type: ignore[no-untyped-call]  # workers that persist see it change
        self._count: int | None = None
        self._rank = (0, 1)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_rank": self._ranks()}  # workers that are not forked have no process group

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of the iterations from now on; ``epoch`` is 0 or more."""
        if epoch < 0:
            raise InputError(f"epoch is 0 or more, got {epoch}")
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        """The samples of all ranks and workers (so a loader's length may be off); the first call reads the headers."""
        if self._count is None:
            self._count = sum(1 for shard in self._shards for _ in _samples(shard))
        return self._count

    def __iter__(self) -> Iterator[tuple[Frame, int]]:
        (rank, ranks), info = self._ranks(), get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        if ranks > len(self._shards):
            raise InputError(f"{len(self._shards)} shards cannot be shared by {ranks} ranks; write smaller ones")
        key = (self._seed, int(self._epoch))
        order = np.random.default_rng((*key, 0)).permutation(len(self._shards)).tolist()
        shards = [self._shards[i] for i in order] if self._shuffle else self._shards
        raw = (self._read(*sample) for shard in shards[rank::ranks][worker::workers] for sample in _samples(shard))
        mixed = _shuffled(raw, max(1, self._shuffle), np.random.default_rng((*key, 1 + rank * workers + worker)))
        return ((decode_image(data, name), target) for name, data, target in mixed)

    def _ranks(self) -> tuple[int, int]:
        if distributed.is_available() and distributed.is_initialized():
            return distributed.get_rank(), distributed.get_world_size()
        return self._rank

    def _read(self, name: str, file: BinaryIO, image: tarfile.TarInfo, answer: tarfile.TarInfo) -> Raw:
        with _naming(f"cannot read {name}"):
            data, text = _bytes(file, image), _bytes(file, answer)
        found = re.fullmatch(rb"\s*(\d{1,9})\s*", text)
        if not found or int(found[1]) >= len(self.labels):
            got = one_line(repr(text), 40)
            raise InputError(f"the class of {name} is an index into the {len(self.labels)} labels, got {got}")
        return name, data, int(found[1])


def write_shards(
    samples: Samples, folder: str | Path, *, per_shard: int = 1000, quality: int | None = None
) -> list[Path]:
    """Write labelled images as shards ``00000.tar``, ``00001.tar``, ... that ``TarShards`` reads; return their paths.

    Images are PNG, which loses nothing, or JPEG where ``quality`` (1 to 100) is given. The same samples give the same
    bytes. The folder appears with all its shards or not at all; the names of the labels are not in it.

    Raises:
        InputError: the folder is occupied or cannot be written, a sample is wrong, or an argument is out of range.
        BackendUnavailable: OpenCV is not installed.
    """
    if min(per_shard, len(samples)) < 1 or quality not in (None, *range(1, 101)):
        got = f"{per_shard} of {len(samples)} samples and quality {quality}"
        raise InputError(f"a shard takes 1 or more samples, and quality is 1 to 100 (JPEG) or None (PNG); got {got}")
    chunks = [range(len(samples))[i : i + per_shard] for i in range(0, len(samples), per_shard)]
    paths = [Path(folder, f"{i:0{max(5, len(str(len(chunks))))}}.tar") for i in range(len(chunks))]
    with new_folder(folder) as partial:
        for path, chunk in zip(paths, chunks, strict=True):
            with _naming(f"cannot write {path}"), tarfile.open(partial / path.name, "x:") as tar:
                for index in chunk:
                    _add(tar, samples, index, quality)
    return paths


def _add(tar: tarfile.TarFile, samples: Samples, index: int, quality: int | None) -> None:
    frame, target = samples[index]
    check_frame(frame)
    if not 0 <= target < len(samples.labels):
        raise InputError(f"the class of sample {index} is {target}, no index into the {len(samples.labels)} labels")
    for suffix, data in (_encode(frame, quality), ("cls", str(int(target)).encode())):
        member = tarfile.TarInfo(f"{index:08}.{suffix}")  # owner 0, time 0
        member.size = len(data)
        tar.addfile(member, io.BytesIO(data))


def _encode(frame: Frame, quality: int | None) -> tuple[str, bytes]:
    try:
        import cv2
    except ModuleNotFoundError as error:
        raise BackendUnavailable("writing image files needs OpenCV: pip install 'edgecv[vision]'") from error
    suffix, options = ("png", []) if quality is None else ("jpg", [cv2.IMWRITE_JPEG_QUALITY, quality])
    return suffix, cv2.imencode(f".{suffix}", np.ascontiguousarray(frame[..., ::-1]), options)[1].tobytes()


def _find(paths: Sequence[str | Path]) -> list[Path]:
    shards = [file for path in map(Path, paths) for file in (sorted(path.glob("*.tar")) if path.is_dir() else [path])]
    missing = [shard for shard in shards if not shard.is_file()]
    if missing or not shards:
        raise InputError(f"no shards: {[*missing, *paths, 'nothing'][0]} is no file and no folder of *.tar")
    return shards


def _samples(shard: Path) -> Iterator[tuple[str, BinaryIO, tarfile.TarInfo, tarfile.TarInfo]]:
    """For each sample what messages call it, the open shard, and where in it lie its image and its class."""
    name = ""
    with _naming(f"cannot read shard {shard}"), shard.open("rb") as file:
        for key, group in itertools.groupby(_members(shard, file), lambda member: member[0]):
            name = f"sample {one_line(repr(key))} of {shard}"
            members = [(kind, member) for _, kind, member in group]
            images, answers = ([m for kind, m in members if kind in kinds] for kinds in (_IMAGES, ("cls",)))
            if len(images) != 1 or len(answers) != 1:
                raise InputError(f"{name} has {len(images)} images and {len(answers)} .cls: one of each was expected")
            yield name, file, images[0], answers[0]
    if not name:
        raise InputError(f"shard {shard} holds no sample: members KEY.jpg and KEY.cls were expected")


def _members(shard: Path, file: BinaryIO) -> Iterator[tuple[str, str, tarfile.TarInfo]]:
    """Key and suffix of each file in a tar. tarfile takes any block that is no header for the end; here it must be."""
    size = os.fstat(file.fileno()).st_size
    with tarfile.open(fileobj=file, mode="r:") as tar:
        while member := tar.next():
            tar.members.clear()  # type: ignore[attr-defined]  # they would all be kept
            name = one_line(repr(member.name))
            if not member.offset < tar.offset <= size or member.size < 0:
                raise InputError(f"shard {shard} is cut short or broken at {name}")
            if not (member.isreg() or member.isdir()) or member.issparse():
                raise InputError(f"shard {shard}: {name} is a link, a device or sparse; plain files were expected")
            found = _KEY.fullmatch(member.name)
            if member.isreg() and found:
                yield found[1], found[2].lower(), member
        file.seek(tar.offset)
        if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise InputError(f"shard {shard} is cut short or broken at byte {tar.offset}: a tar ends in zeros")


def _bytes(file: BinaryIO, member: tarfile.TarInfo) -> bytes:
    file.seek(member.offset_data)
    return file.read(member.size)


def _shuffled(items: Iterator[Raw], size: int, generator: np.random.Generator) -> Iterator[Raw]:
    """Draw from ``size`` held items, each replaced by the next; 1 keeps the order."""
    held = list(itertools.islice(items, size))
    for item in items:
        place = int(generator.integers(size))
        yield held[place]
        held[place] = item
    yield from (held[i] for i in generator.permutation(len(held)))


@contextmanager
def _naming(what: str) -> Iterator[None]:
    try:
        yield
    except _BROKEN as error:
        raise InputError(f"{what}: {one_line(error)}") from error

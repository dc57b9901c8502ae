"""Bundles: a directory with a manifest, written whole and verified before anything in it is used."""

from __future__ import annotations

import dataclasses
import hashlib
import stat
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from edgecv.errors import BundleError, InputError, one_line
from edgecv.files import sha256, write_file
from edgecv.manifest import FORMAT, PACKED, FileRecord, Manifest, Variant
from edgecv.packing import unpack
from edgecv.plugins import unknown
from edgecv.schema import decode, dumps, loads

__all__ = ["LABELS", "MANIFEST", "Bundle", "write_manifest"]

MANIFEST = "manifest.json"
LABELS = "labels.txt"
LARGEST_MANIFEST = 16 << 20  # bytes; a real one has a few kB


@dataclass(frozen=True, slots=True)
class Bundle:
    """A verified bundle on disk. ``sha256`` is the manifest's, and with it stands for every byte of the bundle."""

    path: Path
    manifest: Manifest
    labels: tuple[str, ...]
    sha256: str

    @classmethod
    def load(cls, path: str | Path) -> Bundle:
        """Read a bundle and check every file against the manifest.

        Raises:
            BundleError: the manifest is missing, malformed or of another format; a file is missing, extra, changed,
                a link, or named by a path that leaves the directory.
        """
        path = Path(path)
        if not path.is_dir():
            raise BundleError(f"{path} is not a bundle: a directory with a {MANIFEST} was expected")
        raw = _read_manifest(path)
        manifest = _parse(raw, path)
        _verify(path, manifest)
        return cls(path, manifest, _labels(path, manifest), hashlib.sha256(raw).hexdigest())

    def variant(self, name: str) -> Variant:
        """The variant called ``name``."""
        if name not in self.manifest.variants:
            raise InputError(f"{self.path}: {unknown('variant', name, self.manifest.variants)}")
        return self.manifest.variants[name]

    def file(self, variant: str, graph: str | None = None) -> Path:
        """The main file of one graph of a variant; ``graph`` may be left out where there is one.

        Where it is packed, nothing lies there: see ``unpacked``.
        """
        files = self.variant(variant).graphs
        if graph is None and len(files) > 1:
            raise InputError(f"{self.path} has the graphs {', '.join(files)}; name one with graph=")
        name = next(iter(files)) if graph is None else graph
        if name not in files:
            raise InputError(f"{self.path}: {unknown('graph', name, files)}")
        return self.path / files[name]

    def unpacked(self, main: Path) -> dict[str, bytes] | None:
        """The files of a graph by suffix, such as ``.xml`` and ``.bin``, decoded; ``main`` is what ``file`` gave.

        ``None`` where none of them is packed.

        Raises:
            BundleError: a file is damaged, or decodes to something else than the manifest says.
        """
        stem = main.relative_to(self.path).with_suffix("").as_posix()
        stored = [name for name in self.manifest.files if name.removesuffix(PACKED).rpartition(".")[0] == stem]
        if not any(name in self.manifest.packed for name in stored):
            return None
        names = [name.removesuffix(PACKED) if name in self.manifest.packed else name for name in stored]
        return {PurePosixPath(name).suffix: self.read(name) for name in names}

    def read(self, name: str) -> bytes:
        """The bytes of a file by the path it has, or had before it was packed.

        Raises:
            BundleError: as by ``unpacked``.
        """
        stored = self.manifest.stored(name)
        try:
            raw = (self.path / stored).read_bytes()
        except OSError as error:
            raise BundleError(f"{self.path}: cannot read {stored!r}: {one_line(error)}") from error
        if hashlib.sha256(raw).hexdigest() != self.manifest.files[stored].sha256:
            raise BundleError(f"{self.path}: file {stored!r} was changed after the bundle was written")
        packed = self.manifest.packed.get(stored)
        if packed is None:
            return raw
        data = unpack(raw, packed.size_bytes, f"{self.path}: {stored!r}")
        if hashlib.sha256(data).hexdigest() != packed.sha256:
            raise BundleError(f"{self.path}: {stored!r} decodes to something else than {name!r}; convert again")
        return data


def write_manifest(folder: Path, manifest: Manifest) -> Manifest:
    """Complete ``manifest`` with the hash and size of every file in ``folder`` and write it there.

    The same files and manifest give the same bytes.
    """
    records = {name: FileRecord(sha256(folder / name), (folder / name).stat().st_size) for name in _files_in(folder)}
    complete = dataclasses.replace(manifest, files=records)
    write_file(folder / MANIFEST, dumps(complete))
    return complete


def _read_manifest(path: Path) -> bytes:
    file = path / MANIFEST
    try:
        if file.is_symlink() or not file.is_file():
            raise BundleError(f"{path} is not a bundle: it has no {MANIFEST}")
        if file.stat().st_size > LARGEST_MANIFEST:
            raise BundleError(f"{file} is larger than {LARGEST_MANIFEST >> 20} MiB: not a manifest")
        return file.read_bytes()
    except OSError as error:
        raise BundleError(f"cannot read {file}: {one_line(error)}") from error


def _parse(raw: bytes, path: Path) -> Manifest:
    where = str(path / MANIFEST)
    data = loads(raw, where, BundleError)
    if not isinstance(data, dict) or "format" not in data:
        raise BundleError(f"{where} has no 'format': not an edgecv manifest")
    if type(data["format"]) is not int or data["format"] != FORMAT:
        raise BundleError(f"{where} has format {data['format']!r}; this edgecv reads format {FORMAT}: update edgecv")
    return decode(Manifest, data, where, BundleError)


def _verify(path: Path, manifest: Manifest) -> None:
    for name in manifest.files:
        if not _stays_inside(name):
            raise BundleError(f"{path}: file path {name!r} leaves the bundle or is not in plain form")
    for name in manifest.named_files:
        if name not in manifest.files:
            raise BundleError(f"{path}: file {name!r} is used but not listed under 'files'")
    present, listed = set(_files_in(path)) - {MANIFEST}, set(manifest.files)
    if missing := sorted(listed - present):
        raise BundleError(f"{path}: file {missing[0]!r} is missing; copy the bundle again")
    if extra := sorted(present - listed):
        raise BundleError(f"{path}: file {extra[0]!r} is not in the manifest; remove it or convert again")
    for name, record in manifest.files.items():
        try:
            size, digest = (path / name).stat().st_size, sha256(path / name)
        except OSError as error:
            raise BundleError(f"{path}: cannot read {name!r}: {one_line(error)}") from error
        if (size, digest) != (record.size_bytes, record.sha256):
            raise BundleError(f"{path}: file {name!r} was changed after the bundle was written; copy the bundle again")


def _stays_inside(name: str) -> bool:
    pure = PurePosixPath(name)
    plain = bool(pure.parts) and not any(char in name for char in "\\\0:") and str(pure) == name
    return plain and not pure.is_absolute() and ".." not in pure.parts and name != MANIFEST


def _files_in(folder: Path) -> list[str]:
    """Regular files below ``folder`` as sorted POSIX paths; anything else (a link, a device) is refused."""
    names = []
    for entry in sorted(folder.rglob("*")):
        mode = entry.lstat().st_mode
        if stat.S_ISREG(mode):
            names.append(entry.relative_to(folder).as_posix())
        elif not stat.S_ISDIR(mode):
            name = entry.relative_to(folder).as_posix()
            raise BundleError(f"{folder}: {name!r} is a link or a special file; bundles hold plain files")
    return names


def _labels(path: Path, manifest: Manifest) -> tuple[str, ...]:
    if manifest.labels is None:
        return ()
    try:
        return tuple((path / manifest.labels).read_bytes().decode("utf-8").removesuffix("\n").split("\n"))
    except (OSError, UnicodeDecodeError) as error:
        raise BundleError(f"{path}: cannot read {manifest.labels!r}: {one_line(error)}") from error

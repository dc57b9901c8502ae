"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from edgecv.errors import InputError, one_line

__all__ = ["new_folder", "sha256", "write_file"]


def write_file(path: str | Path, data: bytes | str) -> None:
    """Write ``data`` to ``path`` through a temporary sibling, so that a reader sees the old file or the new one.

    Raises:
        InputError: the folder does not exist or cannot be written.
    """
    path = Path(path)
    raw = data.encode("utf-8") if isinstance(data, str) else data
    if path.is_dir():
        raise InputError(f"cannot write {path}: it is a folder")
    temporary = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        with temporary.open("wb") as stream:
            stream.write(raw)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise InputError(f"cannot write {path}: {one_line(error)}") from error


@contextlib.contextmanager
def new_folder(path: str | Path) -> Iterator[Path]:
    """Yield an empty sibling folder that becomes ``path`` when the block ends without an error.

    ``path`` must not exist or must be an empty folder. A process killed inside the block leaves no ``path``, only a
    hidden sibling that the next call for the same ``path`` clears away.

    Raises:
        InputError: ``path`` holds something already, or its parent cannot be written.
    """
    path = Path(os.path.abspath(path))  # noqa: PTH100  (absolute without following links)
    refuse_occupied(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _clear_abandoned(path)
        temporary = Path(tempfile.mkdtemp(prefix=f"{_prefix(path)}{os.getpid()}-", dir=path.parent))
    except OSError as error:
        raise InputError(f"cannot create {path}: {one_line(error)}") from error
    try:
        yield temporary
        temporary.chmod(0o755)
        refuse_occupied(path)
        try:
            temporary.rename(path)
        except OSError as error:  # another writer was faster, or the parent is gone
            raise InputError(f"cannot create {path}: {one_line(error)}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def refuse_occupied(path: Path) -> None:
    """Raise ``InputError`` unless ``path`` is free: missing, or an empty folder."""
    if path.is_symlink() or (path.exists() and not path.is_dir()):
        raise InputError(f"{path} exists and is not a folder; choose another output")
    if path.is_dir() and any(path.iterdir()):
        raise InputError(f"output folder {path} exists and is not empty; remove it or choose another")


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes as hexadecimal text."""
    with path.open("rb") as stream:
        digest = hashlib.sha256()
        for block in iter(lambda: stream.read(1 << 20), b""):
            digest.update(block)
        return digest.hexdigest()


def _prefix(path: Path) -> str:
    return f".{path.name}.partial-"


def _clear_abandoned(path: Path) -> None:
    """Remove what killed processes left of earlier attempts at the same ``path``."""
    for left in path.parent.glob(f"{glob.escape(_prefix(path))}*"):
        owner = left.name.removeprefix(_prefix(path)).partition("-")[0]
        if owner.isdigit() and not _alive(int(owner)):
            shutil.rmtree(left, ignore_errors=True)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True

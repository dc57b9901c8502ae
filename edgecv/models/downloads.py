"""Published weights by URL: fetched once into a cache folder, resumed when cut short, checked by their hash."""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from edgecv.errors import BackendUnavailable, InputError, one_line
from edgecv.files import sha256 as hash_of
from edgecv.progress import Progress, silent

__all__ = ["cache_folder", "fetch"]

_URL = re.compile(r"(?i:https?)://[^\s/?#]+/(?:[^\s?#]*/)?(?P<name>[^\s/?#]+)(?:[?#]\S*)?")


def cache_folder() -> Path:
    """The folder of fetched weights, in ``$EDGECV_CACHE``, else ``$XDG_CACHE_HOME/edgecv`` or ``~/.cache/edgecv``."""
    base = os.environ.get("EDGECV_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "edgecv"
    return Path(base).expanduser() / "weights"


def fetch(url: str, sha256: str, *, progress: Progress = silent, timeout_s: float = 30.0) -> Path:
    """Return the file at ``url`` from the cache, downloaded first if it is missing or damaged there.

    ``sha256`` is the published hash, or its first 8 digits or more. ``timeout_s`` bounds each wait for the server, not
    the whole download. What was cut short goes on where it stopped. ``EDGECV_OFFLINE=1`` forbids the network.

    Raises:
        InputError: not an http or https URL of a file, not a hash, the downloaded file's hash is another, or the cache
            folder cannot be written.
        BackendUnavailable: the file is not in the cache and cannot be downloaded; the message says where to put it.
    """
    target = _target(url, sha256)
    try:
        if _fits(target, sha256):
            return target
        if os.environ.get("EDGECV_OFFLINE", "") not in ("", "0"):
            raise _unavailable(url, target, "EDGECV_OFFLINE is set and the cache holds no good copy")
        target.parent.mkdir(parents=True, exist_ok=True)
        with _alone(target):
            if not _fits(target, sha256):
                target.unlink(missing_ok=True)
                part = _download(url, target, progress, timeout_s)
                if not (got := hash_of(part)).startswith(sha256):
                    part.unlink()
                    raise InputError(f"{url} has the SHA-256 {got}, wanted {sha256}; removed it: check the hash")
                part.replace(target)
    except OSError as error:  # the network's errors are BackendUnavailable by now
        reason = f"cannot keep a file at {target}: {one_line(error.strerror or error)}"
        raise InputError(f"{reason}; name another folder in EDGECV_CACHE") from error
    return target


def _target(url: str, sha256: str) -> Path:
    match = _URL.fullmatch(url)
    if match is None:
        raise InputError(f"{url!r} is not an http or https URL of a file")
    if not re.fullmatch("[0-9a-f]{8,64}", sha256):
        raise InputError(f"{sha256!r} is not a SHA-256: give its 64 lower-case hex digits, or at least the first 8")
    name = re.sub(r"[^\w.+-]", "_", match["name"], flags=re.ASCII)
    return cache_folder() / f"{sha256[:8]}-{name}"


def _fits(path: Path, sha256: str) -> bool:
    return path.is_file() and hash_of(path).startswith(sha256)


@contextlib.contextmanager
def _alone(target: Path) -> Iterator[None]:
    with target.with_name(f"{target.name}.lock").open("ab") as lock:
        # Two writers of one .part would mix their bytes: the second waits here and then finds the finished file. The
        # system drops the lock of a killed process; the lock's file stays, because removing it would race with others.
        with contextlib.suppress(ModuleNotFoundError):  # no fcntl on Windows, where an open file cannot be replaced
            import fcntl

            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _download(url: str, target: Path, progress: Progress, timeout_s: float) -> Path:
    """Bring ``target``'s ``.part`` to its full length."""
    part = target.with_name(f"{target.name}.part")
    with _open(url, target, part, timeout_s) as response:
        done = part.stat().st_size if response.status == http.HTTPStatus.PARTIAL_CONTENT else 0
        total = None if response.length is None else done + response.length
        with part.open("ab" if done else "wb") as stream:
            while total is None or done < total:
                with _network(url, target):
                    block = response.read1(1 << 20)  # unlike read(), loses nothing when the connection breaks
                if not block:
                    break
                stream.write(block)
                done += len(block)
                if total is not None:
                    progress(f"download {target.name}", done, total)
    if total is not None and done < total:
        raise _unavailable(url, target, f"the connection ended after {done} of {total} bytes; call again to resume")
    return part


def _open(url: str, target: Path, part: Path, timeout_s: float) -> http.client.HTTPResponse:
    """Ask for what ``part`` lacks."""
    start = part.stat().st_size if part.exists() else 0
    headers = {"User-Agent": "edgecv"} | ({"Range": f"bytes={start}-"} if start else {})
    with _network(url, target):
        request = urllib.request.Request(url, headers=headers)  # noqa: S310  (the scheme was checked)
        try:
            response = urllib.request.urlopen(request, timeout=timeout_s)  # noqa: S310  (the scheme was checked)
            if isinstance(response, http.client.HTTPResponse):
                return response
            response.close()
            raise _unavailable(url, target, "it redirects to a URL that is not http or https")
        except urllib.error.HTTPError as error:
            error.close()
            if not start or error.code != http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                raise _unavailable(url, target, one_line(error)) from error
    part.unlink()
    return _open(url, target, part, timeout_s)


@contextlib.contextmanager
def _network(url: str, target: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, http.client.HTTPException, ValueError) as error:  # ValueError: a host name that none can have
        raise _unavailable(url, target, one_line(getattr(error, "reason", error))) from error


def _unavailable(url: str, target: Path, reason: str) -> BackendUnavailable:
    return BackendUnavailable(f"cannot download {url}: {reason}; put the file at {target} by hand, or pass a file")

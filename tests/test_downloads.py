"""Weights are fetched once, whole, and only with the hash that was published."""

from __future__ import annotations

import hashlib
import http.client
import io
import os
import random
import signal
import socket
import struct
import subprocess
import sys
import threading
import urllib.request
import urllib.response
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")  # edgecv.models imports it

from edgecv.errors import BackendUnavailable, EdgeCVError, InputError
from edgecv.models import downloads
from edgecv.models.downloads import cache_folder, fetch

BODY = random.Random(0).randbytes(5 * (1 << 20) // 2 + 7)
HASH = hashlib.sha256(BODY).hexdigest()
HALF = len(BODY) // 2


class Server(ThreadingHTTPServer):
    """Serves ``BODY`` under every path, with the fault that a test sets."""

    daemon_threads = False  # closing the server waits for its threads

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.fault = ""
        self.ranges: list[str | None] = []  # one entry a request
        self.half_sent = threading.Event()
        self.go_on = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/models/net.pth"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is what some tests are about."""


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        wanted, fault = self.headers["Range"], self.server.fault
        self.server.ranges.append(wanted)
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted and fault != "no ranges" else 0
        if fault.isdigit():
            self.send_error(int(fault))
        elif fault == "redirect":
            self.server.fault = ""
            self._head(302, Location="/elsewhere/name")
        elif fault == "hang up":
            pass
        elif fault == "mute":
            self.server.go_on.wait(20)
        elif start >= len(BODY):
            self.send_error(416)
        else:
            self._send(BODY[start:], 206 if start else 200)

    def _send(self, body: bytes, status: int) -> None:
        fault = self.server.fault
        if fault == "no length":
            self._head(status)
        else:
            self._head(status, **{"Content-Length": str(len(body))})
        self.wfile.write(body[:HALF])
        self.server.half_sent.set()
        if fault == "stall":
            self.server.go_on.wait(20)
        if fault == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
        elif fault != "cut":
            self.wfile.write(body[HALF:])

    def _head(self, status: int, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  (the base class's name)
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.go_on.set()
        running.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that the files go to, not yet made."""
    monkeypatch.setenv("EDGECV_CACHE", str(tmp_path))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.delenv("EDGECV_OFFLINE", raising=False)
    return tmp_path / "weights"


def file_in(cache: Path, data: bytes, suffix: str = "") -> Path:
    """Put ``data`` where ``fetch`` keeps the file, or its part."""
    cache.mkdir(exist_ok=True)
    path = cache / f"{HASH[:8]}-net.pth{suffix}"
    path.write_bytes(data)
    return path


def left(cache: Path) -> list[str]:
    """What the cache holds besides the locks."""
    return sorted(path.name for path in cache.iterdir() if path.suffix != ".lock")


def refused(error: type[EdgeCVError], url: str, sha256: str = HASH, timeout_s: float = 20.0) -> str:
    """The one-line message that ``fetch`` ends with."""
    with pytest.raises(error) as caught:
        fetch(url, sha256, timeout_s=timeout_s)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_file_is_downloaded_once(server: Server, cache: Path) -> None:
    path = fetch(server.url, HASH)
    assert path == cache / f"{HASH[:8]}-net.pth"
    assert path.read_bytes() == BODY
    assert fetch(server.url, HASH) == path
    assert server.ranges == [None]
    assert left(cache) == [path.name]


@pytest.mark.parametrize("digits", [8, 12, 64])
def test_a_published_prefix_of_the_hash_is_enough(server: Server, digits: int) -> None:
    assert fetch(server.url, HASH[:digits]).read_bytes() == BODY


def test_a_file_without_a_length_is_read_to_its_end(server: Server) -> None:
    server.fault = "no length"
    calls: list[float] = []
    path = fetch(server.url, HASH, progress=lambda _stage, done, _total: calls.append(done))
    assert path.read_bytes() == BODY
    assert calls == []


def test_a_query_and_odd_characters_stay_out_of_the_name(server: Server, cache: Path) -> None:
    assert fetch(f"{server.url}%20v1:2?download=a/b#c", HASH).name == f"{HASH[:8]}-net.pth_20v1_2"
    assert fetch(f"{server.url}/../..", HASH).parent == cache


def test_a_redirect_is_followed_with_the_range(server: Server, cache: Path) -> None:
    server.fault = "redirect"
    file_in(cache, BODY[:10], ".part")
    path = fetch(server.url, HASH)
    assert path.name == f"{HASH[:8]}-net.pth"
    assert path.read_bytes() == BODY
    assert server.ranges == ["bytes=10-", "bytes=10-"]


def test_a_redirect_away_from_http_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = urllib.response.addinfourl(io.BytesIO(BODY), http.client.HTTPMessage(), "ftp://example.org/net.pth")
    monkeypatch.setattr(urllib.request, "urlopen", lambda *_args, **_options: answer)
    assert "redirects" in refused(BackendUnavailable, "http://127.0.0.1/net.pth")
    assert answer.closed


@pytest.mark.parametrize("start", [1, HALF, len(BODY) - 1])
def test_a_part_is_resumed(server: Server, cache: Path, start: int) -> None:
    file_in(cache, BODY[:start], ".part")
    assert fetch(server.url, HASH).read_bytes() == BODY
    assert server.ranges == [f"bytes={start}-"]
    assert left(cache) == [f"{HASH[:8]}-net.pth"]


def test_a_server_without_ranges_starts_from_zero(server: Server, cache: Path) -> None:
    server.fault = "no ranges"
    file_in(cache, b"x" * 100, ".part")
    assert fetch(server.url, HASH).read_bytes() == BODY
    assert server.ranges == ["bytes=100-"]


@pytest.mark.parametrize("extra", [b"", b"x"])
def test_a_part_that_is_too_long_is_started_over(server: Server, cache: Path, extra: bytes) -> None:
    file_in(cache, BODY + extra, ".part")
    assert fetch(server.url, HASH).read_bytes() == BODY
    assert server.ranges == [f"bytes={len(BODY + extra)}-", None]


def test_starting_over_happens_once(server: Server, cache: Path) -> None:
    server.fault = "416"
    file_in(cache, BODY, ".part")
    assert "416" in refused(BackendUnavailable, server.url)
    assert server.ranges == [f"bytes={len(BODY)}-", None]


def test_an_empty_part_asks_for_the_whole(server: Server, cache: Path) -> None:
    file_in(cache, b"", ".part")
    assert fetch(server.url, HASH).read_bytes() == BODY
    assert server.ranges == [None]


def test_a_body_cut_short_is_resumed_by_the_next_call(server: Server, cache: Path) -> None:
    server.fault = "cut"
    message = refused(BackendUnavailable, server.url)
    assert f"{HALF} of {len(BODY)} bytes" in message
    assert left(cache) == [f"{HASH[:8]}-net.pth.part"]
    server.fault = ""
    assert fetch(server.url, HASH).read_bytes() == BODY
    assert server.ranges == [None, f"bytes={HALF}-"]


def test_a_stalled_body_times_out_and_keeps_what_arrived(server: Server, cache: Path) -> None:
    server.fault = "stall"
    assert "timed out" in refused(BackendUnavailable, server.url, timeout_s=0.3)
    assert (cache / f"{HASH[:8]}-net.pth.part").read_bytes() == BODY[:HALF]
    server.fault = ""
    assert fetch(server.url, HASH).read_bytes() == BODY
    assert server.ranges == [None, f"bytes={HALF}-"]


def test_a_reset_connection_is_survived(server: Server) -> None:
    server.fault = "reset"
    refused(BackendUnavailable, server.url)
    server.fault = ""
    assert fetch(server.url, HASH).read_bytes() == BODY


@pytest.mark.parametrize(
    ("fault", "reason"), [("404", "404"), ("500", "500"), ("mute", "timed out"), ("hang up", "closed connection")]
)
def test_a_server_that_fails_is_named(server: Server, cache: Path, fault: str, reason: str) -> None:
    server.fault = fault
    part = file_in(cache, BODY[:10], ".part")
    message = refused(BackendUnavailable, server.url, timeout_s=0.3)
    assert server.url in message
    assert reason in message
    assert f"put the file at {part.with_suffix('')} by hand, or pass a file" in message
    assert part.read_bytes() == BODY[:10]


def test_a_refused_connection_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/net.pth"
    message = refused(BackendUnavailable, url)
    assert url in message
    assert "refused" in message


@pytest.mark.parametrize("host", ["a..b", "127.0.0.1:port", "[::1"])
def test_a_host_that_cannot_be_is_named(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    assert host in refused(BackendUnavailable, f"http://{host}/net.pth")


def test_a_wrong_hash_leaves_nothing(server: Server, cache: Path) -> None:
    wanted = "0" * 64
    message = refused(InputError, server.url, wanted)
    assert wanted in message
    assert HASH in message
    assert left(cache) == []


def test_a_damaged_part_is_removed_and_the_next_call_succeeds(server: Server, cache: Path) -> None:
    file_in(cache, b"x" * HALF, ".part")
    refused(InputError, server.url)
    assert left(cache) == []
    assert fetch(server.url, HASH).read_bytes() == BODY


@pytest.mark.parametrize("damaged", [b"", BODY[:-1], b"x" + BODY[1:]])
def test_a_damaged_file_is_fetched_anew(server: Server, cache: Path, damaged: bytes) -> None:
    path = file_in(cache, damaged)
    assert fetch(server.url, HASH) == path
    assert path.read_bytes() == BODY
    assert server.ranges == [None]


@pytest.mark.parametrize("value", ["1", "yes"])
def test_offline_means_no_request(server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("EDGECV_OFFLINE", value)
    message = refused(BackendUnavailable, server.url)
    assert "EDGECV_OFFLINE" in message
    assert str(cache / f"{HASH[:8]}-net.pth") in message
    path = file_in(cache, BODY)
    assert fetch(server.url, HASH) == path
    assert server.ranges == []


@pytest.mark.parametrize("value", ["", "0"])
def test_offline_can_be_switched_off(server: Server, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("EDGECV_OFFLINE", value)
    assert fetch(server.url, HASH).read_bytes() == BODY


@pytest.mark.parametrize(
    "url",
    [
        "ftp://127.0.0.1/net.pth",
        "file:///etc/hostname",
        "net.pth",
        "",
        "http://",
        "http://127.0.0.1",
        "http://127.0.0.1/",
        "http://127.0.0.1/a/?b",
        "http://127.0.0.1/a\nb",
    ],
)
def test_what_is_not_a_web_address_of_a_file_is_refused(url: str, cache: Path) -> None:
    assert "http or https" in refused(InputError, url)
    assert not cache.exists()


@pytest.mark.parametrize("digits", ["", HASH[:7], HASH.upper(), HASH + "0", "xyz" * 8, HASH + "\n"])
def test_what_is_not_a_hash_is_refused(digits: str) -> None:
    assert "SHA-256" in refused(InputError, "http://127.0.0.1/net.pth", digits)


def test_a_cache_that_cannot_be_written_is_refused(server: Server, cache: Path) -> None:
    cache.write_text("")
    assert "EDGECV_CACHE" in refused(InputError, server.url)
    assert server.ranges == []


def test_threads_wait_for_one_download(server: Server) -> None:
    with ThreadPoolExecutor(4) as pool:
        paths = list(pool.map(lambda _: fetch(server.url, HASH), range(4)))
    assert len(set(paths)) == 1
    assert paths[0].read_bytes() == BODY
    assert server.ranges == [None]


def start_process(url: str) -> subprocess.Popen[str]:
    """Fetch in another process; the file is run by its path, which spares the import of torch."""
    code = f"""
import runpy
fetch = runpy.run_path({downloads.__file__!r})['fetch']
print('ready', flush=True)
print(fetch({url!r}, {HASH!r}))
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def test_processes_wait_for_one_download(server: Server, cache: Path) -> None:
    server.fault = "stall"
    with start_process(server.url) as first:
        assert server.half_sent.wait(20)
        with start_process(server.url) as second:
            server.go_on.set()
            outputs = [process.communicate(timeout=20)[0].strip() for process in (first, second)]
    assert outputs == [str(cache / f"{HASH[:8]}-net.pth")] * 2
    assert Path(outputs[0]).read_bytes() == BODY
    assert server.ranges == [None]


@pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")
def test_a_killed_process_holds_no_lock(server: Server) -> None:
    server.fault = "stall"
    with start_process(server.url) as process:
        assert server.half_sent.wait(20)
        process.send_signal(signal.SIGKILL)
    server.go_on.set()
    server.fault = ""
    assert fetch(server.url, HASH).read_bytes() == BODY


def test_a_system_without_fcntl_downloads_too(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fcntl", None)
    assert fetch(server.url, HASH).read_bytes() == BODY


@pytest.mark.parametrize("start", [0, HALF])
def test_progress_grows_and_ends_at_the_total(server: Server, cache: Path, start: int) -> None:
    if start:
        file_in(cache, BODY[:start], ".part")
    calls: list[tuple[str, float, float]] = []
    path = fetch(server.url, HASH, progress=lambda *call: calls.append(call))
    done = [call[1] for call in calls]
    assert {(stage, total) for stage, _, total in calls} == {(f"download {path.name}", len(BODY))}
    assert done == sorted(set(done))
    assert done[0] > start
    assert done[-1] == len(BODY)


def test_the_cache_folder_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "weights"
    monkeypatch.setenv("EDGECV_CACHE", "")
    assert cache_folder() == tmp_path / "xdg/edgecv/weights"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == tmp_path / ".cache/edgecv/weights"

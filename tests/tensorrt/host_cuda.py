"""CUDA in host memory: work is queued and done when it is waited for; every pointer, size and order is checked."""

from __future__ import annotations

import ctypes
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

from edgecv.errors import BackendUnavailable

POISON = 0xCD  # what memory holds before anybody wrote it


class HostCuda:
    """A ``CudaRuntime`` for tests.

    Attributes:
        calls: the names of the methods called, in order.
        fail: how many more calls of a method succeed before it fails as a real one does, by its name.
    """

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.fail: dict[str, int] = {}
        self._lock = threading.RLock()
        self._memory: dict[int, tuple[str, Any]] = {}
        self._queues: dict[int, list[Callable[[], None]]] = {}
        self._recording: dict[int, list[Callable[[], None]]] = {}
        self._graphs: dict[int, list[Callable[[], None]]] = {}
        self._devices: dict[int, int] = {}
        self._next = 1

    @property
    def held(self) -> dict[str, int]:
        """How many of each resource are not given back."""
        kinds = Counter(kind for kind, _ in self._memory.values())
        return {**kinds, **{k: len(v) for k, v in (("stream", self._queues), ("graph", self._graphs)) if v}}

    def count(self, name: str) -> int:
        """How often a method was called."""
        return self.calls.count(name)

    def set_device(self, index: int) -> None:
        self._note("set_device", any_thread=True)
        self._devices[threading.get_ident()] = index

    def allocate(self, size_bytes: int) -> int:
        return self._take("allocate", "device", size_bytes)

    def free(self, pointer: int) -> None:
        self._give("free", "device", pointer)

    def allocate_pinned(self, size_bytes: int) -> int:
        return self._take("allocate_pinned", "pinned", size_bytes)

    def free_pinned(self, pointer: int) -> None:
        self._give("free_pinned", "pinned", pointer)

    def copy_to_device(self, device: int, host: int, size_bytes: int, stream: int) -> None:
        self._copy("copy_to_device", ("device", device), ("pinned", host), size_bytes, stream)

    def copy_to_host(self, host: int, device: int, size_bytes: int, stream: int) -> None:
        self._copy("copy_to_host", ("pinned", host), ("device", device), size_bytes, stream)

    def create_stream(self) -> int:
        self._note("create_stream")
        stream = self._handle()
        self._queues[stream] = []
        return stream

    def destroy_stream(self, stream: int) -> None:
        self._note("destroy_stream")
        assert not self._queues.pop(stream), "a stream was destroyed with work in it"

    def synchronize(self, stream: int) -> None:
        self._note("synchronize")
        with self._lock:
            assert stream not in self._recording, "a stream that records cannot be waited for"
            queue, self._queues[stream] = self._queues[stream], []
            for work in queue:
                work()

    def begin_capture(self, stream: int) -> None:
        self._note("begin_capture")
        assert not self._queues[stream], "work of a warm-up was still queued when the recording began"
        self._recording[stream] = []

    def end_capture(self, stream: int) -> int:
        recorded = self._recording.pop(stream)
        self._note("end_capture")
        graph = self._handle()
        self._graphs[graph] = recorded
        return graph

    def launch_graph(self, graph: int, stream: int) -> None:
        self._note("launch_graph")
        for work in self._graphs[graph]:
            self.queue(stream, work)

    def destroy_graph(self, graph: int) -> None:
        self._note("destroy_graph")
        del self._graphs[graph]

    def memory(self) -> tuple[int, int]:
        self._note("memory")
        return 3 << 20, 8 << 20

    def queue(self, stream: int, work: Callable[[], None]) -> None:
        """Put a kernel into a stream, as the library does when it runs an engine."""
        with self._lock:
            self._recording.get(stream, self._queues[stream]).append(work)

    def view(self, pointer: int, size_bytes: int) -> Any:
        """The bytes of device memory that a kernel reads or writes."""
        return self._bytes("device", pointer, size_bytes)

    def is_device(self, pointer: int) -> bool:
        """Whether device memory begins there."""
        return self._memory.get(pointer, ("", None))[0] == "device"

    def _note(self, name: str, any_thread: bool = False) -> None:
        with self._lock:
            self.calls.append(name)
            if self.fail.get(name, 1) == 0:
                raise BackendUnavailable(f"CUDA failed in {name}: out of memory (error 2)")
            if name in self.fail:
                self.fail[name] -= 1
        assert any_thread or threading.get_ident() in self._devices, f"{name} in a thread that chose no device"

    def _handle(self) -> int:
        self._next += 1
        return self._next

    def _take(self, name: str, kind: str, size: int) -> int:
        self._note(name)
        assert size > 0
        block = (ctypes.c_uint8 * size)(*([POISON] * min(size, 64)))
        with self._lock:
            self._memory[ctypes.addressof(block)] = (kind, block)
        return ctypes.addressof(block)

    def _give(self, name: str, kind: str, pointer: int) -> None:
        self._note(name)
        assert not any(self._queues.values()), "memory was given back with work queued"
        with self._lock:
            found, _ = self._memory.pop(pointer)
        assert found == kind, f"{found} memory was given back as {kind}"

    def _copy(self, name: str, to: tuple[str, int], source: tuple[str, int], size: int, stream: int) -> None:
        self._note(name)
        target, data = self._bytes(*to, size), self._bytes(*source, size)

        def work() -> None:
            ctypes.memmove(target, data, size)

        self.queue(stream, work)

    def _bytes(self, kind: str, pointer: int, size: int) -> Any:
        found, block = self._memory[pointer]
        assert found == kind, f"{found} memory was used as {kind}"
        assert size <= len(block), f"{size} bytes were asked of {len(block)}"
        return block

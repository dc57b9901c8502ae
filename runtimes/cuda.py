"""The little of CUDA that running an engine needs, and whether there is a device at all."""

from __future__ import annotations

import ctypes
import ctypes.util
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from edgecv.errors import BackendUnavailable, InputError, one_line

__all__ = ["Cuda", "CudaRuntime", "Gpu", "find_gpu", "gpus", "load_cuda"]

DRIVER = "nvcuda.dll" if os.name == "nt" else "libcuda.so.1"
CUDART = ("libcudart.so", "libcudart.so.13", "libcudart.so.12", "libcudart.so.11.0", "cudart64_13", "cudart64_12")
# Values of the driver's and the runtime's enumerations; they are part of CUDA's binary interface.
MAJOR, MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_…
TO_DEVICE, TO_HOST = 1, 2  # cudaMemcpyKind
NON_BLOCKING = 1  # cudaStreamNonBlocking: no synchronization with the default stream
THREAD_LOCAL = 1  # cudaStreamCaptureModeThreadLocal: what other threads do cannot break a capture


@dataclass(frozen=True, slots=True)
class Gpu:
    """One NVIDIA device; ``driver`` is the CUDA version that the driver supports, ``compute_capability`` as ``8.7``."""

    index: int
    name: str
    compute_capability: str
    memory_mb: int
    driver: str


def gpus() -> tuple[Gpu, ...]:
    """The NVIDIA devices here, as the driver lists them; nothing of TensorRT is touched.

    TensorRT itself cannot be asked: without a driver it crashes the process, sometimes only when the process ends.

    Raises:
        BackendUnavailable: there is no driver, or it finds no device.
    """
    try:
        driver = ctypes.CDLL(DRIVER)
    except OSError as error:
        raise BackendUnavailable(f"no NVIDIA driver: {DRIVER} not found") from error
    _driver_call(driver, "cuInit", ctypes.c_uint(0))
    count, version = ctypes.c_int(), ctypes.c_int()
    _driver_call(driver, "cuDeviceGetCount", ctypes.byref(count))
    _driver_call(driver, "cuDriverGetVersion", ctypes.byref(version))
    if count.value < 1:
        raise BackendUnavailable("no NVIDIA device: the driver is there and finds none")
    cuda = f"{version.value // 1000}.{version.value % 1000 // 10}"
    return tuple(_gpu(driver, index, cuda) for index in range(count.value))


def find_gpu(device: str) -> Gpu:
    """The device that ``"cuda"``, ``"cuda:1"``, … names; ``"cpu"``, the default of every session, is the first one.

    Raises:
        InputError: the name is none of these, or there are fewer devices.
        BackendUnavailable: there is no driver, or it finds no device.
    """
    match = re.fullmatch(r"cpu|cuda(?::(\d{1,4}))?", device)
    if match is None:
        raise InputError(f"TensorRT runs on device 'cuda' or 'cuda:N', got {device!r}")
    found, index = gpus(), int(match[1] or 0)
    if index >= len(found):
        names = ", ".join(f"cuda:{gpu.index} ({gpu.name})" for gpu in found)
        raise InputError(f"there is no device {device!r}, only {names}")
    return found[index]


class CudaRuntime(Protocol):
    """Memory, streams and graphs of the current device. Pointers, streams and graphs are plain integers.

    Every method raises ``BackendUnavailable`` where CUDA reports an error.
    """

    def set_device(self, index: int) -> None:
        """Make a device the calling thread's current one."""

    def allocate(self, size_bytes: int) -> int:
        """Take device memory."""

    def free(self, pointer: int) -> None:
        """Give device memory back."""

    def allocate_pinned(self, size_bytes: int) -> int:
        """Take page-locked host memory, which the device reads and writes without a staging copy."""

    def free_pinned(self, pointer: int) -> None:
        """Give page-locked host memory back."""

    def copy_to_device(self, device: int, host: int, size_bytes: int, stream: int) -> None:
        """Queue a copy from host to device."""

    def copy_to_host(self, host: int, device: int, size_bytes: int, stream: int) -> None:
        """Queue a copy from device to host."""

    def create_stream(self) -> int:
        """A queue of work that does not wait for the default one."""

    def destroy_stream(self, stream: int) -> None:
        """Give a stream back."""

    def synchronize(self, stream: int) -> None:
        """Wait until everything queued is done."""

    def begin_capture(self, stream: int) -> None:
        """Record what is queued from now on instead of running it."""

    def end_capture(self, stream: int) -> int:
        """Stop recording and return an executable graph."""

    def launch_graph(self, graph: int, stream: int) -> None:
        """Queue a recorded graph."""

    def destroy_graph(self, graph: int) -> None:
        """Give a graph back."""

    def memory(self) -> tuple[int, int]:
        """Bytes of device memory that are free, and all there are."""


class Cuda:
    """``CudaRuntime`` over the CUDA runtime library, however it is called.

    Args:
        call: ``call("cudaMalloc", size)`` returns what the function gives besides its error code.
    """

    def __init__(self, call: Callable[..., Any]) -> None:
        self._call = call

    def set_device(self, index: int) -> None:
        self._call("cudaSetDevice", index)

    def allocate(self, size_bytes: int) -> int:
        return int(self._call("cudaMalloc", size_bytes))

    def free(self, pointer: int) -> None:
        self._call("cudaFree", pointer)

    def allocate_pinned(self, size_bytes: int) -> int:
        return int(self._call("cudaHostAlloc", size_bytes, 0))

    def free_pinned(self, pointer: int) -> None:
        self._call("cudaFreeHost", pointer)

    def copy_to_device(self, device: int, host: int, size_bytes: int, stream: int) -> None:
        self._call("cudaMemcpyAsync", device, host, size_bytes, TO_DEVICE, stream)

    def copy_to_host(self, host: int, device: int, size_bytes: int, stream: int) -> None:
        self._call("cudaMemcpyAsync", host, device, size_bytes, TO_HOST, stream)

    def create_stream(self) -> int:
        return int(self._call("cudaStreamCreateWithFlags", NON_BLOCKING))

    def destroy_stream(self, stream: int) -> None:
        self._call("cudaStreamDestroy", stream)

    def synchronize(self, stream: int) -> None:
        self._call("cudaStreamSynchronize", stream)

    def begin_capture(self, stream: int) -> None:
        self._call("cudaStreamBeginCapture", stream, THREAD_LOCAL)

    def end_capture(self, stream: int) -> int:
        recorded = self._call("cudaStreamEndCapture", stream)
        try:
            return int(self._call("cudaGraphInstantiateWithFlags", recorded, 0))
        finally:
            self._call("cudaGraphDestroy", recorded)

    def launch_graph(self, graph: int, stream: int) -> None:
        self._call("cudaGraphLaunch", graph, stream)

    def destroy_graph(self, graph: int) -> None:
        self._call("cudaGraphExecDestroy", graph)

    def memory(self) -> tuple[int, int]:
        free, total = self._call("cudaMemGetInfo")
        return int(free), int(total)


def load_cuda() -> Cuda:
    """The CUDA runtime: NVIDIA's ``cuda.bindings`` where installed, otherwise the shared library itself.

    Raises:
        BackendUnavailable: neither is there.
    """
    try:
        from cuda.bindings import runtime
    except ModuleNotFoundError:
        return Cuda(library_caller(_load_cudart()))
    return Cuda(bindings_caller(runtime))


def bindings_caller(runtime: Any) -> Callable[..., Any]:
    """Call through the module ``cuda.bindings.runtime``, which gives ``(error, value, …)`` and takes its own enums."""
    enums = {("cudaMemcpyAsync", 3): "cudaMemcpyKind", ("cudaStreamBeginCapture", 1): "cudaStreamCaptureMode"}

    def call(name: str, *arguments: Any) -> Any:
        values = [
            getattr(runtime, enums[name, i])(value) if (name, i) in enums else value
            for i, value in enumerate(arguments)
        ]
        error, *results = getattr(runtime, name)(*values)
        if int(error):
            _refuse(name, int(error), runtime.cudaGetErrorString(error)[1])
        return tuple(results) if len(results) > 1 else next(iter(results), None)

    return call


def library_caller(cudart: Any) -> Callable[..., Any]:
    """Call the shared library through ctypes."""
    cudart.cudaGetErrorString.restype = ctypes.c_char_p
    cudart.cudaGetErrorString.argtypes = [ctypes.c_int]

    def call(name: str, *arguments: Any) -> Any:
        given, results = iter(arguments), []
        values = []
        for kind, is_result in SIGNATURES[name]:
            values.append(kind(0) if is_result else kind(next(given)))
            if is_result:
                results.append(values[-1])
        passed = [
            ctypes.byref(v) if is_result else v for v, (_, is_result) in zip(values, SIGNATURES[name], strict=True)
        ]
        if error := getattr(cudart, name)(*passed):
            _refuse(name, error, cudart.cudaGetErrorString(error))
        found = tuple(value.value or 0 for value in results)
        return found if len(found) > 1 else next(iter(found), None)

    return call


def _signature(text: str) -> tuple[tuple[Any, bool], ...]:
    """``"*p z"`` gives a pointer back and takes a size; ``p`` is a pointer or handle, ``z`` a size, ``q`` 64 bits."""
    kinds = {"p": ctypes.c_void_p, "z": ctypes.c_size_t, "i": ctypes.c_int, "q": ctypes.c_ulonglong}
    return tuple((kinds[word[-1]], word.startswith("*")) for word in text.split())


SIGNATURES = {
    name: _signature(text)
    for name, text in {
        "cudaSetDevice": "i",
        "cudaMalloc": "*p z",
        "cudaFree": "p",
        "cudaHostAlloc": "*p z i",
        "cudaFreeHost": "p",
        "cudaMemcpyAsync": "p p z i p",
        "cudaStreamCreateWithFlags": "*p i",
        "cudaStreamDestroy": "p",
        "cudaStreamSynchronize": "p",
        "cudaStreamBeginCapture": "p i",
        "cudaStreamEndCapture": "p *p",
        "cudaGraphInstantiateWithFlags": "*p p q",
        "cudaGraphDestroy": "p",
        "cudaGraphLaunch": "p p",
        "cudaGraphExecDestroy": "p",
        "cudaMemGetInfo": "*z *z",
    }.items()
}


def _load_cudart() -> Any:
    for name in (*CUDART, ctypes.util.find_library("cudart")):
        try:
            if name:
                return ctypes.CDLL(name)
        except OSError:
            continue
    raise BackendUnavailable("no CUDA runtime library: libcudart was not found; pip install cuda-python")


def _refuse(name: str, code: int, text: bytes | str | None) -> None:
    words = text.decode(errors="replace") if isinstance(text, bytes) else text or "no description"
    raise BackendUnavailable(f"CUDA failed in {name}: {one_line(words)} (error {code})")


def _driver_call(driver: Any, name: str, *arguments: Any) -> None:
    code = getattr(driver, name)(*arguments)
    if not code:
        return
    text = ctypes.c_char_p()
    driver.cuGetErrorString(ctypes.c_int(code), ctypes.byref(text))
    _refuse(name, code, text.value)


def _gpu(driver: Any, index: int, cuda: str) -> Gpu:
    device, major, minor, size = ctypes.c_int(), ctypes.c_int(), ctypes.c_int(), ctypes.c_size_t()
    name = ctypes.create_string_buffer(256)
    _driver_call(driver, "cuDeviceGet", ctypes.byref(device), ctypes.c_int(index))
    _driver_call(driver, "cuDeviceGetName", name, ctypes.c_int(len(name)), device)
    _driver_call(driver, "cuDeviceGetAttribute", ctypes.byref(major), ctypes.c_int(MAJOR), device)
    _driver_call(driver, "cuDeviceGetAttribute", ctypes.byref(minor), ctypes.c_int(MINOR), device)
    _driver_call(driver, "cuDeviceTotalMem_v2", ctypes.byref(size), device)
    title = name.value.decode(errors="replace")
    return Gpu(index, title, f"{major.value}.{minor.value}", size.value >> 20, cuda)

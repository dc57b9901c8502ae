"""CUDA through both of its doors, against a C library made of Python functions; and the driver's list of devices."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from edgecv.errors import BackendUnavailable, InputError
from edgecv.runtimes.cuda import (
    Cuda,
    CudaRuntime,
    bindings_caller,
    find_gpu,
    gpus,
    library_caller,
    load_cuda,
)

# What each method asks of the runtime, and what the runtime gives besides success. Values are larger than 32 bits
# where they are pointers, handles or sizes, so that one cut short is seen.
BIG = 0x7F12_3456_789A
CALLS: dict[str, tuple[tuple[int, ...], Any, list[tuple[str, tuple[int, ...]]]]] = {
    "set_device": ((1,), None, [("cudaSetDevice", (1,))]),
    "allocate": ((BIG,), BIG + 1, [("cudaMalloc", (BIG,))]),
    "free": ((BIG,), None, [("cudaFree", (BIG,))]),
    "allocate_pinned": ((BIG,), BIG + 1, [("cudaHostAlloc", (BIG, 0))]),
    "free_pinned": ((BIG,), None, [("cudaFreeHost", (BIG,))]),
    "copy_to_device": (
        (BIG, BIG + 2, BIG + 3, BIG + 4),
        None,
        [("cudaMemcpyAsync", (BIG, BIG + 2, BIG + 3, 1, BIG + 4))],
    ),
    "copy_to_host": (
        (BIG, BIG + 2, BIG + 3, BIG + 4),
        None,
        [("cudaMemcpyAsync", (BIG, BIG + 2, BIG + 3, 2, BIG + 4))],
    ),
    "create_stream": ((), BIG + 1, [("cudaStreamCreateWithFlags", (1,))]),
    "destroy_stream": ((BIG,), None, [("cudaStreamDestroy", (BIG,))]),
    "synchronize": ((BIG,), None, [("cudaStreamSynchronize", (BIG,))]),
    "begin_capture": ((BIG,), None, [("cudaStreamBeginCapture", (BIG, 1))]),
    "end_capture": (
        (BIG,),
        BIG + 1,
        [
            ("cudaStreamEndCapture", (BIG,)),
            ("cudaGraphInstantiateWithFlags", (BIG + 1, 0)),
            ("cudaGraphDestroy", (BIG + 1,)),
        ],
    ),
    "launch_graph": ((BIG, BIG + 2), None, [("cudaGraphLaunch", (BIG, BIG + 2))]),
    "destroy_graph": ((BIG,), None, [("cudaGraphExecDestroy", (BIG,))]),
    "memory": ((), (BIG + 1, BIG + 2), [("cudaMemGetInfo", ())]),
}
# As cuda_runtime_api.h declares them.
PROTOTYPES = {
    "cudaFree": "void *devPtr",
    "cudaFreeHost": "void *ptr",
    "cudaGraphDestroy": "cudaGraph_t graph",
    "cudaGraphExecDestroy": "cudaGraphExec_t graphExec",
    "cudaGraphInstantiateWithFlags": "cudaGraphExec_t *pGraphExec, cudaGraph_t graph, unsigned long long flags",
    "cudaGraphLaunch": "cudaGraphExec_t graphExec, cudaStream_t stream",
    "cudaHostAlloc": "void **pHost, size_t size, unsigned int flags",
    "cudaMalloc": "void **devPtr, size_t size",
    "cudaMemGetInfo": "size_t *free, size_t *total",
    "cudaMemcpyAsync": "void *dst, const void *src, size_t count, enum cudaMemcpyKind kind, cudaStream_t stream",
    "cudaSetDevice": "int device",
    "cudaStreamBeginCapture": "cudaStream_t stream, enum cudaStreamCaptureMode mode",
    "cudaStreamCreateWithFlags": "cudaStream_t *pStream, unsigned int flags",
    "cudaStreamDestroy": "cudaStream_t stream",
    "cudaStreamEndCapture": "cudaStream_t stream, cudaGraph_t *pGraph",
    "cudaStreamSynchronize": "cudaStream_t stream",
}


def c_type(parameter: str) -> tuple[Any, bool]:
    """The ctypes type of a parameter, without the star through which a result is given, and whether it is one."""
    kind = parameter.rpartition(" ")[0].removeprefix("const ")
    is_result = "**" in parameter or ("*" in parameter and kind != "void")
    for word, found in (("size_t", ctypes.c_size_t), ("long long", ctypes.c_ulonglong), ("enum", ctypes.c_int)):
        if word in kind:
            return found, is_result
    return (ctypes.c_int if "int" in kind.split() else ctypes.c_void_p), is_result


RESULTS = {name: sum(c_type(item)[1] for item in text.split(", ")) for name, text in PROTOTYPES.items()}


class Recorder:
    """Both forms of the runtime: C functions for ctypes, and a module as ``cuda.bindings`` has it."""

    def __init__(self, error: int = 0) -> None:
        self.calls: list[tuple[str, tuple[int, ...]]] = []
        self.error = error

    def library(self) -> Any:
        text = ctypes.create_string_buffer(b"out of memory")
        found = SimpleNamespace(**{name: self._c_function(name) for name in PROTOTYPES})
        found.cudaGetErrorString = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_int)(lambda _: ctypes.addressof(text))
        return found

    def _c_function(self, name: str) -> Any:
        kinds = [c_type(parameter) for parameter in PROTOTYPES[name].split(", ")]
        types = [ctypes.POINTER(kind) if is_result else kind for kind, is_result in kinds]

        def function(*values: Any) -> int:
            given = [value or 0 for value, (_, is_result) in zip(values, kinds, strict=True) if not is_result]
            self.calls.append((name, tuple(given)))
            results = [value for value, (_, is_result) in zip(values, kinds, strict=True) if is_result]
            for index, result in enumerate(results, 1):
                result[0] = BIG + index
            return self.error

        return ctypes.CFUNCTYPE(ctypes.c_int, *types)(function)

    def module(self) -> Any:
        def function(name: str) -> Callable[..., Any]:
            def call(*values: Any) -> Any:
                if name == "cudaMemcpyAsync":
                    assert isinstance(values[3], Kind), "the bindings take their own enumeration"
                self.calls.append((name, tuple(int(value) for value in values)))
                return (self.error, *(BIG + index for index in range(1, RESULTS[name] + 1)))

            return call

        class Kind(int):
            pass

        found = SimpleNamespace(**{name: function(name) for name in PROTOTYPES})
        found.cudaMemcpyKind = found.cudaStreamCaptureMode = Kind
        found.cudaGetErrorString = lambda error: (0, b"out of memory")
        return found

    def cuda(self, door: str) -> Cuda:
        return Cuda(library_caller(self.library()) if door == "ctypes" else bindings_caller(self.module()))


@pytest.mark.parametrize("door", ["ctypes", "bindings"])
@pytest.mark.parametrize("method", CALLS)
def test_each_method_calls_what_it_says_and_loses_no_bit(method: str, door: str) -> None:
    arguments, result, calls = CALLS[method]
    recorder = Recorder()
    assert getattr(recorder.cuda(door), method)(*arguments) == result
    assert recorder.calls == calls


@pytest.mark.parametrize("door", ["ctypes", "bindings"])
def test_an_error_names_the_call_and_the_reason(door: str) -> None:
    with pytest.raises(BackendUnavailable, match=r"CUDA failed in cudaMalloc: out of memory \(error 2\)"):
        Recorder(error=2).cuda(door).allocate(1)


def test_every_method_of_the_protocol_is_tested() -> None:
    methods = {name for name in vars(CudaRuntime) if not name.startswith("_")}
    assert methods == set(CALLS)


def test_nvidia_s_bindings_are_preferred_and_their_absence_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder()
    package, bindings = ModuleType("cuda"), ModuleType("cuda.bindings")
    bindings.__dict__["runtime"] = recorder.module()
    monkeypatch.setitem(sys.modules, "cuda", package)
    monkeypatch.setitem(sys.modules, "cuda.bindings", bindings)
    load_cuda().set_device(3)
    assert recorder.calls == [("cudaSetDevice", (3,))]
    monkeypatch.setitem(sys.modules, "cuda", None)
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    monkeypatch.setattr("edgecv.runtimes.cuda.ctypes.CDLL", lambda name: Recorder().library())
    assert load_cuda().allocate(4) == BIG + 1


def test_no_runtime_library_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setitem(sys.modules, "cuda", None)
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    monkeypatch.setattr("edgecv.runtimes.cuda.ctypes.CDLL", missing)
    with pytest.raises(BackendUnavailable, match="libcudart was not found; pip install cuda-python"):
        load_cuda()


class Driver:
    """``libcuda`` with two devices, or with what a test breaks."""

    def __init__(self, count: int = 2, init: int = 0) -> None:
        self._count, self._init = count, init

    def cuInit(self, flags: Any) -> int:  # noqa: N802  (NVIDIA's name)
        return self._init

    def cuDeviceGetCount(self, count: Any) -> int:  # noqa: N802
        count._obj.value = self._count
        return 0

    def cuDriverGetVersion(self, version: Any) -> int:  # noqa: N802
        version._obj.value = 12060
        return 0

    def cuDeviceGet(self, device: Any, index: Any) -> int:  # noqa: N802
        device._obj.value = index.value
        return 0

    def cuDeviceGetName(self, name: Any, size: Any, device: Any) -> int:  # noqa: N802
        name.value = f"Orin {device.value}".encode()
        return 0

    def cuDeviceGetAttribute(self, value: Any, attribute: Any, device: Any) -> int:  # noqa: N802
        value._obj.value = {75: 8, 76: 7}[attribute.value]
        return 0

    def cuDeviceTotalMem_v2(self, size: Any, device: Any) -> int:  # noqa: N802
        size._obj.value = 32 << 30
        return 0

    def cuGetErrorString(self, code: Any, text: Any) -> int:  # noqa: N802
        text._obj.value = b"system has unsupported display driver"
        return 0


def test_devices_are_read_from_the_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgecv.runtimes.cuda.ctypes.CDLL", lambda name: Driver())
    first, second = gpus()
    assert (first.name, first.compute_capability, first.memory_mb, first.driver) == ("Orin 0", "8.7", 32 << 10, "12.6")
    assert (second.index, second.name) == (1, "Orin 1")
    assert find_gpu("cpu") == find_gpu("cuda") == find_gpu("cuda:0") == first
    assert find_gpu("cuda:1") == second


@pytest.mark.parametrize("device", ["gpu", "cuda:", "cuda:-1", "CUDA", "cuda:x", "", "cuda:0 "])
def test_a_device_that_is_no_cuda_device_is_refused(device: str) -> None:
    with pytest.raises(InputError, match="runs on device 'cuda' or 'cuda:N', got"):
        find_gpu(device)


def test_a_device_too_many_names_those_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgecv.runtimes.cuda.ctypes.CDLL", lambda name: Driver(count=1))
    with pytest.raises(InputError, match=r"there is no device 'cuda:2', only cuda:0 \(Orin 0\)"):
        find_gpu("cuda:2")


def test_no_driver_and_no_device_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr("edgecv.runtimes.cuda.ctypes.CDLL", missing)
    with pytest.raises(BackendUnavailable, match=r"no NVIDIA driver: libcuda\.so\.1 not found"):
        gpus()
    monkeypatch.setattr("edgecv.runtimes.cuda.ctypes.CDLL", lambda name: Driver(count=0))
    with pytest.raises(BackendUnavailable, match="no NVIDIA device: the driver is there and finds none"):
        gpus()
    monkeypatch.setattr("edgecv.runtimes.cuda.ctypes.CDLL", lambda name: Driver(init=803))
    with pytest.raises(BackendUnavailable, match=r"failed in cuInit: system has unsupported .* \(error 803\)"):
        gpus()

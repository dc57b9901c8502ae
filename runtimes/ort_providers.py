"""ONNX Runtime's execution providers by the device a person names, and whether a session really uses them."""

from __future__ import annotations

from typing import Any

import onnxruntime

from edgecv.errors import BackendUnavailable, InputError
from edgecv.plugins import unknown

__all__ = ["DEVICES", "check_in_use", "providers_for"]

CPU, CUDA, TENSORRT = "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"
DEVICES = {"cpu": (CPU,), "cuda": (CUDA, CPU), "tensorrt": (TENSORRT, CUDA, CPU)}  # by preference, node by node
PACKAGES = {CUDA: "onnxruntime-gpu", TENSORRT: "onnxruntime-gpu and TensorRT's libraries"}
RECORDS = {CUDA: "enable_cuda_graph", TENSORRT: "trt_cuda_graph_enable"}  # the option that records a CUDA graph

Provider = str | tuple[str, dict[str, Any]]


def providers_for(device: str, cuda_graph: bool = False) -> list[Provider]:
    """The providers to ask for, for ``"cpu"``, ``"cuda"`` or ``"tensorrt"``; ``"cuda:1"`` is the second GPU.

    With ``cuda_graph`` the first of them is told to record one.

    Raises:
        InputError: no such device.
        BackendUnavailable: this ONNX Runtime was built without it.
    """
    name, colon, index = device.partition(":")
    if name not in DEVICES:
        raise InputError("backend 'onnxruntime': " + unknown("device", device, DEVICES))
    if colon and (name == "cpu" or not index.isdecimal()):
        raise InputError(f"a GPU's device is 'cuda:1' or 'tensorrt:1', by its number, got {device!r}")
    first = DEVICES[name][0]
    if cuda_graph and first not in RECORDS:
        raise InputError(f"device {device!r} records no CUDA graphs: leave cuda_graph out, or name a GPU")
    if first not in onnxruntime.get_available_providers():
        raise BackendUnavailable(
            f"onnxruntime {onnxruntime.__version__} here has no {first}, which device {device!r} takes: "
            f"install {PACKAGES.get(first, 'onnxruntime')}"
        )
    options = {item: {"device_id": int(index or 0)} for item in DEVICES[name] if item != CPU}
    if cuda_graph:
        options[first][RECORDS[first]] = True
    return [(item, options[item]) if item in options else item for item in DEVICES[name]]


def check_in_use(session: Any, device: str) -> None:
    """Refuse a session that has silently fallen back: ONNX Runtime goes on without a provider that fails to load.

    Raises:
        BackendUnavailable: the first provider of ``device`` is not among those the session says it uses.
    """
    wanted, used = DEVICES[device.partition(":")[0]][0], session.get_providers()
    if wanted not in used:
        raise BackendUnavailable(
            f"onnxruntime could not start its {wanted} and went on with {', '.join(used)}: see the driver, and the "
            "versions of CUDA and cuDNN it was built for"
        )

"""Make the code under test take a world for the real library, driver and CUDA."""

from __future__ import annotations

import importlib
import subprocess
import sys
from importlib.machinery import ModuleSpec
from typing import Any

import pytest

from edgecv.converters import tensorrt_build, tensorrt_from_onnx
from edgecv.errors import InputError
from edgecv.runtimes import engine, trt_session
from tests.tensorrt.world import World


def inhabit(world: World, monkeypatch: pytest.MonkeyPatch) -> World:
    """Put the world's library, driver and CUDA where the real ones would be; builds run in this process."""
    for names in engine.LIBRARIES.values():
        for name in names:
            monkeypatch.setitem(sys.modules, name, None)
    world.library.__spec__ = ModuleSpec(world.backend, None)
    monkeypatch.setitem(sys.modules, world.backend, world.library)
    for module in ("edgecv.runtimes.trt", "edgecv.runtimes.trt_rtx"):
        monkeypatch.setitem(sys.modules, module, None)  # so that what is imported next goes when the test ends
        monkeypatch.delitem(sys.modules, module)

    def find(device: str) -> Any:
        if device not in ("cpu", "cuda", "cuda:0"):
            raise InputError(f"there is no device {device!r}")
        return world.gpu

    def run(command: list[str], **options: Any) -> Any:
        return subprocess.CompletedProcess(command, tensorrt_build.main(command[4:5]), "", "")

    monkeypatch.setattr(trt_session, "find_gpu", find)
    monkeypatch.setattr(trt_session, "load_cuda", lambda: world.cuda)
    monkeypatch.setattr(tensorrt_from_onnx, "find_gpu", find)
    monkeypatch.setattr("edgecv.converters.tensorrt_from_onnx.subprocess.run", run)
    return world


def session_type(world: World) -> Any:
    """The session class of the world's library, imported as the registry does, without its search for plug-ins."""
    name, kind = ("trt_rtx", "RtxSession") if world.backend == "tensorrt_rtx" else ("trt", "TrtSession")
    return getattr(importlib.import_module(f"edgecv.runtimes.{name}"), kind)

"""Builds in a process of its own: one that crashes, hangs, is killed or does not start is one line of an error."""

from __future__ import annotations

import importlib.util
import json
import logging
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgecv.errors import BackendUnavailable, ConversionError
from edgecv.runtimes.engine import read_record
from edgecv.testing import TINY_MODELS
from tests.conftest import require

require("onnx")

from edgecv.converters import tensorrt_build, tensorrt_from_onnx  # noqa: E402
from edgecv.converters.tensorrt_from_onnx import TensorRtOptions  # noqa: E402
from tests.tensorrt.world import ORIN  # noqa: E402

ROOT = Path(__file__).parents[2]
BUILDER = """
    import os, signal, sys, time
    __version__ = "11.4.0"
    class ILogger:
        pass
    def init_libnvinfer_plugins(logger, namespace):
        pass
    def Builder(logger):
        logger.log(3, "starting")
        logger.log(1, "Error Code 10:\\n  no implementation for node conv_7")
"""
DOUBLE = """
    import sys
    from tests.tensorrt.world import World
    sys.modules[__name__] = World("11.4").library
"""

Build = Callable[..., Path]


@pytest.fixture
def build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Build:
    """``build(source, end)``: build a tiny graph with a ``tensorrt`` whose code is ``source`` and then ``end``."""

    def run(source: str, end: str = "", **options: float) -> Path:
        package = tmp_path / "site" / "tensorrt"
        package.mkdir(parents=True)
        body = textwrap.dedent(source) + textwrap.indent(textwrap.dedent(end), "    " if source == BUILDER else "")
        (package / "__init__.py").write_text(body)
        monkeypatch.syspath_prepend(ROOT)
        monkeypatch.syspath_prepend(package.parent)
        monkeypatch.setattr(tensorrt_from_onnx, "find_gpu", lambda device: ORIN)
        find = importlib.util.find_spec
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: name == "tensorrt" or find(name))
        graph = TINY_MODELS["conv_relu"].write(tmp_path)
        return tensorrt_from_onnx.tensorrt_from_onnx(graph, tmp_path, TensorRtOptions(**options))  # type: ignore[arg-type]

    return run


def left(folder: Path) -> list[str]:
    return sorted(item.name for item in folder.iterdir() if item.is_file())


def test_a_build_in_another_process_gives_the_plan_and_its_record(build: Build) -> None:
    path = build(DOUBLE)
    record = read_record(path)
    assert record is not None
    assert record.place.version == "11.4.0.106"
    record.check_plan(path)


@pytest.mark.parametrize(
    ("end", "telling"),
    [
        (
            "os.kill(os.getpid(), signal.SIGSEGV)",
            "was killed by SIGSEGV: Error Code 10: no implementation for node conv_7",
        ),
        ("os.kill(os.getpid(), signal.SIGKILL)", r"was killed by SIGKILL \(out of memory\?\): Error Code 10"),
        ("os._exit(3)", "failed with exit status 3: Error Code 10"),
        ("raise ZeroDivisionError('of its own')", "failed with exit status 1: Error Code 10"),
    ],
)
def test_a_builder_that_dies_is_one_line_with_its_last_words(
    build: Build, tmp_path: Path, end: str, telling: str
) -> None:
    with pytest.raises(ConversionError, match=f"^the builder of tensorrt {telling}") as caught:
        build(BUILDER, end)
    assert "\n" not in str(caught.value)
    assert left(tmp_path) == ["conv_relu.onnx"]


def test_the_whole_log_goes_to_the_library_s_logger(build: Build, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "edgecv.converters")
    with pytest.raises(ConversionError):
        build(BUILDER, "os._exit(3)")
    assert "I starting\nE Error Code 10: no implementation" in caplog.text


def test_a_builder_that_hangs_is_given_up(build: Build, tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match=r"tensorrt did not finish within 2\.0 s"):
        build(BUILDER, "time.sleep(600)", timeout_s=2.0)
    assert left(tmp_path) == ["conv_relu.onnx"]


def test_a_broken_library_is_told_from_a_refused_graph(build: Build) -> None:
    with pytest.raises(BackendUnavailable, match=r"^libnvinfer\.so\.10: cannot open shared object file$"):
        build("raise ImportError('libnvinfer.so.10: cannot open shared object file')")


def test_a_crash_after_the_plan_was_written_is_a_warning(build: Build, caplog: pytest.LogCaptureFixture) -> None:
    end = "import atexit, os, signal\natexit.register(lambda: os.kill(os.getpid(), signal.SIGSEGV))\n"
    path = build(f"{textwrap.dedent(DOUBLE)}{end}")
    assert read_record(path) is not None
    assert "was killed by SIGSEGV after it was done" in caplog.text


def test_a_device_without_torch_and_onnx_can_build() -> None:
    code = """
import sys
for name in ("torch", "onnx", "onnxruntime", "openvino", "tensorrt", "tensorrt_rtx", "tensorrt_rtx_bindings"):
    sys.modules[name] = None
from edgecv.converters.registry import converter
for name in ("tensorrt", "tensorrt_rtx"):
    print(converter(name).format)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.split() == ["tensorrt", "tensorrt_rtx"], done.stderr


def test_the_process_needs_neither_torch_nor_onnx(tmp_path: Path) -> None:
    request: dict[str, Any] = {"library": "tensorrt", "onnx": "x", "plan": "y", "options": {}, "gpu": None}
    (tmp_path / "request.json").write_text(json.dumps(request))
    code = f"""
import runpy, sys
for name in ("torch", "onnx", "tensorrt"):
    sys.modules[name] = None
sys.argv = ["build", {str(tmp_path)!r}]
runpy.run_path({str(tensorrt_build.__file__)!r}, run_name="__main__")
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["status"] == "unavailable"
    assert "tensorrt" in result["message"]

"""ONNX graph to a TensorRT engine: a plan, and beside it the record of what it was built from and for."""

from __future__ import annotations

import importlib.util
import logging
import signal
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

from edgecv.converters import tensorrt_build
from edgecv.converters.registry import Converter
from edgecv.converters.tensorrt_build import BuildRequest, BuildResult, TensorRtOptions
from edgecv.errors import BackendUnavailable, ConversionError, InputError, one_line
from edgecv.files import write_file
from edgecv.runtimes.cuda import Gpu, find_gpu
from edgecv.runtimes.engine import LIBRARIES, read_record, record_path
from edgecv.schema import decode, dumps, loads

__all__ = ["CONVERTER", "RTX_CONVERTER", "TensorRtOptions", "tensorrt_from_onnx", "tensorrt_rtx_from_onnx"]

ERRORS = {"refused": ConversionError, "wrong_option": InputError, "unavailable": BackendUnavailable}
# Run a file with this process's path; with its own folder on it, its neighbours would hide modules of the same name.
RUN_FILE = """
import runpy, sys
sys.argv, sys.path[:] = sys.argv[1:3], sys.argv[3:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
LOGGER = logging.getLogger(__name__)


def tensorrt_from_onnx(onnx_path: Path, folder: Path, options: TensorRtOptions | None = None) -> Path:
    """Build a TensorRT engine for this device into ``folder`` and return the ``.engine`` file.

    Beside it stands ``NAME.engine.json``, the record. An engine that is there already, built from the same graph with
    the same options by the same library on the same device, is kept: call this at each start of a device, and it
    builds after a change only. The build runs in a process of its own.

    Raises:
        ConversionError: TensorRT refuses the graph, crashes on it, or builds it in another precision than the graph's.
        InputError: an option does not fit the graph.
        BackendUnavailable: TensorRT, the NVIDIA driver or the device is missing.
    """
    return _convert("tensorrt", onnx_path, folder, options or TensorRtOptions())


def tensorrt_rtx_from_onnx(onnx_path: Path, folder: Path, options: TensorRtOptions | None = None) -> Path:
    """Build a TensorRT-RTX engine; as ``tensorrt_from_onnx``, but a machine without a GPU builds for every RTX GPU."""
    return _convert("tensorrt_rtx", onnx_path, folder, options or TensorRtOptions())


def _convert(library: str, onnx_path: Path, folder: Path, options: TensorRtOptions) -> Path:
    if library == "tensorrt_rtx" and options.timing_cache is not None:
        raise InputError("TensorRT-RTX times no kernels when it builds and has no timing cache: leave timing_cache out")
    _check_library(library)
    target = folder / onnx_path.with_suffix(".engine").name
    gpu = _gpu(library, options)
    with tempfile.TemporaryDirectory(prefix="edgecv-tensorrt-") as scratch:
        plan = Path(scratch, "plan")
        request = BuildRequest(library, str(onnx_path.absolute()), str(plan), options, gpu, _held_key(target))
        result = _build_apart(request, Path(scratch))
        if result.record is not None:
            write_file(target, plan.read_bytes())
            write_file(record_path(target), dumps(result.record))
    return target


def _check_library(library: str) -> None:
    if all(importlib.util.find_spec(name) is None for name in LIBRARIES[library]):
        raise BackendUnavailable(
            f"converting for {library!r} needs the Python package {LIBRARIES[library][-1]!r}, which is not installed: "
            f"pip install 'edgecv[{library.replace('_', '-')}]'"
        )


def _gpu(library: str, options: TensorRtOptions) -> Gpu | None:
    try:
        return find_gpu(options.device)
    except BackendUnavailable:
        if library == "tensorrt":
            raise
        return None


def _held_key(target: Path) -> str | None:
    """The key of the engine that is there, where it is whole; anything else is built anew."""
    try:
        record = read_record(target)
        if record is None:
            return None
        record.check_plan(target)
    except (InputError, FileNotFoundError) as error:
        LOGGER.info("%s is built anew: %s", target, error)
        return None
    return record.key


def _build_apart(request: BuildRequest, folder: Path) -> BuildResult:
    """Run the build in a process of its own, which may die, and whose memory goes back to the system."""
    write_file(folder / "request.json", dumps(request))
    command = [sys.executable, "-c", RUN_FILE, str(Path(tensorrt_build.__file__)), str(folder), *sys.path]
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=request.options.timeout_s,
        )
    except subprocess.TimeoutExpired as error:
        raise ConversionError(f"{request.library} did not finish within {request.options.timeout_s} s") from error
    log = _read(folder / "log.txt")
    LOGGER.debug("%s, building %s:\n%s%s", request.library, request.onnx, log, done.stderr)
    where = folder / "result.json"
    if not where.is_file():
        raise ConversionError(
            f"the builder of {request.library} {_end(done.returncode)}: {_last_words(log, done.stderr)}"
        )
    result = decode(BuildResult, loads(where.read_bytes(), str(where)), str(where))
    if result.status in ERRORS:
        raise ERRORS[result.status](result.message)
    if done.returncode:  # with the plan written: some libraries crash when they are unloaded
        LOGGER.warning("the builder of %s %s after it was done", request.library, _end(done.returncode))
    return result


def _end(code: int) -> str:
    if code >= 0:
        return f"failed with exit status {code}"
    name = signal.Signals(-code).name
    return f"was killed by {name}{' (out of memory?)' if name == 'SIGKILL' else ''}"


def _last_words(log: str, stderr: str) -> str:
    """The last complaints of the log, or its last line, or the last of what was printed."""
    lines = log.splitlines()
    errors = [line[2:] for line in lines if line[:1] in "FE"][-3:]
    return one_line("; ".join(errors or [line[2:] for line in lines[-1:]] or stderr.splitlines()[-1:]) or "no message")


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


CONVERTER, RTX_CONVERTER = (
    Converter(name, {name: oldest}, convert, layout="tensorrt", ready=partial(_check_library, name))
    for name, oldest, convert in (
        ("tensorrt", "10.3", tensorrt_from_onnx),
        ("tensorrt_rtx", "1.7", tensorrt_rtx_from_onnx),
    )
)

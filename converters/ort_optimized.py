"""ONNX graph to what ONNX Runtime loads on a phone: optimized beforehand, and in its own format for small builds."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import onnx
import onnxruntime

from edgecv.converters import ort_write
from edgecv.converters.registry import Converter
from edgecv.errors import ConversionError, one_line
from edgecv.files import write_file

__all__ = ["CONVERTER", "ort_format_from_onnx", "ort_optimized_from_onnx"]


def ort_format_from_onnx(onnx_path: Path, folder: Path) -> Path:
    """Write the optimized graph in ORT format into ``folder``, as ``model.ort`` for ``model.onnx``; return that file.

    Beside it stands ``model.required_operators.config``, with the operators and types that the graph needs: what
    ``--include_ops_by_config`` of ONNX Runtime's build takes. The file runs on any CPU (no x86-only layout) and gives
    the same bytes each time.

    Raises:
        ConversionError: ONNX Runtime refuses the graph.
    """
    target = folder / onnx_path.with_suffix(".ort").name
    config = folder / onnx_path.with_suffix(".required_operators.config").name
    with tempfile.TemporaryDirectory() as scratch:
        model, operators = Path(scratch, "model.ort"), Path(scratch, "operators.config")
        _write("ort", onnx_path, model, operators)
        write_file(config, f"# The operators of {target.name}\n{operators.read_text()}")
        write_file(target, model.read_bytes())
    return target


def ort_optimized_from_onnx(onnx_path: Path, folder: Path) -> Path:
    """Write the graph into ``folder`` as ONNX Runtime's extended optimizations leave it; return the file.

    It opens faster, and only in ONNX Runtime: fused nodes are of its own domain. Layouts that only one kind of CPU has
    are left out.

    Raises:
        ConversionError: ONNX Runtime refuses the graph.
    """
    target = folder / onnx_path.name
    with tempfile.TemporaryDirectory() as scratch:
        written = Path(scratch, "model.onnx")
        _write("onnx", onnx_path, written)
        model = onnx.load(written)
    domains = sorted(model.opset_import, key=lambda item: item.domain)  # they come in the order of a hash table
    del model.opset_import[:]
    model.opset_import.extend(domains)
    write_file(target, model.SerializeToString(deterministic=True))
    return target


def _write(form: str, *paths: Path) -> None:
    """Run the writer in a process of its own."""
    command = [sys.executable, str(Path(ort_write.__file__)), form, *map(str, paths)]
    environment = {**os.environ, "PYTHONSAFEPATH": "1"}  # this folder's modules are not to be found by their bare names
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", env=environment, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"its process ended with status {done.returncode}"]
        raise ConversionError(f"ONNX Runtime {onnxruntime.__version__} refuses {paths[0].name}: {one_line(lines[-1])}")


# On a CPU, ONNX Runtime turns a float16 graph back into float32 before it writes this format.
CONVERTER = Converter("ort", {"onnxruntime": "1.18"}, ort_format_from_onnx, backend="onnxruntime", precisions=("fp32",))

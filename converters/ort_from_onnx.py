"""ONNX graph to what ONNX Runtime loads: the graph itself, proven to load."""

from __future__ import annotations

import shutil
from pathlib import Path

import onnxruntime

from edgecv.converters.registry import Converter
from edgecv.errors import ConversionError, InputError
from edgecv.runtimes.ort import OrtSession

__all__ = ["CONVERTER", "ort_from_onnx"]


def ort_from_onnx(onnx_path: Path, folder: Path) -> Path:
    """Put the graph into ``folder`` and return the file that ONNX Runtime opens.

    Raises:
        ConversionError: ONNX Runtime refuses the graph.
    """
    target = folder / onnx_path.name
    shutil.copyfile(onnx_path, target)
    try:
        OrtSession(target).close()
    except InputError as error:
        raise ConversionError(f"ONNX Runtime {onnxruntime.__version__} refuses the graph: {error}") from error
    return target


# ONNX Runtime 1.18 is the first that reads IR version 10.
CONVERTER = Converter("onnx", {"onnxruntime": "1.18"}, ort_from_onnx)

"""The converters by the backend they write for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

from edgecv.plugins import Table

__all__ = ["CONVERTERS", "Converter", "converter"]

CONVERTERS = Table(
    kind="backend to convert for",
    group="edgecv.converters",
    builtin={
        "onnxruntime": "edgecv.converters.ort_from_onnx:CONVERTER",
        "onnxruntime_mobile": "edgecv.converters.ort_optimized:CONVERTER",
        "openvino": "edgecv.converters.openvino_from_onnx:CONVERTER",
        "tensorrt": "edgecv.converters.tensorrt_from_onnx:CONVERTER",
        "tensorrt_rtx": "edgecv.converters.tensorrt_from_onnx:RTX_CONVERTER",
    },
)


@dataclass(frozen=True, slots=True)
class Converter:
    """One step from an ONNX file to a backend's own files.

    Args:
        format: the first half of the variant's name, as ``onnx`` in ``onnx-fp32``.
        requires: the oldest library versions that run what is written.
        convert: ``convert(onnx_path, folder) -> main file``; raises ``ConversionError`` where the backend refuses.
        fp16: the same from the float32 graph, where the backend has a float16 of its own; by default the graph is
            brought to float16 before ``convert``.
        backend: what runs it, where that is not the name it is converted for.
        precisions: those that the backend's files keep.
        ready: raises ``BackendUnavailable`` where a library that ``convert`` needs is missing, before any work is done.
        layout: how quantized graphs are laid out for it: ``"cpu"`` or ``"tensorrt"``, see ``qdq_layouts``.
    """

    format: str
    requires: Mapping[str, str]
    convert: Callable[[Path, Path], Path]
    fp16: Callable[[Path, Path], Path] | None = None
    backend: str | None = None
    precisions: tuple[str, ...] = ("fp32", "fp16", "int8")
    layout: Literal["cpu", "tensorrt"] = "cpu"
    ready: Callable[[], None] | None = None


def converter(backend: str) -> Converter:
    """Import the converter for ``backend``; the errors are those of a table."""
    return cast(Converter, CONVERTERS.load(backend))

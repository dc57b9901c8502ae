"""The converters by the backend they write for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from edgecv.plugins import Table

__all__ = ["CONVERTERS", "Converter", "converter"]

CONVERTERS = Table(
    kind="backend to convert for",
    group="edgecv.converters",
    builtin={
        "onnxruntime": "edgecv.converters.ort_from_onnx:CONVERTER",
        "openvino": "edgecv.converters.openvino_from_onnx:CONVERTER",
    },
)


@dataclass(frozen=True, slots=True)
class Converter:
    """One step from an ONNX file to a backend's own files.

    Args:
        format: the first half of the variant's name, as ``onnx`` in ``onnx-fp32``.
        requires: the oldest library versions that run what is written.
        convert: ``convert(onnx_path, folder) -> main file``; raises ``ConversionError`` where the backend refuses.
    """

    format: str
    requires: Mapping[str, str]
    convert: Callable[[Path, Path], Path]


def converter(backend: str) -> Converter:
    """Import the converter for ``backend``; the errors are those of a table."""
    return cast(Converter, CONVERTERS.load(backend))

"""ONNX graph to OpenVINO IR: an ``.xml`` file with its ``.bin`` weights."""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import Any

import openvino
from openvino._offline_transformations import apply_moc_transformations

from edgecv.converters.registry import Converter
from edgecv.errors import ConversionError, one_line
from edgecv.runtimes.ov import ERRORS, read_model

__all__ = ["CONVERTER", "openvino_from_onnx"]


def openvino_from_onnx(onnx_path: Path, folder: Path, *, compress: bool = False) -> Path:
    """Write IR into ``folder`` and return the ``.xml`` file.

    Weights are stored as in the graph, or with ``compress`` in float16; the device decides what it computes in (a CPU
    without float16 arithmetic: in float32). ``openvino.convert_model`` is not used: it reports each use to its makers
    where openvino-telemetry is installed.

    Raises:
        ConversionError: OpenVINO refuses the graph.
    """
    target = folder / onnx_path.with_suffix(".xml").name
    try:
        model = read_model(onnx_path)
        apply_moc_transformations(model, cf=False)  # as OpenVINO does to any model: a device need not
        _number_anew(model)
        openvino.save_model(model, str(target), compress_to_fp16=compress)
    except ERRORS as error:
        raise ConversionError(f"OpenVINO {openvino.__version__} refuses the graph: {one_line(error)}") from error
    return target


def _number_anew(model: Any) -> None:
    """Number the nodes that OpenVINO named itself by their place in the graph, not by a counter of the process.

    Without it the same graph gives other bytes each time it is converted. A node that took the place of one of another
    type has that one's name.
    """
    for index, node in enumerate(model.get_ordered_ops()):
        if re.fullmatch(r"[A-Z][A-Za-z]*_\d+", node.get_friendly_name()):
            node.set_friendly_name(f"{node.get_type_name()}_{index}")


CONVERTER = Converter(
    "openvino",
    {"openvino": "2024.4"},
    openvino_from_onnx,
    fp16=functools.partial(openvino_from_onnx, compress=True),
)

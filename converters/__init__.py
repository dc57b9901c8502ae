"""From PyTorch to each backend's own files, and to a bundle that holds them.

Names are loaded on first use: what only reads ONNX graphs, such as ``lint``, needs no torch. A step has the name of
its module and is imported from there: ``from edgecv.converters.onnx_from_torch import onnx_from_torch``.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgecv.converters.bisecting import Divergence, Side, bisect
    from edgecv.converters.converting import ConvertOptions, convert
    from edgecv.converters.lint import Finding
    from edgecv.converters.onnx_from_torch import OnnxOptions
    from edgecv.converters.registry import CONVERTERS, Converter

__all__ = [
    "CONVERTERS",
    "ConvertOptions",
    "Converter",
    "Divergence",
    "Finding",
    "OnnxOptions",
    "Side",
    "bisect",
    "convert",
]

_HOMES = {
    "bisecting": ("Divergence", "Side", "bisect"),
    "converting": ("ConvertOptions", "convert"),
    "lint": ("Finding",),
    "onnx_from_torch": ("OnnxOptions",),
    "registry": ("CONVERTERS", "Converter"),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'edgecv.converters' has no attribute {name!r}")
    return getattr(importlib.import_module(f"edgecv.converters.{_HOME[name]}"), name)

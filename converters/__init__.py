"""From PyTorch to each backend's own files, and to a bundle that holds them."""

from edgecv.converters.converting import ConvertOptions, convert
from edgecv.converters.onnx_from_torch import OnnxOptions, onnx_from_torch
from edgecv.converters.registry import CONVERTERS, Converter

__all__ = ["CONVERTERS", "ConvertOptions", "Converter", "OnnxOptions", "convert", "onnx_from_torch"]

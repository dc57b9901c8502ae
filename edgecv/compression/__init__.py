"""Networks made smaller and faster: pruning and quantization."""

from edgecv.compression.quantization import QuantizeConfig, quantize

__all__ = ["QuantizeConfig", "quantize"]

"""Networks made smaller and faster: pruning and quantization."""

from edgecv.compression.pruning import PruneConfig, prune
from edgecv.compression.quantization import QuantizeConfig, quantize

__all__ = ["PruneConfig", "QuantizeConfig", "prune", "quantize"]

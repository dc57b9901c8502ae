"""Networks made smaller and faster: pruning, quantization and clustering."""

from edgecv.compression.clustering import ClusterConfig, cluster
from edgecv.compression.pruning import PruneConfig, prune
from edgecv.compression.quantization import QuantizeConfig, quantize

__all__ = ["ClusterConfig", "PruneConfig", "QuantizeConfig", "cluster", "prune", "quantize"]

"""Efficient vision networks from PyTorch to a measured, verified artifact on the device.

Importing this package imports nothing else: each public name is loaded on first use, so that a device needs only numpy
and one runtime.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgecv import models
    from edgecv.bundle import Bundle
    from edgecv.chain import Compression, compress
    from edgecv.compression.clustering import ClusterConfig, cluster
    from edgecv.compression.pruning import PruneConfig, prune
    from edgecv.compression.quantization import QuantizeConfig, quantize
    from edgecv.compression.trackers import quantize_tracker
    from edgecv.converters import ConvertOptions, OnnxOptions, convert
    from edgecv.converters.graphs import GraphOptions, convert_graph
    from edgecv.converters.packing import pack
    from edgecv.errors import (
        BackendUnavailable,
        BundleError,
        ConversionError,
        EdgeCVError,
        InputError,
        ParityError,
    )
    from edgecv.evaluation import evaluate
    from edgecv.models import load_checkpoint, save_checkpoint
    from edgecv.parity import verify
    from edgecv.pipelines import Classifier, Embedder, Gallery, load
    from edgecv.pipelines.tracking import Tracker
    from edgecv.preprocess import Preprocess
    from edgecv.profiling import Profile, profile
    from edgecv.runtimes import Session, open_session
    from edgecv.training import TrainConfig, train

__version__ = "0.1.0"

__all__ = [
    "BackendUnavailable",
    "Bundle",
    "BundleError",
    "Classifier",
    "ClusterConfig",
    "Compression",
    "ConversionError",
    "ConvertOptions",
    "EdgeCVError",
    "Embedder",
    "Gallery",
    "GraphOptions",
    "InputError",
    "OnnxOptions",
    "ParityError",
    "Preprocess",
    "Profile",
    "PruneConfig",
    "QuantizeConfig",
    "Session",
    "Tracker",
    "TrainConfig",
    "cluster",
    "compress",
    "convert",
    "convert_graph",
    "evaluate",
    "load",
    "load_checkpoint",
    "models",
    "open_session",
    "pack",
    "profile",
    "prune",
    "quantize",
    "quantize_tracker",
    "save_checkpoint",
    "train",
    "verify",
]

_HOMES = {
    "edgecv.bundle": ("Bundle",),
    "edgecv.chain": ("Compression", "compress"),
    "edgecv.compression.clustering": ("ClusterConfig", "cluster"),
    "edgecv.compression.pruning": ("PruneConfig", "prune"),
    "edgecv.compression.quantization": ("QuantizeConfig", "quantize"),
    "edgecv.compression.trackers": ("quantize_tracker",),
    "edgecv.converters.converting": ("ConvertOptions", "convert"),
    "edgecv.converters.graphs": ("GraphOptions", "convert_graph"),
    "edgecv.converters.onnx_from_torch": ("OnnxOptions",),
    "edgecv.converters.packing": ("pack",),
    "edgecv.errors": (
        "BackendUnavailable", "BundleError", "ConversionError", "EdgeCVError", "InputError", "ParityError",
    ),
    "edgecv.evaluation": ("evaluate",),
    "edgecv.models": ("load_checkpoint", "save_checkpoint"),
    "edgecv.parity": ("verify",),
    "edgecv.pipelines": ("Classifier", "Embedder", "Gallery", "load"),
    "edgecv.pipelines.tracking": ("Tracker",),
    "edgecv.preprocess": ("Preprocess",),
    "edgecv.profiling": ("Profile", "profile"),
    "edgecv.runtimes": ("Session", "open_session"),
    "edgecv.training": ("TrainConfig", "train"),
}  # fmt: skip
_HOME = {name: module for module, names in _HOMES.items() for name in names}


_EXTRAS = {
    "edgecv.chain": "train,convert",
    "edgecv.compression": "train",
    "edgecv.converters": "convert",
    "edgecv.models": "train",
    "edgecv.training": "train",
}


def __getattr__(name: str) -> Any:
    if name == "models":
        return _import("edgecv.models")
    if name not in _HOME:
        raise AttributeError(f"module 'edgecv' has no attribute {name!r}")
    value = getattr(_import(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])


def _import(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = ".".join(module.split(".")[:2])
        if package not in _EXTRAS or (error.name or "").partition(".")[0] == "edgecv":
            raise
        from edgecv.errors import BackendUnavailable

        raise BackendUnavailable(
            f"{package} needs the Python package {error.name!r}, which is not installed: "
            f"pip install 'edgecv[{_EXTRAS[package]}]'"
        ) from error

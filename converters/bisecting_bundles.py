"""Where a bundle's variant parts from its reference: both sides of a bisection, from what the bundle holds."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from edgecv.bundle import Bundle
from edgecv.converters.bisecting import Divergence, Open, Side, bisect
from edgecv.converters.onnx_from_torch import onnx_from_torch
from edgecv.converters.qdq_cpu import cpu_layout
from edgecv.errors import BackendUnavailable, InputError
from edgecv.manifest import Variant
from edgecv.pipelines.tensors import Sample, feeds
from edgecv.runtimes.ort import OrtSession
from edgecv.runtimes.registry import session_class
from edgecv.runtimes.session import SessionOptions
from edgecv.tensors import Array

__all__ = ["TOLERANCES", "bisect_variant"]

# Of a tensor's largest difference, as a share of its spread: backends add in another order, float16 rounds, and where
# integers are rounded, a value next to a half goes up on one side and down on the other.
TOLERANCES = {"fp32": 1e-3, "fp16": 0.15, "int8": 0.3}
SAMPLES = 4
LABEL = "model"


def bisect_variant(
    bundle: Bundle,
    name: str,
    samples: Sequence[NDArray[np.uint8]] | Sequence[Sample],
    *,
    checkpoint: Path | None = None,
    tolerance: float | None = None,
    threads: int | None = None,
) -> Divergence | None:
    """Name the first node of variant ``name`` that differs from the reference, or ``None`` where outputs agree.

    The variant's side is the bundle's ONNX graph of its precision, run by its backend. The reference is computed by
    ONNX Runtime as the graph is written, with nothing fused: the network of ``checkpoint``, exported anew; without one
    the float32 graph for a float16 variant, and the same graph for others, which shows what the backend changes.

    Args:
        samples: uint8 RGB frames of any size, or mappings as ``convert_graph`` takes them; the first four are run.
        tolerance: see ``bisect``; by default 1e-3 for fp32, 0.15 for fp16, 0.3 for int8.

    Raises:
        InputError: the bundle has no such variant or no ONNX graph of its precision, several graphs, or the checkpoint
            is of another precision.
        ConversionError: a side cannot open a part of its graph.
        BackendUnavailable: the variant's backend cannot run here, or reads no ONNX file.
    """
    variant = bundle.manifest.variants.get(name)
    if variant is None:
        raise InputError(f"the bundle has no variant {name!r}, only {', '.join(bundle.manifest.variants)}")
    if len(bundle.manifest.graphs) > 1:
        raise InputError(f"--bisect takes a bundle of one graph, {bundle.path} has {len(bundle.manifest.graphs)}")
    model = _graph(bundle, variant.precision, name)
    reference = model
    if checkpoint is not None:
        reference = _exported(checkpoint, bundle, variant.precision)
    elif variant.precision == "fp16":
        reference = _graph(bundle, "fp32", name)
    options = SessionOptions(threads=threads)
    sides = (
        Side(reference, partial(OrtSession, options=options, optimized=False)),
        Side(model, _opener(variant, options)),
    )
    limit = TOLERANCES.get(variant.precision, TOLERANCES["fp32"]) if tolerance is None else tolerance
    return bisect(*sides, _inputs(model, bundle, samples), limit)


def _graph(bundle: Bundle, precision: str, name: str) -> onnx.ModelProto:
    """The ONNX graph of a precision."""
    for variant in bundle.manifest.variants.values():
        file = next(iter(variant.graphs.values()))
        if variant.precision == precision and file.endswith(".onnx"):
            return onnx.load_model_from_string(bundle.read(file))
    raise InputError(f"to bisect {name}, the bundle must hold an ONNX graph in {precision}: convert for onnxruntime")


def _exported(checkpoint: Path, bundle: Bundle, precision: str) -> onnx.ModelProto:
    """The graph of a checkpoint's network."""
    from edgecv.compression.placement import is_quantized
    from edgecv.models.checkpoint import read_checkpoint

    network, card = read_checkpoint(checkpoint)
    preprocess = card.preprocess or bundle.manifest.preprocess
    if preprocess is None:
        raise InputError(f"{checkpoint} does not say what it takes, nor does {bundle.path}: leave the checkpoint out")
    quantized = is_quantized(network)
    if quantized is not (precision == "int8"):
        held = "a quantized network" if quantized else "a float network"
        raise InputError(f"{checkpoint} holds {held}, the variant is {precision}: give the checkpoint it was made from")
    with tempfile.TemporaryDirectory() as folder:
        path = onnx_from_torch(network, Path(folder, f"{LABEL}.onnx"), preprocess)
        model = onnx.load(str(path))
    return cpu_layout(model) if quantized else model


def _opener(variant: Variant, options: SessionOptions) -> Open:
    backend = session_class(variant.backend)
    if ".onnx" not in backend.suffixes:
        raise BackendUnavailable(f"backend {variant.backend!r} opens no ONNX file, which --bisect cuts into parts")
    return lambda path: backend.open(path, options)


def _inputs(model: onnx.ModelProto, bundle: Bundle, samples: Sequence[Any]) -> dict[str, Array]:
    fixed = model.graph.input[0].type.tensor_type.shape.dim[0].dim_value
    few = {index: samples[index] for index in range(min(len(samples), fixed or SAMPLES))}
    if bundle.manifest.preprocess is not None:
        return {"image": bundle.manifest.preprocess.batch(list(few.values()))}
    (graph,) = bundle.manifest.graphs.values()
    return feeds(graph.inputs, graph.preprocess, few)

"""Which layers need 7-bit weights on a CPU without VNNI, by what saturation does to them on real frames."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from torch import nn

from edgecv.converters.onnx_from_torch import onnx_from_torch
from edgecv.converters.saturation import RUNTIMES, simulate
from edgecv.converters.speed_map import MARK
from edgecv.preprocess import Preprocess

__all__ = ["bits_without_saturation", "layers_of_nodes"]

HARMLESS = 1e-3  # of a layer's output, root mean square: an eighth bit gains more than that
FRAMES = 8
QUANTIZERS = "weight_quantizers."


def bits_without_saturation(
    quantized: nn.Module, frames: Sequence[NDArray[np.uint8]], preprocess: Preprocess
) -> dict[str, int]:
    """Name the layers that 8-bit weights saturate, for ``QuantizeConfig(weight_bits=8, layer_bits=…)``: 7 bits each.

    The graph is computed as ONNX Runtime and OpenVINO would on an x86 CPU without VNNI, see ``simulate``, on the first
    eight frames; a layer counts whose output changes by more than a thousandth, root mean square, on either.

    Args:
        quantized: what ``edgecv.quantize`` made with ``weight_bits=8``.
        frames: uint8 RGB frames of any size.
    """
    with tempfile.TemporaryDirectory() as scratch:
        model = onnx.load(str(onnx_from_torch(quantized, Path(scratch, "model.onnx"), preprocess)))
    image = preprocess.batch([frames[index] for index in range(min(FRAMES, len(frames)))])
    layers, found = layers_of_nodes(model), {}
    for runtime in RUNTIMES:
        for item in simulate(model, {model.graph.input[0].name: image}, runtime=runtime).layers:
            if item.noise > HARMLESS and item.node in layers:
                found[layers[item.node]] = 7
    return found


def layers_of_nodes(model: onnx.ModelProto) -> Mapping[str, str]:
    """For each node with quantized weights its layer in the network, of a graph that ``onnx_from_torch`` wrote."""
    weights = {
        node.output[0]: node.input[0].removesuffix(MARK).partition(QUANTIZERS)[2]
        for node in model.graph.node
        if node.op_type == "DequantizeLinear" and node.input[0].endswith(MARK)
    }
    return {node.name: weights[name] for node in model.graph.node for name in node.input if name in weights}

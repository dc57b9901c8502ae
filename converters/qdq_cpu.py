"""Layers that were left float in a quantized graph, kept so."""

from __future__ import annotations

import numpy as np
import onnx

from edgecv.converters.qdq_frames import normalize_rows, read_bytes
from edgecv.converters.qdq_graph import DEQUANTIZE, QdqGraph
from edgecv.converters.qdq_layouts import clean_for_cpu
from edgecv.converters.qdq_passes import int32_biases
from edgecv.converters.saturation import mark_saturation
from edgecv.tensors import Array

__all__ = ["cpu_layout", "shield_float_layers"]

LAYERS = ("Conv", "ConvTranspose", "Gemm")
LARGEST = 2**31 - 1


def cpu_layout(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the ``cpu`` layout of a quantized graph: cleaned, float layers kept so, biases as integers.

    Frames are read as the bytes they are, or else normalized row by row. Biases of quantized layers are in steps of the
    accumulators: ONNX Runtime's matrix products are fused only so. Layers that can saturate on a CPU without VNNI are
    named in the metadata, see ``mark_saturation``.
    """
    graph = QdqGraph(clean_for_cpu(model))
    int32_biases(graph)
    shield_float_layers(graph)
    read_bytes(graph)
    normalize_rows(graph)
    return mark_saturation(graph.finished())


def shield_float_layers(graph: QdqGraph) -> None:
    """Write the bias of each float layer with a quantized input as int32, finely enough to be the same float again.

    ONNX Runtime (its transformer WeightBiasQuantization) otherwise rounds such a layer's weights to int8 by itself, all
    channels with one scale. It leaves a layer alone whose bias is computed, as behind a DequantizeLinear.
    """
    for node in graph.nodes(*LAYERS):
        weight, source = graph.constant(node.input[1]), graph.producer(node.input[0])
        if weight is None or weight.dtype != np.float32 or source is None or source.op_type != DEQUANTIZE:
            continue
        bias = (
            graph.constant(node.input[2]) if len(node.input) > 2 and node.input[2] else np.zeros(_width(node, weight))
        )
        if bias is None or bias.ndim != 1:
            continue
        scale = np.float32(max(float(np.abs(bias).max()), 1e-6) / LARGEST * (1 + 1e-6))
        steps = np.rint(bias.astype(np.float64) / scale).astype(np.int32)
        constants = {"_bias": steps, "_bias_scale": scale, "_bias_zero_point": np.int32(0)}
        inputs = [graph.add_constant(f"{node.output[0]}{end}", np.asarray(held)) for end, held in constants.items()]
        node.input[:] = [*node.input, ""][:3]
        graph.insert_input(node, 2, DEQUANTIZE, inputs)


def _width(node: onnx.NodeProto, weight: Array) -> int:
    """A layer's output channels."""
    held = {item.name: item.i for item in node.attribute}
    if node.op_type == "ConvTranspose":
        return int(weight.shape[1] * held.get("group", 1))
    return int(weight.shape[0 if node.op_type == "Conv" or held.get("transB") else 1])

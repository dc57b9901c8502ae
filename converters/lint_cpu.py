"""ONNX Runtime and OpenVINO on CPUs: Q/DQ layouts that saturate or lose fusion, and half precision."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from edgecv.converters.lint_graph import Graph, Origin
from edgecv.converters.lint_nodes import TYPES, Node, label
from edgecv.converters.lint_qdq import LINEAR, dequantized, is_weight, pairs
from edgecv.converters.lint_rules import Problem, Rule

__all__ = ["RULES"]

ORT, OV = ("onnxruntime",), ("openvino",)
INT8, UINT8, FLOAT16 = (TYPES.Value(name) for name in ("INT8", "UINT8", "FLOAT16"))
ORT_QUANTIZATION = "https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html"
SATURATION = "https://oneapi-src.github.io/oneDNN/dev_guide_int8_computations.html"
ORT_FP16 = "https://onnxruntime.ai/docs/performance/model-optimizations/float16.html"
OV_PRECISION = (
    "https://docs.openvino.ai/2024/openvino-workflow/running-inference/optimize-inference/precision-control.html"
)
SEVEN_BITS = 64  # |weight|: 2 x 255 x 64 stays within 16 bits, 2 x 255 x 127 does not


def _linear(graph: Graph) -> Iterator[tuple[Node, Node, Node]]:
    """Every convolution or matrix product on quantized activations and constant quantized weights, with both DQ."""
    for node in graph.nodes:
        found = [dequantized(graph, name) for name in node.input[:2]] if node.op_type in LINEAR else []
        if len(found) == 2 and all(found) and is_weight(graph, found[1]) and not is_weight(graph, found[0]):
            yield node, found[0], found[1]


def _eight_bit_weights(graph: Graph) -> Iterator[Problem]:
    for node, _, weight in _linear(graph):
        values = graph.constant(weight.input[0])
        if (
            values is not None
            and values.dtype == np.int8
            and values.size
            and int(np.abs(values.astype(int)).max()) > SEVEN_BITS
        ):
            yield node, f"{label(node)}: its weights use 8 bits; on x86 without VNNI the sums of two products saturate"


def _signed_activations(graph: Graph) -> Iterator[Problem]:
    for node, activation, _ in _linear(graph):
        if graph.type(activation.input[0]) == INT8:
            yield node, f"{label(node)}: its activations are int8; CPU kernels are made for uint8"


def _unsigned_weights(graph: Graph) -> Iterator[Problem]:
    for node, _, weight in _linear(graph):
        if graph.type(weight.input[0]) == UINT8:
            yield node, f"{label(node)}: its weights are uint8; CPU kernels are made for int8 weights"


def _per_channel_activation(graph: Graph) -> Iterator[Problem]:
    for node in pairs(graph):
        scales = graph.shape(node.input[1])
        if node.op_type == "QuantizeLinear" and not is_weight(graph, node) and scales not in (None, (), (1,)):
            yield node, f"{label(node)} quantizes an activation per channel, so what takes it runs in float"


def _activation_between(graph: Graph) -> Iterator[Problem]:
    """ONNX Runtime fuses DQ, operator, Q when the Q follows at once, or behind a Relu or Clip that changes nothing."""
    for node, _, _ in _linear(graph):
        users = graph.users(node.output[0])
        if len(users) != 1 or users[0].op_type in ("QuantizeLinear", "Add") or node.output[0] in graph.outputs:
            continue
        after = graph.users(users[0].output[0])
        if after and all(q.op_type == "QuantizeLinear" for q in after) and not _implied(graph, users[0], after[0]):
            yield node, f"{label(node)} runs in float: {label(users[0])} stands between it and its QuantizeLinear"


def _implied(graph: Graph, between: Node, quantize: Node) -> bool:
    """Whether a Relu or Clip only cuts what the range of the next QuantizeLinear cuts anyway."""
    kind, scale = graph.type(quantize.output[0]), graph.constant(quantize.input[1])
    if between.op_type not in ("Relu", "Clip") or scale is None or scale.size != 1 or kind not in (INT8, UINT8):
        return False
    point = graph.constant(quantize.input[2]) if len(quantize.input) > 2 else np.zeros(1)
    if point is None or point.size != 1:
        return False
    lowest = 0 if kind == UINT8 else -128
    low, high = ((end - float(point.ravel()[0])) * float(scale.ravel()[0]) for end in (lowest, lowest + 255))
    floor, ceiling = (0.0, np.inf) if between.op_type == "Relu" else _bounds(graph, between)
    return floor <= low and high <= ceiling * (1 + 1e-6)


def _bounds(graph: Graph, clip: Node) -> tuple[float, float]:
    """The bounds of a Clip from opset 11 on; one that is not constant counts as cutting everything."""
    found = []
    for place, missing in ((1, -np.inf), (2, np.inf)):
        name = clip.input[place] if place < len(clip.input) else ""
        value = graph.constant(name) if name else np.asarray(missing)
        found.append(-missing if value is None or value.size != 1 else float(value.ravel()[0]))
    return found[0], found[1]


def _half(graph: Graph) -> Iterator[Problem]:
    halves = [node for node in graph.nodes if node.op_type in LINEAR and graph.type(node.output[0]) == FLOAT16]
    if halves:
        yield None, f"{len(halves)} operators compute in fp16, {label(halves[0])} first; x86 CPUs compute them in float"


def _weights_only(graph: Graph) -> Iterator[Problem]:
    for node in graph.nodes:
        if node.op_type in LINEAR and len(node.input) > 1 and not dequantized(graph, node.input[0]):
            weight = dequantized(graph, node.input[1])
            if weight is not None and graph.origin(weight.input[0]) is Origin.CONSTANT:
                yield node, f"{label(node)}: its weights are quantized and its input is not, so it runs in float"


KEEP_7_BITS = "quantize weights to 7 bits with bias correction, or run on a CPU with VNNI"
TO_UINT8 = "quantize activations to uint8, or keep this file for TensorRT"
TO_INT8 = "quantize weights to int8, symmetric per output channel"
PER_TENSOR = "quantize activations per tensor"

RULES = (
    Rule("ORT110", "warning", ORT, _eight_bit_weights, KEEP_7_BITS, ORT_QUANTIZATION),
    Rule("ORT111", "warning", ORT, _signed_activations, TO_UINT8, ORT_QUANTIZATION),
    Rule("ORT112", "warning", ORT, _per_channel_activation, PER_TENSOR, ORT_QUANTIZATION),
    Rule("ORT113", "warning", ORT, _activation_between,
         "choose the scale so that the quantized range ends where the activation cuts, or quantize before it too",
         "https://github.com/microsoft/onnxruntime/tree/main/onnxruntime/core/optimizer/qdq_transformer"),
    Rule("ORT114", "warning", ORT, _unsigned_weights, TO_INT8, ORT_QUANTIZATION),
    Rule("ORT115", "warning", ORT, _weights_only, "quantize its input too, or leave both in float", ORT_QUANTIZATION),
    Rule("ORT120", "warning", ORT, _half, "run the fp32 graph on CPUs: fp16 adds casts and rounds more", ORT_FP16),
    Rule("OV110", "warning", OV, _eight_bit_weights, KEEP_7_BITS, SATURATION),
    Rule("OV111", "warning", OV, _signed_activations, TO_UINT8, SATURATION),
    Rule("OV114", "warning", OV, _unsigned_weights, TO_INT8, SATURATION),
    Rule("OV120", "warning", OV, _half, "run the fp32 graph on CPUs, or compress its weights alone to fp16",
         OV_PRECISION),
)  # fmt: skip

"""Q/DQ layouts for TensorRT: what its parser refuses, what it misreads in silence, what keeps int8 from being used."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from edgecv.converters.lint_graph import Graph, Origin
from edgecv.converters.lint_nodes import TYPES, Node, attribute, label, type_name
from edgecv.converters.lint_rules import TENSORRT, Problem, Rule
from edgecv.converters.lint_types import UINT8_REFUSED

__all__ = ["LINEAR", "RULES", "dequantized", "is_weight", "pairs"]

EXPLICIT = (
    "https://docs.nvidia.com/deeplearning/tensorrt/latest/inference-library/quantized-types-explicit-quantization.html"
)
ONNX_QUANTIZE = "https://onnx.ai/onnx/operators/onnx__QuantizeLinear.html"
TRT_ISSUE = "https://github.com/NVIDIA/TensorRT/issues/"
ORT_ISSUE = "https://github.com/microsoft/onnxruntime/issues/"
UINT8_AS_INT8 = "https://github.com/leimao/PyTorch-Eager-Mode-Quantization-TensorRT-Acceleration/issues/1"
RESIDUAL = (
    "https://docs.nvidia.com/deeplearning/tensorrt/tensorflow-quantization-toolkit/docs/docs/add_custom_qdq_cases.html"
)
UINT8, INT32, FLOAT16 = (TYPES.Value(name) for name in ("UINT8", "INT32", "FLOAT16"))
_QUANTIZED = ("INT8", "UINT8", "INT32", "INT4", "FLOAT8E4M3FN", "FLOAT4E2M1")
QUANTIZED = frozenset(TYPES.Value(name) for name in _QUANTIZED)
LINEAR = {"Conv": 0, "ConvTranspose": 1, "Gemm": 1, "MatMul": 1}  # operator: the weights' axis of output channels
KEEP_FLOAT = ("Exp", "Sigmoid", "Softmax")


def pairs(graph: Graph) -> Iterator[Node]:
    """Every QuantizeLinear and DequantizeLinear with a scale."""
    for node in graph.nodes:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear") and len(node.input) > 1:
            yield node


def is_weight(graph: Graph, node: Node) -> bool:
    """Whether a Q or DQ works on constants: directly, or as the DQ of a quantized constant."""
    return graph.origin(node.input[0]) is Origin.CONSTANT


def dequantized(graph: Graph, name: str) -> Node | None:
    """The DequantizeLinear that gives ``name``."""
    node = graph.producer(name)
    return node if node is not None and node.op_type == "DequantizeLinear" and len(node.input) > 1 else None


def _quantized_type(graph: Graph, node: Node) -> int:
    return graph.type(node.output[0] if node.op_type == "QuantizeLinear" else node.input[0])


def _zero_point(node: Node) -> str:
    return str(node.input[2]) if len(node.input) > 2 else ""


def _run_time_scale(graph: Graph) -> Iterator[Problem]:
    for node in pairs(graph):
        for name in filter(None, (node.input[1], _zero_point(node))):
            if graph.origin(name) is not Origin.CONSTANT:
                yield node, f"{label(node)}: {name!r} is computed at run time; scales and zero points must be constants"


def _bad_scale(graph: Graph) -> Iterator[Problem]:
    for node in pairs(graph):
        scale = graph.constant(node.input[1])
        if scale is not None and not (np.isfinite(scale.astype(np.float64)) & (scale.astype(np.float64) > 0)).all():
            yield node, f"{label(node)}: the scale {node.input[1]!r} holds a value that is not positive and finite"


def _odd_type(graph: Graph) -> Iterator[Problem]:
    for node in pairs(graph):
        kind = _quantized_type(graph, node)
        if kind and kind not in QUANTIZED:
            yield node, f"{label(node)} quantizes to {type_name(kind)}"


def _asymmetric(graph: Graph) -> Iterator[Problem]:
    for node in pairs(graph):
        point = graph.constant(_zero_point(node)) if _zero_point(node) else None
        if point is not None and point.astype(np.float64).any():
            yield node, f"{label(node)}: the zero point {_zero_point(node)!r} is not 0"


def _silent_uint8(graph: Graph) -> Iterator[Problem]:
    for node in pairs(graph):
        point = _zero_point(node)
        if not (is_weight(graph, node) and node.op_type == "DequantizeLinear") and (
            _quantized_type(graph, node) == UINT8 or (point and graph.type(point) == UINT8)
        ):
            given = f"its zero point {point!r} is uint8" if point else "it has no zero point, which in ONNX means uint8"
            yield node, f"{label(node)}: {given}; TensorRT reads it as int8 and cuts off half of the range"


def _uint8_weights(graph: Graph) -> Iterator[Problem]:
    for node in pairs(graph):
        if node.op_type == "DequantizeLinear" and is_weight(graph, node) and _quantized_type(graph, node) == UINT8:
            yield node, f"{label(node)}: the weights {node.input[0]!r} are uint8"


def _int32_bias(graph: Graph) -> Iterator[Problem]:
    for node in pairs(graph):
        if node.op_type == "DequantizeLinear" and _quantized_type(graph, node) == INT32:
            yield node, f"{label(node)} dequantizes int32 {node.input[0]!r}; TensorRT takes a float bias"


def _scale_count(graph: Graph) -> Iterator[Problem]:
    for node in pairs(graph):
        shape, scale = graph.shape(node.input[0]), graph.shape(node.input[1])
        if shape is None or scale is None or len(scale) != 1 or scale[0] in (None, 1):
            continue
        axis = attribute(node, "axis", 1)
        if not -len(shape) <= axis < len(shape):
            yield node, f"{label(node)}: axis {axis} of a tensor with {len(shape)} dimensions"
        elif shape[axis] is not None and shape[axis] != scale[0]:
            yield node, f"{label(node)}: {scale[0]} scales along axis {axis}, which has {shape[axis]} channels"


def _activations_per_channel(graph: Graph) -> Iterator[Problem]:
    for node in pairs(graph):
        if not is_weight(graph, node) and graph.shape(node.input[1]) not in (None, (), (1,)):
            yield node, f"{label(node)} quantizes an activation per channel"


def _weight_axis(graph: Graph) -> Iterator[Problem]:
    for node in graph.nodes:
        weight = dequantized(graph, node.input[1]) if node.op_type in LINEAR and len(node.input) > 1 else None
        if weight is None or not is_weight(graph, weight) or graph.shape(weight.input[1]) in (None, (), (1,)):
            continue
        wanted = 0 if node.op_type == "Gemm" and attribute(node, "transB", 0) else LINEAR[node.op_type]
        rank, axis = len(graph.shape(weight.input[0]) or ()), attribute(weight, "axis", 1)
        if (axis + rank if axis < 0 else axis) != wanted:
            yield weight, f"{label(weight)}: weights of a {node.op_type} are scaled along axis {axis}, not {wanted}"


def _half_quantized(graph: Graph) -> Iterator[Problem]:
    for node in graph.nodes:
        if node.op_type in LINEAR and len(node.input) > 1:
            missing = [name for name in node.input[:2] if not _is_quantized(graph, name)]
            if len(missing) == 1:
                yield (
                    node,
                    f"{label(node)}: {missing[0]!r} is not quantized and the other input is, so it runs in float",
                )


def _residual(graph: Graph) -> Iterator[Problem]:
    for node in graph.nodes:
        if node.op_type == "Add" and len(node.input) == 2 and not any(
            graph.origin(name) is Origin.CONSTANT for name in node.input
        ):  # fmt: skip
            floating = [name for name in node.input if not _is_quantized(graph, name)]
            if floating and any(_from_int8(graph, name) for name in node.input):
                yield node, f"{label(node)}: {floating[0]!r} enters the residual sum in float"


def _leaves_quantized(graph: Graph) -> Iterator[Problem]:
    for node in pairs(graph):
        if node.op_type == "DequantizeLinear" and node.output[0] in graph.outputs and not is_weight(graph, node):
            yield node, f"{label(node)}: the graph's output {node.output[0]!r} is quantized on the way out"


def _two_scales(graph: Graph) -> Iterator[Problem]:
    first: dict[str, Node] = {}
    for node in pairs(graph):
        if node.op_type == "QuantizeLinear":
            other = first.setdefault(node.input[0], node)
            if other is not node and not _same_scale(graph, node, other):
                yield (
                    node,
                    f"{label(node)} quantizes {node.input[0]!r} a second time, with another scale than {label(other)}",
                )


def _float_is_better(graph: Graph) -> Iterator[Problem]:
    for node in graph.nodes:
        if node.op_type in KEEP_FLOAT and node.input and dequantized(graph, node.input[0]):
            yield node, f"{label(node)} takes int8, whose steps its curve makes coarse"


def _grouped(graph: Graph) -> Iterator[Problem]:
    for node in graph.nodes:
        groups = attribute(node, "group", 1) if node.op_type in ("Conv", "ConvTranspose") else 1
        if groups > 1 and all(_is_quantized(graph, name) for name in node.input[:2]):
            yield node, f"{label(node)}: {node.op_type} in {groups} groups in int8 is often slower than in fp16"


def _half_scales(graph: Graph) -> Iterator[Problem]:
    for node in pairs(graph):
        if graph.opset < 19 and graph.type(node.input[1]) == FLOAT16:
            yield node, f"{label(node)}: an fp16 scale in opset {graph.opset}; ONNX has them from opset 19 on"


def _is_quantized(graph: Graph, name: str) -> bool:
    return dequantized(graph, name) is not None


def _from_int8(graph: Graph, name: str) -> bool:
    """Whether ``name`` is a quantized tensor or comes straight from a linear operator on quantized tensors."""
    node = graph.producer(name)
    return node is not None and (
        _is_quantized(graph, name) or (node.op_type in LINEAR and _is_quantized(graph, node.input[0]))
    )


def _same_scale(graph: Graph, one: Node, other: Node) -> bool:
    left, right = graph.constant(one.input[1]), graph.constant(other.input[1])
    return left is None or right is None or (left.shape == right.shape and bool((left == right).all()))


RULES = (
    Rule("TRT110", "error", TENSORRT, _run_time_scale, "quantize with calibrated, constant scales", EXPLICIT),
    Rule("TRT111", "error", TENSORRT, _bad_scale, "calibrate again; give an all-zero tensor or channel the scale 1",
         EXPLICIT, (r"Scale coefficients must all be positive",)),
    Rule("TRT113", "error", TENSORRT, _odd_type, "quantize to int8", EXPLICIT,
         (r"Failed to import initializer", r"output_dtype specifies an unsupported data type",
          r"TensorRT only allows FP8, INT8")),
    Rule("TRT114", "error", TENSORRT, _asymmetric, "quantize symmetrically: int8 with zero point 0",
         f"{TRT_ISSUE}2774", (r"Non-zero zero point is not supported",)),
    Rule("TRT115", "error", TENSORRT, _silent_uint8, "give an int8 zero point of 0 and rescale: scale x 255 / 127",
         UINT8_AS_INT8, (r"TensorRT only allows FP8, INT8", *UINT8_REFUSED)),
    Rule("TRT116", "error", TENSORRT, _uint8_weights, "store the weights as int8, symmetric per output channel",
         EXPLICIT, UINT8_REFUSED),
    Rule("TRT117", "error", TENSORRT, _int32_bias, "leave the bias in float (QuantizeBias=False in ORT's quantizer)",
         f"{ORT_ISSUE}17738", (r"input has type Int32 but must have type FP8",)),
    Rule("TRT118", "error", TENSORRT, _scale_count, "set the axis (ONNX's default is 1) and give one scale per channel",
         ONNX_QUANTIZE, (r"number of scales is not equal", r"Axis must be in the range")),
    Rule("TRT119", "warning", TENSORRT, _activations_per_channel, "quantize activations per tensor", EXPLICIT),
    Rule("TRT120", "warning", TENSORRT, _weight_axis, "scale weights along their axis of output channels",
         f"{TRT_ISSUE}1694"),
    Rule("TRT121", "warning", TENSORRT, _half_quantized, "quantize both inputs, or neither", EXPLICIT),
    Rule("TRT122", "warning", TENSORRT, _residual, "quantize the skip input of the sum too", RESIDUAL),
    Rule("TRT123", "warning", TENSORRT, _grouped, "measure; leave it in fp16 if that is faster", f"{TRT_ISSUE}4529"),
    Rule("TRT124", "warning", TENSORRT, _leaves_quantized, "take the last pair away: it saves nothing",
         EXPLICIT),
    Rule("TRT125", "warning", TENSORRT, _two_scales, "quantize a tensor once and share the pair", EXPLICIT),
    Rule("TRT126", "warning", TENSORRT, _float_is_better, "leave Sigmoid, Softmax and box decoding in float",
         "https://github.com/ultralytics/ultralytics/issues/24668"),
    Rule("TRT131", "warning", TENSORRT, _half_scales, "write opset 19 or 20", ONNX_QUANTIZE),
)  # fmt: skip

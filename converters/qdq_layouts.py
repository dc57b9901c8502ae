"""The two Q/DQ layouts: the one that CPU runtimes fuse, and the one that TensorRT reads."""

from __future__ import annotations

import numpy as np
import onnx

from edgecv.converters.lint import lint
from edgecv.converters.onnx_check import label
from edgecv.converters.qdq_graph import BYTES, DEQUANTIZE, QUANTIZE, QdqGraph, Quantization
from edgecv.converters.qdq_passes import (
    drop_identities,
    drop_implied_clips,
    drop_repeated_pairs,
    float_biases,
    fold_quantized_constants,
    pair_after_moves,
    readers_as_pairs,
    shift_activations,
)
from edgecv.errors import ConversionError

__all__ = ["clean_for_cpu", "to_tensorrt_layout"]

# Operators that give nothing below 0, and those that pass on, pick or average what they are given.
NOT_NEGATIVE = ("Relu", "Sigmoid", "HardSigmoid", "Softmax", "Softplus", "Abs", "Sqrt", "Exp", "ReduceL2")
PASSING = (
    "AveragePool", "Concat", "Dropout", "Expand", "Flatten", "Gather", "GlobalAveragePool", "GlobalMaxPool", "Identity",
    "MaxPool", "ReduceMax", "ReduceMean", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze",
)  # fmt: skip


def clean_for_cpu(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy with the same answers, bit for bit under exact arithmetic, that ONNX Runtime fuses on CPUs.

    Activations become uint8; a Relu or Clip that the next QuantizeLinear implies goes, so that DQ, operator and Q meet;
    pairs that repeat what stands before them go, and so do Identity nodes; weights that are quantized at run time are
    stored as integers. Names of inputs and outputs, and metadata, stay. What reads or gives activations quantized per
    channel runs in float all the same: quantize per tensor.

    Raises:
        ConversionError: a scale is computed at run time, a node holds a graph of its own, or the graph is not valid.
    """
    graph = QdqGraph(model)
    drop_identities(graph)
    fold_quantized_constants(graph)
    drop_repeated_pairs(graph)
    pair_after_moves(graph)
    # ONNX Runtime 1.31 fuses an operator with a per-channel Q of its input's type, and then cannot run it.
    shift_activations(graph, np.uint8, per_channel=np.int8)
    drop_implied_clips(graph)
    return graph.finished()


def to_tensorrt_layout(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy in which activations and weights are int8 with zero point 0, and biases are float.

    Exact for int8 with zero point 0 and uint8 with 128. Any other range is widened until it is symmetric: its step
    grows (by 255 / 127 from uint8 with zero point 0), and a value within the range is rounded by up to half the new
    step. A quantizer whose range begins at 0 cuts off what is negative; where nothing in front of it does, a Relu is
    put there, since int8 would not. Weights with a zero point are moved to 0 if int8 then holds them, which is exact.

    Raises:
        ConversionError: an activation is quantized per channel, is not quantized to bytes or is read by something
            other than a DequantizeLinear with the same numbers; weights do not fit; or ``lint`` for TensorRT still
            finds an error.
    """
    graph = QdqGraph(model)
    drop_identities(graph)
    fold_quantized_constants(graph)
    drop_repeated_pairs(graph)
    pair_after_moves(graph)
    float_biases(graph)
    for node in graph.nodes(DEQUANTIZE):
        if graph.is_constant(node.input[0]):
            _center_weights(graph, node)
    for node in graph.nodes(QUANTIZE):
        _center_activation(graph, node)
    result = graph.finished()
    _refuse_errors(result)
    return result


def symmetric(how: Quantization) -> Quantization:
    """The int8 quantization with zero point 0 and the smallest step whose range covers that of ``how``."""
    least, largest = (np.float64(limit) for limit in how.limits)
    point = how.zero_point.astype(np.float64)
    factor = np.maximum((largest - point) / 127, (point - least) / 128)
    scale = (how.scale.astype(np.float64) * factor).astype(how.scale.dtype)
    return Quantization(scale, np.zeros(scale.shape, np.int8), how.axis)


def _center_activation(graph: QdqGraph, node: onnx.NodeProto) -> None:
    how, readers = graph.quantization(node), readers_as_pairs(graph, node)
    if how.dtype not in BYTES:
        raise ConversionError(f"{label(node)} quantizes to {how.dtype}; TensorRT's layout has int8 activations")
    if not how.per_tensor:
        raise ConversionError(
            f"{label(node)} quantizes an activation per channel; quantize activations per tensor for TensorRT"
        )
    if readers is None or any(not graph.quantization(reader).same_as(how) for reader in readers):
        raise ConversionError(
            f"{label(node)}: what it gives must be read by DequantizeLinear nodes with its own scale and zero point "
            "alone; put a pair of both nodes at each quantized tensor"
        )
    if (how.zero_point == how.limits[0]).all() and not _never_negative(graph, node.input[0]):
        graph.insert_input(node, 0, "Relu", [node.input[0]])
    for item in (*readers, node):
        graph.requantize(item, symmetric(how))


def _never_negative(graph: QdqGraph, name: str) -> bool:
    node, values = graph.producer(name), graph.constant(name)
    if node is None:
        return values is not None and bool((values >= 0).all())
    if node.op_type in PASSING:
        return all(_never_negative(graph, source) for source in _data_inputs(node))
    if node.op_type == DEQUANTIZE:
        how, source = graph.quantization(node), graph.producer(node.input[0])
        one_sided = how.dtype == np.uint8 and not how.zero_point.any()
        return one_sided or (
            source is not None and source.op_type == QUANTIZE and _never_negative(graph, source.input[0])
        )
    if node.op_type == "Clip" and len(node.input) > 1:
        low = graph.constant(node.input[1])
        return low is not None and bool((low >= 0).all())
    return node.op_type in NOT_NEGATIVE


def _data_inputs(node: onnx.NodeProto) -> list[str]:
    """Without the sizes, axes and indices of the operators in ``PASSING``."""
    return list(node.input) if node.op_type == "Concat" else [node.input[0]]


def _center_weights(graph: QdqGraph, node: onnx.NodeProto) -> None:
    how, values = graph.quantization(node), graph.constant(node.input[0])
    if values is None or (how.dtype == np.int8 and not how.zero_point.any()):
        return
    if how.dtype not in BYTES:
        raise ConversionError(f"{label(node)} dequantizes {how.dtype} constants; TensorRT's layout has int8 weights")
    moved = values.astype(np.int16) - how.along(how.zero_point, values.ndim).astype(np.int16)
    if moved.min() < -128 or moved.max() > 127:
        raise ConversionError(
            f"{label(node)}: the weights {node.input[0]!r} are not symmetric: {moved.min()} to {moved.max()} steps of "
            "their scale, and int8 holds -128 to 127; quantize weights symmetrically"
        )
    graph.set_input(node, 0, graph.add_constant(f"{node.input[0]}_int8", moved.astype(np.int8)))
    graph.requantize(node, Quantization(how.scale, np.zeros(how.scale.shape, np.int8), how.axis))


def _refuse_errors(model: onnx.ModelProto) -> None:
    errors = [item for item in lint(model, ("tensorrt",)) if item.severity == "error"]
    if errors:
        first = errors[0]
        raise ConversionError(f"TensorRT would refuse the graph ({first.rule}): {first.message}; {first.mend}")

"""Steps over Q/DQ graphs that change no answer, bit for bit under exact arithmetic: nodes gone, integers moved."""

from __future__ import annotations

import numpy as np
import onnx
from numpy.typing import DTypeLike

from edgecv.converters.onnx_check import label
from edgecv.converters.qdq_graph import BYTES, DEQUANTIZE, QUANTIZE, QdqGraph, Quantization, quantize_array
from edgecv.errors import ConversionError
from edgecv.tensors import Array

__all__ = [
    "bias_readers",
    "drop_identities",
    "drop_implied_clips",
    "drop_repeated_pairs",
    "float_biases",
    "fold_quantized_constants",
    "implies",
    "int32_biases",
    "pair_after_moves",
    "readers_as_pairs",
    "shift_activations",
]

MOVES = (
    "Concat", "DepthToSpace", "Flatten", "GlobalMaxPool", "MaxPool", "Reshape", "Slice", "SpaceToDepth", "Squeeze",
    "Transpose", "Unsqueeze",
)  # fmt: skip
BIASED = ("Conv", "ConvTranspose", "Gemm")  # their third input is a bias


def shift_activations(graph: QdqGraph, to: DTypeLike, *, per_channel: DTypeLike | None = None) -> None:
    """Write int8 activations as uint8 with a zero point 128 higher, or the other way.

    A tensor that anything but a DequantizeLinear reads, or that is an output of the graph, stays as it is.

    Args:
        per_channel: what activations quantized per channel become, where that is not ``to``.
    """
    for node in graph.nodes(QUANTIZE):
        readers = readers_as_pairs(graph, node)
        if readers is None or graph.is_constant(node.input[0]):
            continue
        for item in (*readers, node):  # the readers first: one without a zero point takes the type from its source
            how = graph.quantization(item)
            wanted = np.dtype(to if how.per_tensor or per_channel is None else per_channel)
            if how.dtype in BYTES and how.dtype != wanted:
                graph.requantize(item, _shifted(how))


def readers_as_pairs(graph: QdqGraph, quantize: onnx.NodeProto) -> list[onnx.NodeProto] | None:
    """The DequantizeLinear nodes that read a quantized tensor; ``None`` if anything else does."""
    users = graph.users(quantize.output[0])
    if quantize.output[0] in graph.outputs or any(user.op_type != DEQUANTIZE for user in users):
        return None
    return users


def drop_implied_clips(graph: QdqGraph) -> None:
    """Remove each Relu and Clip whose readers are all QuantizeLinear nodes that cut at least as much."""
    for node in graph.nodes("Relu", "Clip")[::-1]:  # from the end, so that of two in a row both may go
        bounds, users = _bounds(graph, node), graph.users(node.output[0])
        if bounds is None or node.output[0] in graph.outputs or not users:
            continue
        if all(user.op_type == QUANTIZE and implies(graph.quantization(user), *bounds) for user in users):
            graph.redirect(node.output[0], node.input[0])
            graph.remove(node)


def implies(how: Quantization, low: Array, high: Array) -> bool:
    """Whether a quantizer gives for every value what it gives for the value cut to ``low`` and ``high``.

    Quantizing is monotone, so it does where it takes the bounds themselves to the ends of its range.
    """
    if how.dtype not in BYTES:
        return False
    least, largest = how.limits
    ends = (quantize_array(np.broadcast_to(bound, how.scale.shape), _flat(how)) for bound in (low, high))
    return all((end == limit).all() for end, limit in zip(ends, (least, largest), strict=True))


def drop_repeated_pairs(graph: QdqGraph) -> None:
    """Remove what quantizes a dequantized tensor as it was before, and nodes that do what another does already."""
    for node in graph.nodes(QUANTIZE):
        source = graph.producer(node.input[0])
        again = source is not None and source.op_type == DEQUANTIZE and _exact(graph, source, node)
        if source is not None and again and node.output[0] not in graph.outputs:
            graph.redirect(node.output[0], source.input[0])
            graph.remove(node)
    for operator in (QUANTIZE, DEQUANTIZE):
        _merge(graph, operator)


def drop_identities(graph: QdqGraph) -> None:
    """Remove Identity nodes; one stays where it gives an input or a constant of the graph as an output."""
    for node in graph.nodes("Identity"):
        source, target = node.input[0], node.output[0]
        if target not in graph.outputs:
            graph.redirect(target, source)
            graph.remove(node)
        elif graph.producer(source) is not None and source not in graph.outputs:
            graph.remove(node)
            graph.rename_output(source, target)


def float_biases(graph: QdqGraph) -> None:
    """Write the bias of every linear operator in float where a DequantizeLinear gives it."""
    for node in bias_readers(graph):
        source = graph.producer(node.input[2])
        if source is None or source.op_type != DEQUANTIZE or not graph.is_constant(source.input[0]):
            continue
        graph.set_input(node, 2, graph.add_constant(f"{node.output[0]}_bias", _dequantized(graph, source)))
        if not graph.users(source.output[0]) and source.output[0] not in graph.outputs:
            graph.remove(source)


def pair_after_moves(graph: QdqGraph) -> None:
    """Put a Q and DQ pair behind what moves or picks values of quantized tensors with one scale.

    Such values come back from the pair as they were. Without it what reads them (a convolution behind a MaxPool or
    Concat in NNCF's files) runs in float: runtimes fuse only a DequantizeLinear right in front of it.
    """
    for node in graph.nodes(*MOVES):
        sources = [graph.producer(name) for name in (node.input if node.op_type == "Concat" else node.input[:1])]
        name, users = node.output[0], graph.users(node.output[0])
        if any(source is None or source.op_type != DEQUANTIZE for source in sources) or len(node.output) > 1:
            continue
        first, *others = [graph.quantization(source) for source in sources if source is not None]
        alike = all(first.same_as(other) for other in others) and first.per_tensor and _gives_back(first)
        if alike and name not in graph.outputs and any(user.op_type != QUANTIZE for user in users):
            numbers = list(sources[0].input[1:]) if sources[0] is not None else []
            quantized = graph.insert_after(node, QUANTIZE, [name, *numbers])
            graph.insert_after(graph.users(name)[0], DEQUANTIZE, [quantized, *numbers])


def int32_biases(graph: QdqGraph) -> None:
    """Write each float bias as int32 in steps of the input's scale times the weights', for CPU kernels.

    That is within half such a step of the float bias; of up to 22 bits, what ``float_biases`` wrote comes back exactly.
    A bias stays float where the operator's input or weights are not quantized, or where it needs more than 31 bits.
    """
    for node in bias_readers(graph):
        bias = graph.constant(node.input[2])
        scale = _accumulator_scale(graph, node)
        if bias is None or bias.dtype != np.float32 or bias.ndim != 1 or scale is None or bias.size % scale.size:
            continue
        steps = np.rint(bias / scale)
        if not (np.abs(steps) < 2**31).all():
            continue
        constants = [steps.astype(np.int32), np.broadcast_to(scale, bias.shape), np.zeros(bias.shape, np.int32)]
        names = [f"{node.output[0]}_bias{part}" for part in ("", "_scale", "_zero_point")]
        inputs = [graph.add_constant(name, values) for name, values in zip(names, constants, strict=True)]
        graph.insert_input(node, 2, DEQUANTIZE, inputs, axis=0)


def bias_readers(graph: QdqGraph) -> list[onnx.NodeProto]:
    """The linear operators with a bias."""
    return [node for node in graph.nodes(*BIASED) if len(node.input) > 2 and node.input[2]]


def fold_quantized_constants(graph: QdqGraph) -> None:
    """Store constants that the graph quantizes (weights, as a rule) as the integers they become."""
    for node in graph.nodes(QUANTIZE):
        values = graph.constant(node.input[0])
        how = graph.quantization(node)
        if values is None or node.output[0] in graph.outputs or how.dtype not in BYTES:
            continue
        folded = quantize_array(values, how)
        graph.redirect(node.output[0], graph.add_constant(f"{node.input[0]}_quantized", folded))
        graph.remove(node)


def _shifted(how: Quantization) -> Quantization:
    by, to = (128, np.uint8) if how.dtype == np.int8 else (-128, np.int8)
    return Quantization(how.scale, (how.zero_point.astype(np.int16) + by).astype(to), how.axis)


def _flat(how: Quantization) -> Quantization:
    return Quantization(how.scale, how.zero_point, 0)


def _bounds(graph: QdqGraph, node: onnx.NodeProto) -> tuple[Array, Array] | None:
    """Where a Relu or Clip cuts; ``None`` where that is not known before run time."""
    if node.op_type == "Relu":
        return np.zeros((), np.float32), np.full((), np.inf, np.float32)
    attributes = {item.name: np.asarray(item.f, np.float32) for item in node.attribute}
    found: list[Array | None] = []
    for place, (name, missing) in enumerate((("min", -np.inf), ("max", np.inf)), start=1):
        given = node.input[place] if len(node.input) > place else ""
        found.append(graph.constant(given) if given else attributes.get(name, np.asarray(missing, np.float32)))
    low, high = found
    return None if low is None or high is None else (low.reshape(()), high.reshape(()))


def _exact(graph: QdqGraph, dequantize: onnx.NodeProto, quantize: onnx.NodeProto) -> bool:
    """Whether Q gives back what DQ was given."""
    one, other = graph.quantization(dequantize), graph.quantization(quantize)
    return one.same_as(other) and _gives_back(one)


def _gives_back(how: Quantization) -> bool:
    """Whether bytes come back from DQ and Q as they were: the scale must be far from the ends of its type."""
    info = np.finfo(how.scale.dtype)
    normal = (how.scale >= info.tiny).all() and (how.scale.astype(np.float64) * 256 <= float(info.max)).all()
    return bool(normal) and how.dtype in BYTES


def _merge(graph: QdqGraph, operator: str) -> None:
    kept: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.nodes(operator):
        others = kept.setdefault(node.input[0], [])
        how = graph.quantization(node)
        twin = next((other for other in others if graph.quantization(other).same_as(how)), None)
        if twin is None or node.output[0] in graph.outputs:
            others.append(node)
        else:
            graph.redirect(node.output[0], twin.output[0])
            graph.remove(node)


def _dequantized(graph: QdqGraph, node: onnx.NodeProto) -> Array:
    how, values = graph.quantization(node), graph.constant(node.input[0])
    if values is None:
        raise ConversionError(f"{label(node)}: {node.input[0]!r} is not a constant")
    steps = values.astype(np.int64) - how.along(how.zero_point, values.ndim).astype(np.int64)
    result: Array = steps.astype(how.scale.dtype) * how.along(how.scale, values.ndim)
    return result


def _accumulator_scale(graph: QdqGraph, node: onnx.NodeProto) -> Array | None:
    """The step of the sums of products: the input's scale times that of each output channel."""
    sources = [graph.producer(name) for name in node.input[:2]]
    if any(source is None or source.op_type != DEQUANTIZE for source in sources):
        return None
    activation, weight = (graph.quantization(source) for source in sources if source is not None)
    if not activation.per_tensor or weight.scale.dtype != np.float32:
        return None
    scale: Array = activation.scale.reshape(()) * weight.scale
    return scale if (scale > 0).all() else None

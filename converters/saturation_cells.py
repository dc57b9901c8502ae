"""The layers that a CPU runtime computes in integers, and how its kernels pair their products."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Literal

import numpy as np
import onnx

from edgecv.converters.lint_nodes import attribute, name_of
from edgecv.converters.qdq_graph import DEQUANTIZE, QUANTIZE, QdqGraph, Quantization
from edgecv.errors import ConversionError
from edgecv.tensors import Array

__all__ = ["Cell", "Runtime", "Window", "find_cells"]

Runtime = Literal["onnxruntime", "openvino"]
# What ONNX Runtime fuses into a float Gemm before it looks for integer ones.
ACTIVATIONS = ("HardSigmoid", "LeakyRelu", "Relu", "Sigmoid", "Softplus", "Softsign", "Tanh", "ThresholdedRelu")


@dataclass(frozen=True, slots=True)
class Window:
    """The geometry of a convolution, a number for each spatial axis; ``pads`` holds those before, then those after."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[int, ...]
    same: str  # "upper" or "lower" where the pads follow from the image's size, "" where they are given

    def padding(self, sizes: tuple[int, ...]) -> list[tuple[int, int]]:
        """Before and after each spatial axis of an image of these ``sizes``."""
        rank = len(self.kernel)
        if not self.same:
            return list(zip(self.pads[:rank], self.pads[rank:], strict=True))
        found = []
        for size, stride, reach in zip(sizes, self.strides, self._reach(), strict=True):
            total = max((-(-size // stride) - 1) * stride + reach - size, 0)
            less, more = total // 2, total - total // 2
            found.append((less, more) if self.same == "upper" else (more, less))
        return found

    def views(self, padded: Array) -> list[Array]:
        """What each position of the kernel sees of ``[batch, channels, …]``, in the order of the kernel's axes."""
        reaches = zip(padded.shape[2:], self._reach(), self.strides, strict=True)
        counts = [(size - reach) // stride + 1 for size, reach, stride in reaches]
        found = []
        for position in product(*map(range, self.kernel)):
            steps = zip(position, self.dilations, counts, self.strides, strict=True)
            place = [
                slice(at * step, at * step + (count - 1) * stride + 1, stride) for at, step, count, stride in steps
            ]
            found.append(padded[(slice(None), slice(None), *place)])
        return found

    def _reach(self) -> list[int]:
        return [(size - 1) * step + 1 for size, step in zip(self.kernel, self.dilations, strict=True)]


@dataclass(frozen=True, slots=True)
class Cell:
    """One layer as an integer kernel computes it.

    Attributes:
        source: the uint8 tensor it reads, quantized as ``input`` says.
        target: what it gives: bytes quantized as ``output`` says, or floats where that is ``None``.
        weight: int8 ``[groups, outputs, products]``; the kernels add products 0 and 1, 2 and 3, … in 16 bits.
        bias: int64, in steps of the accumulator; ``step`` is the size of those, for each output of all groups.
        padded: to how many channels those of each kernel position are filled up with zeros.
        window: ``None`` for a matrix product.
    """

    name: str
    operator: str
    source: str
    target: str
    input: Quantization
    output: Quantization | None
    weight: Array
    bias: Array
    step: Array
    padded: int
    window: Window | None


def find_cells(graph: QdqGraph, runtime: Runtime) -> Iterator[Cell]:
    """The layers of a graph in the ``cpu`` layout that ``runtime`` computes in u8 x s8, in order.

    Convolutions with one channel in and out of each group are left out: their kernels multiply in 32 bits.
    """
    for node in graph.nodes("Conv", "Gemm", "MatMul"):
        activation, weight = (_dequantized(graph, name) for name in node.input[:2])
        if activation is None or weight is None or not _fits(graph, activation, weight):
            continue
        quantize = _only_quantizer(graph, node)
        if runtime == "onnxruntime" and quantize is None and not _float_result(graph, node):
            continue
        cell = _cell(graph, node, activation, weight, quantize, runtime)
        if cell is not None:
            yield cell


def _cell(
    graph: QdqGraph,
    node: onnx.NodeProto,
    activation: onnx.NodeProto,
    weight: onnx.NodeProto,
    quantize: onnx.NodeProto | None,
    runtime: Runtime,
) -> Cell | None:
    values = graph.constant(weight.input[0])
    matrix = None if values is None else _matrix(node, values, runtime)
    if values is None or matrix is None:
        return None
    rows, padded = matrix
    outputs, how = rows.shape[0] * rows.shape[1], graph.quantization(activation)
    scale = graph.quantization(weight).scale
    alpha = np.float32(attribute(node, "alpha", 1.0)) if node.op_type == "Gemm" else np.float32(1)
    step = np.broadcast_to((alpha * how.scale.reshape(()) * scale).astype(np.float32), (outputs,))
    return Cell(
        name=name_of(node),
        operator=node.op_type,
        source=activation.input[0],
        target=node.output[0] if quantize is None else quantize.output[0],
        input=how,
        output=None if quantize is None else graph.quantization(quantize),
        weight=rows,
        bias=_bias(graph, node, step),
        step=step,
        padded=padded,
        window=_window(node, values) if node.op_type == "Conv" else None,
    )


def _matrix(node: onnx.NodeProto, values: Array, runtime: Runtime) -> tuple[Array, int] | None:
    """Weights ``[groups, outputs, products]`` in the order of the kernels, and the channels of each kernel position.

    Found by experiment on a CPU without VNNI. A convolution multiplies images with the channels last: products run over
    the kernel's positions and, within each, over channels. ONNX Runtime pairs them as they come, OpenVINO too in a
    convolution of several groups; in any other OpenVINO begins each position with a pair of its own.
    """
    if node.op_type == "Conv":
        groups = attribute(node, "group", 1)
        outputs, channels = values.shape[:2]
        if channels == 1 and outputs == groups:
            return None
        padded = channels + channels % 2 if runtime == "openvino" and groups == 1 else channels
        rows = values.reshape(groups, outputs // groups, channels, -1).transpose(0, 1, 3, 2)
        rows = np.pad(rows, ((0, 0), (0, 0), (0, 0), (0, padded - channels)))
        return _even(rows.reshape(groups, outputs // groups, -1)), padded
    if values.ndim != 2 or attribute(node, "transA", 0):
        return None
    rows = values if node.op_type == "Gemm" and attribute(node, "transB", 0) else values.T
    return _even(rows[np.newaxis]), rows.shape[1]


def _even(rows: Array) -> Array:
    return np.pad(rows, ((0, 0), (0, 0), (0, rows.shape[2] % 2)))


def _window(node: onnx.NodeProto, weights: Array) -> Window:
    rank = weights.ndim - 2
    kind = attribute(node, "auto_pad", "NOTSET")
    return Window(
        tuple(weights.shape[2:]),
        tuple(attribute(node, "strides", [1] * rank)),
        tuple(attribute(node, "dilations", [1] * rank)),
        tuple(attribute(node, "pads", [0] * 2 * rank)) if kind == "NOTSET" else (0,) * 2 * rank,
        kind[5:].lower() if kind.startswith("SAME_") else "",
    )


def _bias(graph: QdqGraph, node: onnx.NodeProto, step: Array) -> Array:
    """The bias in steps of the accumulator; int32 stands in the file in such steps already."""
    name = node.input[2] if len(node.input) > 2 else ""
    if not name:
        return np.zeros(step.shape, np.int64)
    source, values = graph.producer(name), graph.constant(name)
    if source is not None and source.op_type == DEQUANTIZE:
        values = graph.constant(source.input[0])
        if values is not None and values.dtype == np.int32:
            return np.broadcast_to(values, step.shape).astype(np.int64)
    if values is None or values.dtype != np.float32:
        raise ConversionError(f"{name_of(node)}: its bias {name!r} must be a constant, int32 or float32")
    return np.rint(np.broadcast_to(values.ravel(), step.shape) / step).astype(np.int64)


def _dequantized(graph: QdqGraph, name: str) -> onnx.NodeProto | None:
    source = graph.producer(name)
    return source if source is not None and source.op_type == DEQUANTIZE else None


def _fits(graph: QdqGraph, activation: onnx.NodeProto, weight: onnx.NodeProto) -> bool:
    """uint8 activations, computed and per tensor, and constant int8 weights with zero point 0."""
    one, other = graph.quantization(activation), graph.quantization(weight)
    computed = not graph.is_constant(activation.input[0]) and graph.is_constant(weight.input[0])
    return (
        computed and one.dtype == np.uint8 and one.per_tensor and other.dtype == np.int8 and not other.zero_point.any()
    )


def _only_quantizer(graph: QdqGraph, node: onnx.NodeProto) -> onnx.NodeProto | None:
    """The per-tensor uint8 QuantizeLinear that alone reads what the node gives."""
    users = graph.users(node.output[0])
    if len(users) != 1 or users[0].op_type != QUANTIZE or node.output[0] in graph.outputs:
        return None
    how = graph.quantization(users[0])
    return users[0] if how.dtype == np.uint8 and how.per_tensor else None


def _float_result(graph: QdqGraph, node: onnx.NodeProto) -> bool:
    """Whether ONNX Runtime has an integer kernel with a float result here."""
    users = graph.users(node.output[0])
    if node.op_type == "Conv" or any(user.op_type == QUANTIZE for user in users):
        return False
    if node.op_type == "MatMul":
        return True
    bias = node.input[2] if len(node.input) > 2 else ""
    fused = len(users) == 1 and users[0].op_type in ACTIVATIONS
    return not fused and (not bias or _dequantized(graph, bias) is not None)

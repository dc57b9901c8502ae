"""The same graph in other precisions, written by hand: halves, and explicit int8 QDQ as TensorRT takes it."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgecv.tensors import Array

ACTIVATION_SCALE = 0.05  # of no meaning: these graphs are built, not judged
WEIGHTED = {"Conv": 0, "ConvTranspose": 1, "Gemm": 0, "MatMul": 1}  # operator: the weight's axis of output channels


def half(model: onnx.ModelProto) -> onnx.ModelProto:
    """Float16 inside, the inputs and outputs kept as they are."""
    result = _copy(model)
    graph = result.graph
    for tensor in graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), tensor.name))
    for node in graph.node:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.i == TensorProto.FLOAT:
                attribute.i = TensorProto.FLOAT16
            if attribute.type == onnx.AttributeProto.TENSOR and attribute.t.data_type == TensorProto.FLOAT:
                attribute.t.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(attribute.t).astype(np.float16)))
    for value in graph.input:
        if value.type.tensor_type.elem_type == TensorProto.FLOAT:
            _rename_uses(graph, value.name, f"{value.name}_half")
            graph.node.insert(0, helper.make_node("Cast", [value.name], [f"{value.name}_half"], to=TensorProto.FLOAT16))
    for value in graph.output:
        inner = f"{value.name}_half"
        _rename_result(graph, value.name, inner)
        graph.node.append(helper.make_node("Cast", [inner], [value.name], to=TensorProto.FLOAT))
    return result


def quantized(model: onnx.ModelProto, opset: int = 19) -> onnx.ModelProto:
    """Explicit int8: every weighted node reads quantized activations and weights; zero points are 0, biases float."""
    result = _copy(model)
    graph = result.graph
    result.opset_import[0].version = opset
    weights = {tensor.name: tensor for tensor in graph.initializer}
    floating = TensorProto.FLOAT16 if any(w.data_type == TensorProto.FLOAT16 for w in weights.values()) else None
    dtype = np.dtype(np.float16 if floating else np.float32)
    graph.initializer.append(numpy_helper.from_array(np.array(ACTIVATION_SCALE, dtype), "activation_scale"))
    graph.initializer.append(numpy_helper.from_array(np.array(0, np.int8), "activation_zero"))
    nodes: list[onnx.NodeProto] = []
    done: set[str] = set()
    for node in graph.node:
        if node.op_type in WEIGHTED and len(node.input) > 1 and node.input[1] in weights:
            tensor, weight = node.input[0], node.input[1]
            if tensor not in done:
                nodes += _pair(tensor, "activation_scale", "activation_zero")
                done.add(tensor)
            if weight not in done:
                nodes += _weight(graph, weights[weight], WEIGHTED[node.op_type])
                done.add(weight)
            node.input[0], node.input[1] = f"{tensor}_dq", f"{weight}_dq"
        nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
    return result


def _pair(tensor: str, scale: str, zero: str) -> list[onnx.NodeProto]:
    quantize = helper.make_node("QuantizeLinear", [tensor, scale, zero], [f"{tensor}_q"], f"{tensor}_q")
    return [quantize, helper.make_node("DequantizeLinear", [f"{tensor}_q", scale, zero], [f"{tensor}_dq"])]


def _weight(graph: onnx.GraphProto, tensor: onnx.TensorProto, axis: int) -> list[onnx.NodeProto]:
    """Store a weight as int8 with a scale per output channel, and dequantize it."""
    values = numpy_helper.to_array(tensor)
    others = tuple(i for i in range(values.ndim) if i != axis)
    scales: Array = np.maximum(np.abs(values.astype(np.float64)).max(axis=others), 1e-3) / 127
    shape = [-1 if i == axis else 1 for i in range(values.ndim)]
    steps = np.rint(values / scales.reshape(shape)).clip(-127, 127).astype(np.int8)
    name = tensor.name
    graph.initializer.append(numpy_helper.from_array(scales.astype(values.dtype), f"{name}_scale"))
    graph.initializer.append(numpy_helper.from_array(np.zeros(scales.shape, np.int8), f"{name}_zero"))
    tensor.CopyFrom(numpy_helper.from_array(steps, name))
    inputs = [name, f"{name}_scale", f"{name}_zero"]
    return [helper.make_node("DequantizeLinear", inputs, [f"{name}_dq"], f"{name}_dq", axis=axis)]


def _copy(model: onnx.ModelProto) -> onnx.ModelProto:
    result = onnx.ModelProto()
    result.CopyFrom(model)
    del result.graph.value_info[:]
    return result


def _rename_uses(graph: onnx.GraphProto, old: str, new: str) -> None:
    for node in graph.node:
        node.input[:] = [new if name == old else name for name in node.input]


def _rename_result(graph: onnx.GraphProto, old: str, new: str) -> None:
    for node in graph.node:
        node.output[:] = [new if name == old else name for name in node.output]
    _rename_uses(graph, old, new)

"""Means over height and width, and the layers behind them, as the operators that image kernels take."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from edgecv.converters.onnx_check import drop_unused, fresh, initializers, names_in

__all__ = ["pool_globally"]

IMAGE = 4  # dimensions: batch, channels, height, width
UNARY = ("Clip", "HardSigmoid", "HardSwish", "Relu", "Sigmoid", "Tanh")


def pool_globally(model: onnx.ModelProto) -> None:
    """Write, in place, the means over an image that weigh its channels as GlobalAveragePool, and the linear layers
    between such a mean and its return to the image as convolutions of one pixel.

    ONNX Runtime keeps images in blocks of channels between convolutions. ReduceMean and Gemm make it write the image
    out channel by channel first; these operators read it as it is. Answers are the same to the rounding of float32.
    """
    for mean in [node for node in model.graph.node if node.op_type == "ReduceMean" and _over_image(model, node)]:
        if _attribute(mean, "keepdims", 1):
            _replace(model, mean, "GlobalAveragePool", [mean.input[0]])
            continue
        way = _way_back(model, mean)
        if way:
            _as_image(model, mean, way)
    drop_unused(model)


def _over_image(model: onnx.ModelProto, mean: onnx.NodeProto) -> bool:
    known = {value.name: value.type.tensor_type.shape for value in (*model.graph.value_info, *model.graph.input)}
    axes = _integers(model, mean.input[1]) if len(mean.input) > 1 else None
    if axes is None or mean.input[0] not in known or len(known[mean.input[0]].dim) != IMAGE:
        return False
    return sorted(axis % IMAGE for axis in axes) == [2, 3]


def _way_back(model: onnx.ModelProto, mean: onnx.NodeProto) -> list[onnx.NodeProto] | None:
    """The nodes from a mean to the Unsqueeze that makes one pixel of it, each read by the next alone."""
    way: list[onnx.NodeProto] = []
    outputs, name = {value.name for value in model.graph.output}, mean.output[0]
    while name not in outputs:
        readers = [node for node in model.graph.node if name in node.input]
        if len(readers) != 1 or readers[0].input[0] != name:
            return None
        way.append(readers[0])
        if readers[0].op_type == "Unsqueeze":
            return way if _integers(model, readers[0].input[1]) in ([2, 3], [-2, -1]) else None
        if readers[0].op_type not in UNARY and not _linear(model, readers[0]):
            return None
        name = readers[0].output[0]
    return None


def _linear(model: onnx.ModelProto, node: onnx.NodeProto) -> bool:
    """Whether it is a Gemm that a convolution can stand for: constant float32, as linear layers are exported."""
    held = initializers(model)
    constant = all(name in held and held[name].data_type == onnx.TensorProto.FLOAT for name in node.input[1:])
    plain = all(_attribute(node, name, default) == default for name, default in (("alpha", 1.0), ("beta", 1.0)))
    if node.op_type != "Gemm" or not constant or not plain or _attribute(node, "transA", 0):
        return False
    outputs = held[node.input[1]].dims[0 if _attribute(node, "transB", 0) else 1]
    return len(node.input) < 3 or list(held[node.input[2]].dims) == [outputs]


def _as_image(model: onnx.ModelProto, mean: onnx.NodeProto, way: list[onnx.NodeProto]) -> None:
    graph = model.graph
    reshaped = {name for node in (mean, *way[:-1]) for name in node.output}
    known = [value for value in graph.value_info if value.name not in reshaped]
    del graph.value_info[:]
    graph.value_info.extend(known)
    *layers, back = way
    _replace(model, mean, "GlobalAveragePool", [mean.input[0]])
    for node in layers:
        if node.op_type == "Gemm":
            name = _kernel(model, node.input[1], bool(_attribute(node, "transB", 0)))
            _replace(model, node, "Conv", [node.input[0], name, *node.input[2:]], kernel_shape=[1, 1])
    for node in graph.node:
        node.input[:] = [back.input[0] if name == back.output[0] else name for name in node.input]
    graph.node.remove(back)


def _kernel(model: onnx.ModelProto, name: str, transposed: bool) -> str:
    """The weights of a linear layer as those of a convolution of one pixel."""
    weight = numpy_helper.to_array(initializers(model)[name])
    kernel = np.ascontiguousarray(weight if transposed else weight.T)[:, :, None, None]
    made = fresh(f"{name}_kernel", names_in(model.graph))
    model.graph.initializer.append(numpy_helper.from_array(kernel, made))
    return made


def _replace(model: onnx.ModelProto, node: onnx.NodeProto, operator: str, inputs: list[str], **attributes: Any) -> None:
    other = helper.make_node(operator, inputs, list(node.output), name=node.name, **attributes)
    nodes = model.graph.node
    nodes.insert(list(nodes).index(node), other)
    nodes.remove(node)


def _integers(model: onnx.ModelProto, name: str) -> list[int] | None:
    held = initializers(model).get(name)
    return None if held is None else [int(number) for number in numpy_helper.to_array(held).ravel()]


def _attribute(node: onnx.NodeProto, name: str, default: Any) -> Any:
    return next((helper.get_attribute_value(item) for item in node.attribute if item.name == name), default)

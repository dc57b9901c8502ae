"""A graph that was exported for a batch of 1 to the same graph for any batch."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.numpy_helper

from edgecv.converters.onnx_check import (
    checked,
    drop_unused,
    fresh,
    inferred,
    initializers,
    label,
    names_in,
    plain,
    refuse_subgraphs,
)
from edgecv.errors import ConversionError

__all__ = ["free_batch"]


def free_batch(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy whose inputs and outputs take any batch, from a graph that was exported for a batch of 1.

    A ``Reshape`` to a constant shape that begins with 1 keeps its input's batch instead.

    Raises:
        ConversionError: a node fixes the batch; the message names it.
    """
    model = plain(model)
    graph = model.graph
    refuse_subgraphs(graph.node, "the batch can be freed in graphs without branches and loops")
    _free_reshapes(model)
    for value in graph.input:
        _set_batch(value)
    del graph.value_info[:]
    for value in graph.output:
        value.type.tensor_type.ClearField("shape")
    freed = inferred(model)
    batches = _batches(freed)
    if any(batches.get(value.name) != "batch" for value in freed.graph.output):
        raise ConversionError(f"the batch cannot be freed: {_fixing(freed, batches)} fixes it")
    drop_unused(freed)
    return checked(freed)


def _set_batch(value: onnx.ValueInfoProto) -> None:
    batch = value.type.tensor_type.shape.dim[0]
    if batch.dim_value not in (0, 1):
        raise ConversionError(f"the batch cannot be freed: input {value.name!r} is fixed to {batch.dim_value}")
    batch.dim_param = "batch"


def _free_reshapes(model: onnx.ModelProto) -> None:
    """Let each ``Reshape`` from 1 to 1 copy its first dimension, whatever it is: 0 says so."""
    graph, constants = model.graph, initializers(model)
    firsts, taken = _batches(checked(model)), names_in(graph)
    for node in graph.node:
        if node.op_type != "Reshape" or node.input[1] not in constants:
            continue
        shape = onnx.numpy_helper.to_array(constants[node.input[1]])
        if len(shape) and shape[0] in (1, -1) and firsts.get(node.input[0]) == firsts.get(node.output[0]) == 1:
            if 0 in shape and _allows_zero(node):
                continue  # the zeros mean empty dimensions, and cannot mean "as the input" beside them
            kept = [attribute for attribute in node.attribute if attribute.name != "allowzero"]
            del node.attribute[:]
            node.attribute.extend(kept)
            freed = np.concatenate([np.zeros(1, np.int64), shape[1:]])
            node.input[1] = fresh(f"{node.input[1]}_any_batch", taken)
            graph.initializer.append(onnx.numpy_helper.from_array(freed, node.input[1]))


def _allows_zero(node: onnx.NodeProto) -> bool:
    return any(attribute.name == "allowzero" and attribute.i for attribute in node.attribute)


def _batches(model: onnx.ModelProto) -> dict[str, int | str]:
    """The first dimension of every tensor that has one: its size or its name."""
    found = {}
    for value in (*model.graph.input, *model.graph.value_info, *model.graph.output):
        for dim in value.type.tensor_type.shape.dim[:1]:
            found[value.name] = dim.dim_param or dim.dim_value
    return found


def _fixing(model: onnx.ModelProto, batches: dict[str, int | str]) -> str:
    """The first node that takes a batch of any size and gives none."""
    for node in model.graph.node:
        takes = any(batches.get(name) == "batch" for name in node.input)
        if takes and node.op_type != "Shape" and batches.get(node.output[0]) != "batch":
            return label(node)
    return "a node"

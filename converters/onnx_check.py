"""What every step over an ONNX graph needs: a plain copy, the types of its tensors, a strict check, the same bytes."""

from __future__ import annotations

from collections.abc import Iterable

import onnx
import onnx.checker
import onnx.inliner
import onnx.numpy_helper
import onnx.shape_inference

from edgecv.errors import ConversionError, one_line

__all__ = [
    "checked",
    "drop_unused",
    "element_types",
    "fresh",
    "inferred",
    "initializers",
    "label",
    "names_in",
    "opset_of",
    "plain",
    "reads",
    "refuse_subgraphs",
    "subgraphs",
]

CONSTANTS = ("value", "value_float", "value_floats", "value_int", "value_ints")


def plain(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy without local functions, ``Constant`` nodes and inputs that are initializers.

    What they held stands in the graph's nodes and initializers, so that a rewrite has one form of each to handle.
    """
    if model.functions:
        copy = onnx.inliner.inline_local_functions(model)
    else:
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
    graph = copy.graph
    nodes = [node for node in graph.node if not _lift(node, graph)]
    del graph.node[:]
    graph.node.extend(nodes)
    constant = {item.name for item in graph.initializer}
    inputs = [value for value in graph.input if value.name not in constant]
    del graph.input[:]
    graph.input.extend(inputs)
    drop_unused(copy)
    return copy


def drop_unused(model: onnx.ModelProto) -> None:
    """Remove the initializers that nothing reads; ONNX Runtime warns about each of them."""
    graph = model.graph
    read = {value.name for value in graph.output}.union(*map(reads, graph.node))
    kept = [item for item in graph.initializer if item.name in read]
    if len(kept) < len(graph.initializer):
        del graph.initializer[:]
        graph.initializer.extend(kept)


def inferred(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model with the type and shape of every tensor inferred.

    Raises:
        ConversionError: types or shapes contradict each other.
    """
    try:
        return onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
    except (onnx.shape_inference.InferenceError, ValueError) as error:
        raise ConversionError(f"the graph is not valid ONNX: {one_line(error)}") from error


def checked(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the inferred model, once ONNX's own full check has passed it.

    Raises:
        ConversionError: the graph is not valid ONNX.
    """
    found = inferred(model)
    try:
        onnx.checker.check_model(found, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, ValueError) as error:
        raise ConversionError(f"the graph is not valid ONNX: {one_line(error)}") from error
    return found


def element_types(model: onnx.ModelProto) -> dict[str, int]:
    """The ``TensorProto`` data type of every tensor of a checked model, by name."""
    graph = model.graph
    values = (*graph.input, *graph.value_info, *graph.output)
    types = {value.name: value.type.tensor_type.elem_type for value in values if value.type.HasField("tensor_type")}
    return types | {item.name: item.data_type for item in graph.initializer}


def initializers(model: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    """The constant tensors of the graph, by name."""
    return {item.name: item for item in model.graph.initializer}


def names_in(graph: onnx.GraphProto) -> set[str]:
    """Every name in the graph and in the graphs inside it."""
    found = {item.name for item in (*graph.input, *graph.output, *graph.initializer, *graph.value_info)}
    for node in graph.node:
        found.update((node.name, *node.input, *node.output))
        found.update(*(names_in(inner) for inner in subgraphs(node)))
    return found


def opset_of(model: onnx.ModelProto) -> int:
    """The version of ONNX's own operators that the model is written in."""
    found = [item.version for item in model.opset_import if item.domain in ("", "ai.onnx")]
    if not found:
        raise ConversionError("the model names no opset of ONNX's own operators")
    return int(found[0])


def fresh(name: str, taken: set[str]) -> str:
    """Return ``name``, or it with the first free number behind; what is returned is ``taken`` from then on."""
    found, number = name, 1
    while found in taken:
        number += 1
        found = f"{name}_{number}"
    taken.add(found)
    return found


def label(node: onnx.NodeProto) -> str:
    """A node in a message: its name, or where it has none its first output, and its operator."""
    return f"node {(node.name or next(iter(node.output), ''))!r} ({node.op_type})"


def refuse_subgraphs(nodes: Iterable[onnx.NodeProto], wanted: str) -> None:
    """Raise ``ConversionError`` where a node holds a graph of its own (``If``, ``Loop``, ``Scan``)."""
    for node in nodes:
        if subgraphs(node):
            raise ConversionError(f"{wanted}: {label(node)} holds a graph of its own; export the network without it")


def subgraphs(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    """The graphs inside a node, as the branches of an ``If``."""
    single = [attribute.g for attribute in node.attribute if attribute.type == onnx.AttributeProto.GRAPH]
    return single + [graph for attribute in node.attribute for graph in attribute.graphs]


def reads(node: onnx.NodeProto) -> set[str]:
    """The tensors that a node reads, by its inputs or from the graphs inside it."""
    inner = [reads(below) for graph in subgraphs(node) for below in graph.node]
    return set(node.input).union(*inner)


def _lift(node: onnx.NodeProto, graph: onnx.GraphProto) -> bool:
    """Make a numeric ``Constant`` node an initializer; say whether it was one."""
    if node.op_type != "Constant" or node.domain not in ("", "ai.onnx") or node.attribute[0].name not in CONSTANTS:
        return False
    value = onnx.helper.get_attribute_value(node.attribute[0])
    tensor = onnx.TensorProto()
    if isinstance(value, onnx.TensorProto):
        tensor.CopyFrom(value)
    else:
        kind = onnx.TensorProto.INT64 if "int" in node.attribute[0].name else onnx.TensorProto.FLOAT
        many = isinstance(value, list | tuple)
        tensor = onnx.helper.make_tensor("", kind, [len(value)] if many else [], value if many else [value])
    tensor.name = node.output[0]
    graph.initializer.append(tensor)
    return True

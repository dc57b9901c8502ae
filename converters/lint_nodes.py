"""Single ONNX nodes: attributes, names for messages, and what the operator's definition says of their types."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx
import onnx.defs
import onnx.helper

from edgecv.errors import InputError

__all__ = [
    "ONNX_DOMAINS",
    "TYPES",
    "Node",
    "attribute",
    "check_node",
    "label",
    "name_of",
    "schema_of",
    "subgraphs_of",
    "type_name",
    "variables",
]

Node = Any  # onnx.NodeProto: onnx is untyped
TYPES = onnx.TensorProto.DataType
ONNX_DOMAINS = ("", "ai.onnx")


def attribute(node: Node, name: str, default: Any) -> Any:
    """The value of an attribute; text is decoded."""
    for item in node.attribute:
        if item.name == name:
            value = onnx.helper.get_attribute_value(item)
            return value.decode("utf-8", "replace") if isinstance(value, bytes) else value
    return default


def name_of(node: Node) -> str:
    """The node's name, or its first output's where it has none."""
    return str(node.name or next((name for name in node.output if name), ""))


def label(node: Node) -> str:
    """The node in a message: ``node 'conv1' (Conv)``."""
    return (
        f"node {name_of(node)!r} ({node.op_type})" if node.name else f"node giving {name_of(node)!r} ({node.op_type})"
    )


def type_name(kind: int) -> str:
    """An element type in lower case: ``uint8``, ``float``."""
    return str(TYPES.Name(kind)).lower() if kind in TYPES.values() else f"type {kind}"


def schema_of(node: Node, opset: int) -> Any | None:
    """ONNX's definition of the node's operator in ``opset``; ``None`` where ONNX has none."""
    if node.domain not in ONNX_DOMAINS:
        return None
    try:
        return onnx.defs.get_schema(node.op_type, opset, "")
    except onnx.defs.SchemaError:
        return None


def check_node(node: Node, opset: int) -> None:
    """Raise ``InputError`` where a node has not the inputs, outputs and attributes that its operator needs."""
    if not node.output:
        raise InputError(f"{label(node)} has no output")
    schema = schema_of(node, opset)
    if schema is None:
        return
    low, high = schema.min_input, schema.max_input
    if not low <= len(node.input) <= high or len(node.output) > schema.max_output:
        counts = f"{len(node.input)} inputs and {len(node.output)} outputs"
        raise InputError(f"{label(node)} has {counts}; ONNX's {node.op_type} takes {low} to {high} inputs")
    needed = [item for item in schema.inputs[:low] if item.option == onnx.defs.OpSchema.FormalParameterOption.Single]
    if not all(node.input[: len(needed)]):
        raise InputError(f"{label(node)} lacks an input that ONNX's {node.op_type} needs")
    given = {item.name for item in node.attribute}
    for name, item in schema.attributes.items():
        if item.required and name not in given:
            raise InputError(f"{label(node)} lacks the attribute {name!r}")


def variables(parameters: Sequence[Any], count: int) -> list[str]:
    """The type variable of each of ``count`` inputs or outputs; that of a variadic parameter is repeated.

    Parameters that may differ in type from each other have no common variable: each gets one of its own.
    """
    found = [p.type_str if p.is_homogeneous else "" for p in parameters][:count]
    found += found[-1:] * (count - len(found)) if found else [""] * count
    return [variable or f"any {index}" for index, variable in enumerate(found)]


def subgraphs_of(node: Node) -> list[Any]:
    """The graphs in a node's attributes: the branches of ``If``, the bodies of ``Loop`` and ``Scan``."""
    found = []
    for item in node.attribute:
        if item.type == onnx.AttributeProto.GRAPH:
            found.append(item.g)
        elif item.type == onnx.AttributeProto.GRAPHS:
            found.extend(item.graphs)
    return found

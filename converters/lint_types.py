"""Element types: what TensorRT has no type for, uint8 inside a graph, and float types that meet at one node."""

from __future__ import annotations

from collections.abc import Iterator

from edgecv.converters.lint_graph import Graph
from edgecv.converters.lint_nodes import TYPES, Node, attribute, label, schema_of, type_name, variables
from edgecv.converters.lint_rules import TENSORRT, Problem, Rule

__all__ = ["RULES", "TENSORRT_TYPES"]

STRONG_TYPING = (
    "https://docs.nvidia.com/deeplearning/tensorrt/latest/inference-library/advanced.html#strongly-typed-networks"
)
OPERATORS = "https://github.com/onnx/onnx-tensorrt/blob/main/docs/operators.md"
UINT8, DOUBLE = TYPES.Value("UINT8"), TYPES.Value("DOUBLE")
# DOUBLE is read as FLOAT, UINT8 is for inputs, outputs and weights only.
_TYPES = "FLOAT FLOAT16 BFLOAT16 DOUBLE BOOL INT4 INT8 INT32 INT64 UINT8 FLOAT8E4M3FN FLOAT4E2M1"
TENSORRT_TYPES = frozenset(TYPES.Value(name) for name in _TYPES.split())
QUANTIZATION = ("QuantizeLinear", "DequantizeLinear")  # their types are the quantization rules' subject
TAKE_UINT8 = ("Cast", "CastLike", "Equal", "Shape", "Size", *QUANTIZATION)
# Inputs that ONNX lets differ in type and TensorRT does not.
SAME_TYPE = {"GridSample": (0, 1), "Attention": (0, 1, 2), "RMSNormalization": (0, 1)}
EXEMPT = ("BatchNormalization", "Cast", "CastLike", "Pow")  # the parser brings their inputs to one type


def _without_equal(graph: Graph) -> Iterator[Problem]:
    for value in graph.inputs:
        if value.type.WhichOneof("value") not in (None, "tensor_type"):
            yield (
                None,
                f"input {value.name!r} is a {value.type.WhichOneof('value').removesuffix('_type')}, not a tensor",
            )
        elif not _has_equal(graph.type(value.name)):
            yield None, f"input {value.name!r} is {type_name(graph.type(value.name))}, which TensorRT has no type for"
    for name, tensor in graph.initializers.items():
        if not _has_equal(tensor.data_type):
            yield None, f"initializer {name!r} is {type_name(tensor.data_type)}, which TensorRT has no type for"
    for node in graph.nodes:
        kinds = [graph.type(name) for name in node.output if name]
        if node.op_type == "Constant" and any(attribute(node, key, None) is not None for key in NOT_NUMBERS):
            yield node, f"{label(node)} holds text or a sparse tensor"
        elif bad := [kind for kind in kinds if not _has_equal(kind)]:
            yield node, f"{label(node)} gives {type_name(bad[0])}, which TensorRT has no type for"


def _double(graph: Graph) -> Iterator[Problem]:
    for value in graph.inputs:
        if graph.type(value.name) == DOUBLE:
            yield None, f"input {value.name!r} is double; TensorRT reads it as float"
    for node in graph.nodes:
        if node.op_type in ("Cast", "Constant") and graph.type(node.output[0]) == DOUBLE:
            yield node, f"{label(node)} gives double; TensorRT reads it as float"


def _uint8_inside(graph: Graph) -> Iterator[Problem]:
    for node in graph.nodes:
        taken = [name for name in node.input if graph.type(name) == UINT8 and name not in graph.initializers]
        if taken and node.op_type not in TAKE_UINT8:
            yield (
                node,
                f"{label(node)} takes uint8 {taken[0]!r}; TensorRT has uint8 at inputs and outputs only, to be cast",
            )
        elif node.op_type not in ("Constant", *QUANTIZATION):
            for name in node.output:
                if graph.type(name) == UINT8 and (name not in graph.outputs or graph.users(name)):
                    yield node, f"{label(node)} gives uint8 {name!r} inside the graph, which TensorRT cannot hold"


def _mixed(graph: Graph) -> Iterator[Problem]:
    for node in graph.nodes:
        for names in _alike(graph, node):
            kinds = {name: graph.type(name) for name in names if graph.type(name)}
            if len({_read_as(kind) for kind in kinds.values()}) > 1:
                found = ", ".join(f"{name!r} {type_name(kind)}" for name, kind in kinds.items())
                yield node, f"{label(node)} takes different types where it needs one: {found}"
                break


def _alike(graph: Graph, node: Node) -> list[list[str]]:
    """The inputs of a node by groups that must have one type."""
    schema = schema_of(node, graph.opset)
    if schema is None or node.op_type in (*EXEMPT, *QUANTIZATION):
        return []
    groups: dict[str, list[str]] = {}
    for name, variable in zip(node.input, variables(schema.inputs, len(node.input)), strict=True):
        if name and not variable.startswith(("tensor(", "seq(", "optional(")):
            groups.setdefault(variable, []).append(name)
    places = SAME_TYPE.get(node.op_type, ())
    return [*groups.values(), [node.input[i] for i in places if i < len(node.input) and node.input[i]]]


def _has_equal(kind: int) -> bool:
    return kind == 0 or kind in TENSORRT_TYPES


def _read_as(kind: int) -> int:
    return TYPES.Value("FLOAT") if kind == DOUBLE else kind


NOT_NUMBERS = ("value_string", "value_strings", "sparse_value")
SAME = (
    r"must have (the )?same (input )?types?", r"must (all )?be of (the )?same types?", r"of same types but has",
    r"must have identical types", r"Inputs must be either all FLOAT or all FLOAT16",
)  # fmt: skip
UINT8_REFUSED = (
    r"Found unsupported input type of UINT8", r"does not support UINT8 types for intermediate", r"type is UInt8\b",
    r"input has type UInt8 but must",
)  # fmt: skip

RULES = (
    Rule("TRT130", "error", TENSORRT, _mixed,
         "cast one to the other's type: a strongly typed network converts nothing by itself", STRONG_TYPING, SAME),
    Rule("TRT132", "error", TENSORRT, _without_equal, "use int32, int64 or float", OPERATORS,
         (r"Failed to convert ONNX da[td]e type", r"Unsupported data type for the Cast",
          r"Failed to import initializer",
          r"value_string and value_strings attributes", r"output_dtype specifies an unsupported data type")),
    Rule("TRT133", "warning", TENSORRT, _double, "export in float: what was compared is then what runs", OPERATORS),
    Rule("TRT134", "error", TENSORRT, _uint8_inside,
         "cast to float right behind the input, before anything is moved or computed", OPERATORS, UINT8_REFUSED),
)  # fmt: skip

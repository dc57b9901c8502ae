"""A read-only view of an ONNX graph for lint rules: who gives and takes a tensor, its type, shape and origin."""

from __future__ import annotations

from enum import IntEnum
from pathlib import Path
from typing import Any

import google.protobuf.message  # type: ignore[import-untyped]
import numpy as np
import onnx
import onnx.checker
import onnx.inliner
import onnx.numpy_helper
import onnx.shape_inference
from numpy.typing import NDArray

from edgecv.converters.lint_nodes import (
    ONNX_DOMAINS,
    TYPES,
    Node,
    attribute,
    check_node,
    schema_of,
    subgraphs_of,
    variables,
)
from edgecv.errors import InputError, one_line

__all__ = ["Graph", "Origin", "read_graph"]

_WHOLE = "INT8 INT16 INT32 INT64 UINT8 UINT16 UINT32 UINT64 BOOL"
WHOLE = [TYPES.Value(name) for name in _WHOLE.split()]
CARRIERS = ("Cast", "Identity", "Reshape", "Squeeze", "Unsqueeze")  # the same values, but for type or shape
ARITHMETIC: dict[str, Any] = {"Add": np.add, "Sub": np.subtract, "Mul": np.multiply, "Div": np.divide}
RANDOM = ("Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike")
PLAIN_VALUES = ("value_float", "value_floats", "value_int", "value_ints")


class Origin(IntEnum):
    """What a tensor's values depend on; of several, the largest counts."""

    CONSTANT = 0
    SHAPES = 1  # sizes of inputs that are known at run time only
    INTEGERS = 2  # values of integer or bool inputs
    FLOATS = 3  # values of float inputs


class Graph:
    """One graph, or a subgraph of ``If``, ``Loop`` or ``Scan``, which sees the names of its ``parent`` too.

    ``inputs`` are what a caller gives (no initializers), ``outputs`` the names that leave the graph.
    """

    def __init__(self, model: Any, proto: Any, inferred: Any, folder: str, parent: Graph | None = None) -> None:
        self.model, self.parent, self._folder = model, parent, folder
        self.opset = _opset(model)
        self.nodes: list[Node] = list(proto.node)
        self.initializers = {tensor.name: tensor for tensor in proto.initializer}
        self.inputs = [value for value in proto.input if value.name not in self.initializers]
        self.outputs = {value.name for value in proto.output}
        self._producers = {name: node for node in self.nodes for name in node.output if name}
        self._users: dict[str, list[Node]] = {}
        self._types: dict[str, int] = {}
        self._shapes: dict[str, tuple[int | None, ...]] = {}
        self._origins = dict.fromkeys(self.initializers, Origin.CONSTANT)
        self.subgraphs: list[Graph] = []
        for value in (*inferred.input, *inferred.output, *inferred.value_info):
            self._note(value)
        for name, tensor in self.initializers.items():
            self._types[name], self._shapes[name] = tensor.data_type, tuple(tensor.dims)
        self._walk(inferred)

    def producer(self, name: str) -> Node | None:
        """The node that gives ``name``."""
        return self._producers.get(name) or (self.parent.producer(name) if self.parent else None)

    def users(self, name: str) -> list[Node]:
        """The nodes of this graph that take ``name``."""
        return self._users.get(name, [])

    def type(self, name: str) -> int:
        """ONNX element type; 0 where it is not known."""
        return self._types.get(name) or (self.parent.type(name) if self.parent else 0)

    def shape(self, name: str) -> tuple[int | None, ...] | None:
        """Shape with ``None`` for a free dimension; ``None`` where not even the rank is known."""
        return self._shapes[name] if name in self._shapes else self.parent.shape(name) if self.parent else None

    def origin(self, name: str) -> Origin:
        """What the values of ``name`` depend on."""
        if name in self._origins:
            return self._origins[name]
        return self.parent.origin(name) if self.parent else Origin.FLOATS

    def stored(self, name: str) -> bool:
        """Whether the values stand in the file: an initializer or a ``Constant``, at most cast."""
        node = self.producer(name)
        while node is not None and node.op_type in ("Cast", "Identity") and node.input:
            name = node.input[0]
            node = self.producer(name)
        return self.origin(name) is Origin.CONSTANT and (node is None or node.op_type == "Constant")

    def constant(self, name: str) -> NDArray[Any] | None:
        """The values of a constant, also through arithmetic; ``None`` where they are not known before run time.

        What went through ``Reshape`` has the shape from before it.

        Raises:
            InputError: the values are in an external file that cannot be read.
        """
        if self.origin(name) is not Origin.CONSTANT:
            return None
        if name in self.initializers:
            return self._array(self.initializers[name])
        node = self._producers.get(name)
        if node is None:
            return self.parent.constant(name) if self.parent else None
        return self._computed(node)

    def _array(self, tensor: Any) -> NDArray[Any]:
        try:
            array: NDArray[Any] = onnx.numpy_helper.to_array(tensor, self._folder)
        except (OSError, ValueError, TypeError, onnx.checker.ValidationError) as error:
            raise InputError(f"cannot read the values of {tensor.name!r}: {one_line(error)}") from error
        return array

    def _computed(self, node: Node) -> NDArray[Any] | None:
        if node.op_type == "Constant":
            value = attribute(node, "value", None)
            plain = [attribute(node, key, None) for key in PLAIN_VALUES]
            found = next((item for item in plain if item is not None), None)
            return self._array(value) if value is not None else None if found is None else np.asarray(found)
        if node.op_type in CARRIERS and node.input:
            return self.constant(node.input[0])
        if node.op_type not in ARITHMETIC or len(node.input) != 2:
            return None
        left, right = (self.constant(name) for name in node.input)
        if left is None or right is None:
            return None
        try:
            with np.errstate(all="ignore"):
                return np.asarray(ARITHMETIC[node.op_type](left, right))
        except ValueError:  # shapes from before a Reshape may not fit each other
            return None

    def _note(self, value: Any) -> None:
        if value.type.HasField("tensor_type"):
            tensor = value.type.tensor_type
            self._types[value.name] = tensor.elem_type
            if tensor.HasField("shape"):
                sizes = (item.dim_value if item.HasField("dim_value") else None for item in tensor.shape.dim)
                self._shapes[value.name] = tuple(sizes)

    def _walk(self, inferred: Any) -> None:
        """Follow users, origins and types from the inputs to the outputs."""
        for value in self.inputs:
            self._origins[value.name] = Origin.INTEGERS if self.type(value.name) in WHOLE else Origin.FLOATS
        for node, twin in zip(self.nodes, inferred.node, strict=True):
            for name in dict.fromkeys(node.input):
                self._users.setdefault(name, []).append(node)
            inner = [
                Graph(self.model, proto, other, self._folder, self)
                for proto, other in zip(subgraphs_of(node), subgraphs_of(twin), strict=True)
            ]
            self.subgraphs += inner
            origin = max([self._origin_of(node), *(graph.origin(name) for graph in inner for name in graph.outputs)])
            for name, kind in zip(node.output, self._types_of(node), strict=True):
                self._origins[name] = origin
                self._types[name] = kind or self._types.get(name, 0)

    def _origin_of(self, node: Node) -> Origin:
        if node.op_type in ("Shape", "Size") and node.input:
            shape = self.shape(node.input[0])
            known = shape is not None and None not in shape
            return min(self.origin(node.input[0]), Origin.CONSTANT if known else Origin.SHAPES)
        if node.op_type in RANDOM:
            return Origin.FLOATS
        return max((self.origin(name) for name in node.input if name), default=Origin.CONSTANT)

    def _types_of(self, node: Node) -> list[int]:
        """The types of a node's outputs as a strongly typed builder has them; 0 leaves it to ONNX's inference."""
        if node.op_type == "QuantizeLinear" and len(node.input) > 1:
            point = self.type(node.input[2]) if len(node.input) > 2 and node.input[2] else 0
            kind = point or attribute(node, "output_dtype", 0) or TYPES.Value("UINT8")
            return [kind] * len(node.output)
        if node.op_type == "DequantizeLinear" and len(node.input) > 1:
            return [attribute(node, "output_dtype", 0) or self.type(node.input[1])] * len(node.output)
        if node.op_type == "Cast":
            return [attribute(node, "to", 0)] * len(node.output)
        schema = schema_of(node, self.opset)
        if schema is None:
            return [0] * len(node.output)
        known: dict[str, int] = {}
        for name, variable in zip(node.input, variables(schema.inputs, len(node.input)), strict=True):
            if name:
                known.setdefault(variable, self.type(name))
        return [known.get(variable, 0) for variable in variables(schema.outputs, len(node.output))]


def read_graph(model: str | Path | Any) -> Graph:
    """Read an ONNX file or model, with local functions inlined, types and shapes inferred.

    Weights in external files are read only where a rule asks for their values.

    Raises:
        InputError: the file cannot be read or is not a whole ONNX model.
    """
    where, folder = "the model", ""
    if isinstance(model, str | Path):
        where, folder = str(model), str(Path(model).parent)
        model = _load(Path(model))
    elif not isinstance(model, onnx.ModelProto):
        raise InputError(f"lint takes the path of an ONNX file or an onnx.ModelProto, got {type(model).__name__}")
    if not model.graph.node or not model.opset_import:
        raise InputError(f"{where} is not a whole ONNX model: it names no opset or holds no nodes")
    if model.functions:
        model = onnx.inliner.inline_local_functions(model)
    _check_nodes(model.graph, _opset(model))
    try:
        inferred = onnx.shape_inference.infer_shapes(model)
    except (onnx.shape_inference.InferenceError, google.protobuf.message.EncodeError, ValueError):
        inferred = model  # contradictory, or over 2 GB: what the file declares must do
    return Graph(model, model.graph, inferred.graph, folder)


def _opset(model: Any) -> int:
    return next((item.version for item in model.opset_import if item.domain in ONNX_DOMAINS), 1)


def _check_nodes(graph: Any, opset: int) -> None:
    """Refuse nodes that lack what their operator needs, on which ONNX's shape inference may crash."""
    for node in graph.node:
        check_node(node, opset)
        for inner in subgraphs_of(node):
            _check_nodes(inner, opset)


def _load(path: Path) -> Any:
    try:
        return onnx.load(str(path), load_external_data=False)
    except OSError as error:
        raise InputError(f"cannot read {path}: {one_line(error.strerror or error)}") from error
    except (google.protobuf.message.DecodeError, ValueError) as error:
        raise InputError(f"{path} is not an ONNX file, or is cut short: {one_line(error)}") from error

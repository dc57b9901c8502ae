"""ONNX graph in float32 to the same graph in float16, its inputs and outputs as they were.

``onnxruntime.transformers.float16`` (which ``onnxconverter_common`` shares) was tried and is not used: where two nodes
that stay in float32 read one float16 tensor it writes the same cast twice, which is not valid ONNX; its nodes are not
sorted; weights that float16 cannot hold are cut to 65504 without a word; and converting would need ONNX Runtime.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import onnx
import onnx.defs
import onnx.numpy_helper
from onnx import TensorProto

from edgecv.converters.onnx_check import (
    checked,
    element_types,
    fresh,
    initializers,
    label,
    names_in,
    opset_of,
    plain,
    refuse_subgraphs,
)
from edgecv.errors import ConversionError
from edgecv.tensors import Array

__all__ = ["fp16_from_onnx"]

HALF = TensorProto.FLOAT16
LARGEST = float(np.finfo(np.float16).max)
NORMAL = float(np.finfo(np.float16).tiny)  # below it a value has fewer than 11 bits
SMALLEST = float(np.finfo(np.float16).smallest_subnormal)

# Sums of squares and running sums pass 65504 soon, and a float16 position is exact only up to 2048.
FLOAT_OPS = frozenset({"CumSum", "LpNormalization", "ReduceL2", "ReduceLogSumExp", "ReduceSumSquare"})
# What stands between a frame (or an index) and the first layer: cheap in float32, and then rounded only once.
FRAME_OPS = frozenset(
    {"Add", "Cast", "Concat", "Div", "Gather", "Mul", "Reshape", "Slice", "Squeeze", "Sub", "Transpose", "Unsqueeze"}
)
BOUND_OPS = frozenset({"Clip", "Max", "Min", "Where"})  # a huge constant means "no limit" there
QUANTIZERS = frozenset({"DequantizeLinear", "QuantizeLinear"})
DTYPE_ATTRIBUTES = ("dtype", "output_dtype", "to")


def fp16_from_onnx(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy that computes in float16, with the graph's inputs and outputs in the dtypes they had.

    Every node reads and writes one float type, as a strongly typed TensorRT network wants. float32 stay: what
    normalizes a frame, what only constants and shapes go into, sums of squares, quantizers whose scales float16 cannot
    hold, nodes with a scalar constant beyond it, and inputs that ONNX defines as float32 (the scales of a ``Resize``).
    Nodes and tensors keep their names.

    Raises:
        ConversionError: a weight overflows float16, a node holds a subgraph, or the graph is not valid ONNX.
    """
    model = checked(plain(model))
    refuse_subgraphs(model.graph.node, "fp16 is written for graphs without branches and loops")
    types = element_types(model)
    _refuse_unknown(model.graph.node, types)
    return checked(_Rewrite(model, types).run())


class _Rewrite:
    """One pass over the nodes in order; a cast is put in where a float tensor is wanted in the other type, once."""

    def __init__(self, model: onnx.ModelProto, types: Mapping[str, int]) -> None:
        self._model = model
        self._types = types
        self._opset = opset_of(model)
        self._constants = initializers(model)
        self._taken = names_in(model.graph)
        floats = [value.name for value in model.graph.input if types[value.name] == TensorProto.FLOAT]
        # (tensor, dtype) -> the name it has in that dtype
        self._versions: dict[tuple[str, int], str] = {(name, TensorProto.FLOAT): name for name in floats}
        self._nodes: list[onnx.NodeProto] = []
        self._halved: list[TensorProto] = []

    def run(self) -> onnx.ModelProto:
        graph = self._model.graph
        results = {value.name for value in graph.output}
        kept = self._float_nodes(results)
        plans = [self._plan(node, index in kept) for index, node in enumerate(graph.node)]
        self._place_constants(list(graph.node), plans)
        for node, plan in zip(graph.node, plans, strict=True):
            self._convert(node, plan, results)
        self._write()
        return self._model

    def _float_nodes(self, results: set[str]) -> set[int]:
        """The places of the nodes that stay in float32."""
        graph = self._model.graph
        data, kept = {value.name for value in graph.input}, set()
        exact = set(data)
        for index, node in enumerate(graph.node):
            depends = [name for name in node.input if name in data]
            if node.op_type not in ("Shape", "Size") and depends:
                data.update(node.output)
            counts = node.op_type == "Cast" and self._types[node.input[0]] in (TensorProto.INT32, TensorProto.INT64)
            if counts or (node.op_type in FRAME_OPS and depends and exact.issuperset(depends)):
                exact.update(node.output)
            constant = not depends and node.op_type not in QUANTIZERS
            last = node.op_type == "Cast" and results.issuperset(node.output)
            small = exact.intersection(node.output)
            if constant or last or small or node.op_type in FLOAT_OPS or self._beyond_half(node):
                kept.add(index)
        return kept

    def _beyond_half(self, node: onnx.NodeProto) -> bool:
        """Whether a constant of the node keeps it in float32; a weight that overflows float16 is refused."""
        for name in node.input:
            if name not in self._constants or self._types[name] != TensorProto.FLOAT:
                continue
            values = onnx.numpy_helper.to_array(self._constants[name])
            if node.op_type in QUANTIZERS and not ((values >= NORMAL) & (values <= LARGEST)).all():
                return True
            if node.op_type in BOUND_OPS or not _overflows(values):
                continue
            if values.size > 1:
                raise ConversionError(
                    f"{label(node)}: {name!r} holds {_furthest(values):.3g}, float16 ends at {LARGEST:.0f}; keep fp32, "
                    "or scale these weights down and what follows up"
                )
            return True
        return False

    def _plan(self, node: onnx.NodeProto, kept: bool) -> tuple[list[int], list[int]]:
        """The float type of every input and output of a node; 0 where it is none."""
        ins, outs = ([int(self._types.get(name, 0)) for name in names] for names in (node.input, node.output))
        if kept or node.domain not in ("", "ai.onnx"):
            return [_if_float(kind) for kind in ins], [_if_float(kind) for kind in outs]
        schema = onnx.defs.get_schema(node.op_type, self._opset, "")
        return _halve(ins, schema.inputs), _halve(outs, schema.outputs)

    def _place_constants(self, nodes: list[onnx.NodeProto], plans: list[tuple[list[int], list[int]]]) -> None:
        """Write each float32 constant in the types its readers want; the float32 one keeps the name if there is one."""
        wanted = {(value.name, TensorProto.FLOAT) for value in self._model.graph.output}
        for node, (kinds, _) in zip(nodes, plans, strict=True):
            wanted.update(zip(node.input, kinds, strict=True))
        for name, tensor in self._constants.items():
            if tensor.data_type != TensorProto.FLOAT:
                self._halved.append(tensor)
                continue
            if (name, TensorProto.FLOAT) in wanted:
                self._halved.append(tensor)
                self._versions[name, TensorProto.FLOAT] = name
            if (name, HALF) in wanted:
                half = fresh(f"{name}_fp16", self._taken) if (name, TensorProto.FLOAT) in wanted else name
                self._halved.append(onnx.numpy_helper.from_array(_half(onnx.numpy_helper.to_array(tensor)), half))
                self._versions[name, HALF] = half

    def _convert(self, node: onnx.NodeProto, plan: tuple[list[int], list[int]], results: set[str]) -> None:
        for index, kind in enumerate(plan[0]):
            if kind:
                node.input[index] = self._version(node.input[index], kind)
        for attribute in node.attribute:
            if HALF in plan[1] and attribute.name in DTYPE_ATTRIBUTES and attribute.i == TensorProto.FLOAT:
                attribute.i = HALF
        self._nodes.append(node)
        for index, kind in enumerate(plan[1]):
            name = node.output[index]
            if kind == HALF and name in results:
                node.output[index] = fresh(f"{name}_fp16", self._taken)
                self._versions[name, HALF] = node.output[index]
                self._cast(node.output[index], name, TensorProto.FLOAT)
                self._versions[name, TensorProto.FLOAT] = name
            elif kind:
                self._versions[name, kind] = name

    def _version(self, name: str, kind: int) -> str:
        """The tensor ``name`` in the float type ``kind``, by a cast if it was not wanted so before."""
        if (name, kind) not in self._versions:
            source = self._versions[name, TensorProto.FLOAT if kind == HALF else HALF]
            target = fresh(f"{name}_fp{16 if kind == HALF else 32}", self._taken)
            self._cast(source, target, kind)
            self._versions[name, kind] = target
        return self._versions[name, kind]

    def _cast(self, source: str, target: str, kind: int) -> None:
        name = fresh(f"cast_{target}", self._taken)
        self._nodes.append(onnx.helper.make_node("Cast", [source], [target], name=name, to=kind))

    def _write(self) -> None:
        graph = self._model.graph
        halved = {name for (_, kind), name in self._versions.items() if kind == HALF}
        for value in graph.value_info:
            if value.name in halved:
                value.type.tensor_type.elem_type = HALF
        del graph.node[:]
        graph.node.extend(self._nodes)
        del graph.initializer[:]
        graph.initializer.extend(self._halved)


def _refuse_unknown(nodes: Iterable[onnx.NodeProto], types: Mapping[str, int]) -> None:
    for node in nodes:
        for name in node.output:
            if name and name not in types:
                raise ConversionError(
                    f"fp16 needs every tensor's type: that of {name!r}, from {label(node)}, is unknown"
                )


def _if_float(kind: int) -> int:
    return kind if kind == TensorProto.FLOAT else 0


def _halve(kinds: list[int], formals: Iterable[onnx.defs.OpSchema.FormalParameter]) -> list[int]:
    """float16 for each float32 tensor whose formal parameter may be float16; the last one repeats if it is variadic."""
    allowed = ["tensor(float16)" in formal.types for formal in formals]
    allowed += allowed[-1:] * (len(kinds) - len(allowed))
    return [
        HALF if may and kind == TensorProto.FLOAT else _if_float(kind)
        for kind, may in zip(kinds, allowed, strict=False)
    ]


def _overflows(values: Array) -> bool:
    with np.errstate(over="ignore"):
        return bool((np.isinf(values.astype(np.float16)) & np.isfinite(values)).any())


def _furthest(values: Array) -> float:
    finite = values[np.isfinite(values)]
    return float(finite[np.abs(finite).argmax()])


def _half(values: Array) -> Array:
    """Round to float16; what is not zero stays so (a small divisor), and what is finite stays so (a bound)."""
    with np.errstate(over="ignore", under="ignore"):
        half = values.astype(np.float16)
    half = np.where((half == 0) & (values != 0), np.copysign(np.float16(SMALLEST), values), half)
    half = np.where(np.isinf(half) & np.isfinite(values), np.copysign(np.float16(LARGEST), values), half)
    result: Array = half.astype(np.float16)
    return result

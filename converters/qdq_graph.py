"""A graph of QuantizeLinear and DequantizeLinear nodes as the passes over it read and change it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx.numpy_helper

from edgecv.converters.onnx_check import checked, drop_unused, fresh, label, names_in, plain, refuse_subgraphs
from edgecv.errors import ConversionError
from edgecv.tensors import Array

__all__ = ["BYTES", "DEQUANTIZE", "QUANTIZE", "QdqGraph", "Quantization", "quantize_array"]

QUANTIZE, DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"
BYTES = (np.dtype(np.int8), np.dtype(np.uint8))


@dataclass(frozen=True, slots=True)
class Quantization:
    """What a Q or DQ node does: ``q = clip(round(x / scale) + zero_point)``, ``x = (q - zero_point) * scale``.

    ``scale`` and ``zero_point`` are scalars, or one number per channel along ``axis``.
    """

    scale: Array
    zero_point: Array
    axis: int

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the integers."""
        return self.zero_point.dtype

    @property
    def per_tensor(self) -> bool:
        return self.scale.size == 1

    @property
    def limits(self) -> tuple[int, int]:
        """The least and the largest integer."""
        info = np.iinfo(self.dtype)
        return int(info.min), int(info.max)

    def same_as(self, other: Quantization) -> bool:
        """Whether both map every value alike."""
        return (
            self.dtype == other.dtype
            and np.array_equal(self.scale.ravel(), other.scale.ravel())
            and np.array_equal(self.zero_point.ravel(), other.zero_point.ravel())
            and (self.per_tensor or self.axis == other.axis)
        )

    def along(self, numbers: Array, rank: int) -> Array:
        """``numbers``, the scale or the zero point, shaped to meet a tensor with ``rank`` dimensions."""
        if numbers.size == 1:
            return numbers.reshape(())
        shape = [1] * rank
        shape[self.axis] = -1
        return numbers.reshape(shape)


class QdqGraph:
    """A model's own copy, with what its Q and DQ nodes say, and the few changes that the passes are made of.

    Constants are initializers; there are no local functions. ``users`` and ``producers`` follow every change.

    Raises:
        ConversionError: a node holds a graph of its own.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = plain(model)
        self.graph = self.model.graph
        refuse_subgraphs(self.graph.node, "Q/DQ layouts are written for graphs without branches and loops")
        self.outputs = {value.name for value in self.graph.output}
        self._constants = {item.name: item for item in self.graph.initializer}
        self._taken = names_in(self.graph)
        self._index()

    def nodes(self, *operators: str) -> list[onnx.NodeProto]:
        """The nodes with one of these operators, in order."""
        return [node for node in self.graph.node if node.op_type in operators and node.domain in ("", "ai.onnx")]

    def users(self, name: str) -> list[onnx.NodeProto]:
        """The nodes that read ``name``; one that reads it twice stands there twice."""
        return self._users.get(name, [])

    def producer(self, name: str) -> onnx.NodeProto | None:
        return self._producers.get(name)

    def constant(self, name: str) -> Array | None:
        """The values of an initializer; ``None`` for any other tensor."""
        if name not in self._constants:
            return None
        array: Array = onnx.numpy_helper.to_array(self._constants[name])
        return array

    def is_constant(self, name: str) -> bool:
        return name in self._constants

    def quantization(self, node: onnx.NodeProto) -> Quantization:
        """What a Q or DQ node does.

        Raises:
            ConversionError: its scale or zero point is computed at run time, or its scales belong to blocks.
        """
        scale = self.constant(node.input[1])
        point = self.constant(node.input[2]) if len(node.input) > 2 and node.input[2] else self._no_zero_point(node)
        if scale is None or point is None:
            raise ConversionError(f"{label(node)}: its scale and zero point must be constants; calibrate beforehand")
        if scale.ndim > 1:
            raise ConversionError(f"{label(node)}: scales of blocks are not handled; quantize per tensor or channel")
        return Quantization(scale, np.broadcast_to(point, scale.shape), _axis(node))

    def requantize(self, node: onnx.NodeProto, to: Quantization) -> None:
        """Make a Q or DQ node do ``to``; new constants are written where it needs others."""
        now = self.quantization(node)
        inputs = [*node.input, ""][:3]
        if not np.array_equal(now.scale, to.scale):
            inputs[1] = self.add_constant(f"{node.output[0]}_scale", to.scale)
        if not inputs[2] or now.dtype != to.dtype or not np.array_equal(now.zero_point, to.zero_point):
            inputs[2] = self.add_constant(f"{node.output[0]}_zero_point", to.zero_point)
        for attribute in [item for item in node.attribute if item.name == "output_dtype" and node.op_type == QUANTIZE]:
            node.attribute.remove(attribute)  # the zero point says it
        node.input[:] = inputs
        self._index()

    def add_constant(self, hint: str, values: Array) -> str:
        """Write an initializer under a free name, and return that."""
        name = fresh(hint, self._taken)
        self.graph.initializer.append(onnx.numpy_helper.from_array(np.array(values), name))
        self._constants[name] = self.graph.initializer[-1]
        return name

    def set_input(self, node: onnx.NodeProto, place: int, name: str) -> None:
        """Make ``node`` read ``name`` at ``place``."""
        node.input[place] = name
        self._index()

    def redirect(self, old: str, new: str) -> None:
        """Make every reader of ``old`` read ``new``."""
        for node in self.users(old):
            node.input[:] = [new if name == old else name for name in node.input]
        self._index()

    def remove(self, node: onnx.NodeProto) -> None:
        """Take a node out; nothing may read what it gives."""
        del self.graph.node[self._place(node)]
        self._index()

    def insert_input(
        self, node: onnx.NodeProto, place: int, operator: str, inputs: list[str], **attributes: Any
    ) -> None:
        """Put a node with one output in front of ``node``, which reads it at ``place`` from then on."""
        name = fresh(f"{inputs[0]}_{operator.lower()}", self._taken)
        title = fresh(f"node_{name}", self._taken)
        self.graph.node.insert(
            self._place(node), onnx.helper.make_node(operator, inputs, [name], name=title, **attributes)
        )
        self.set_input(node, place, name)

    def insert_after(self, node: onnx.NodeProto, operator: str, inputs: list[str]) -> str:
        """Put a node with one output behind ``node``, read by what read the first of ``inputs``; return that output."""
        name = fresh(f"{inputs[0]}_{operator.lower()}", self._taken)
        title = fresh(f"node_{name}", self._taken)
        self.redirect(inputs[0], name)
        self.graph.node.insert(self._place(node) + 1, onnx.helper.make_node(operator, inputs, [name], name=title))
        self._index()
        return name

    def rename_output(self, old: str, new: str) -> None:
        """Give the tensor ``old`` the name ``new``, which nothing gives any more."""
        self.redirect(old, new)
        node = self._producers[old]
        node.output[:] = [new if name == old else name for name in node.output]
        self._index()

    def finished(self) -> onnx.ModelProto:
        """The model, without what nothing reads, with types and shapes inferred, once ONNX's checker has passed it."""
        needed = set(self.outputs)
        for node in list(self.graph.node)[::-1]:
            if needed.intersection(node.output):
                needed.update(node.input)
            else:
                self.remove(node)
        self._forget_types()
        drop_unused(self.model)
        return checked(self.model)

    def _forget_types(self) -> None:
        """Take away what was declared of tensors that are gone, and of integers: their type may be another now."""
        integers = {name for node in self.nodes(QUANTIZE) for name in node.output}
        known = [value for value in self.graph.value_info if value.name in self._producers.keys() - integers]
        del self.graph.value_info[:]
        self.graph.value_info.extend(known)

    def _place(self, node: onnx.NodeProto) -> int:
        return next(place for place, item in enumerate(self.graph.node) if item.output[0] == node.output[0])

    def _index(self) -> None:
        self._users: dict[str, list[onnx.NodeProto]] = {}
        self._producers = {name: node for node in self.graph.node for name in node.output if name}
        for node in self.graph.node:
            for name in node.input:
                self._users.setdefault(name, []).append(node)

    def _no_zero_point(self, node: onnx.NodeProto) -> Array:
        """The zero of the type that a node without a zero point quantizes to: uint8 unless it says otherwise."""
        kinds = [item.i for item in node.attribute if item.name == "output_dtype"]
        if node.op_type == QUANTIZE:
            kind = kinds[0] if kinds and kinds[0] else onnx.TensorProto.UINT8
            return np.zeros((), onnx.helper.tensor_dtype_to_np_dtype(kind))
        stored, source = self._constants.get(node.input[0]), self.producer(node.input[0])
        if stored is not None:
            return np.zeros((), onnx.helper.tensor_dtype_to_np_dtype(stored.data_type))
        if source is not None and source.op_type == QUANTIZE:
            return np.zeros((), self.quantization(source).dtype)
        return np.zeros((), np.uint8)


def quantize_array(values: Array, how: Quantization) -> Array:
    """``values`` as QuantizeLinear gives them: halves go to even."""
    low, high = how.limits
    with np.errstate(over="ignore", invalid="ignore"):
        steps = np.rint(values / how.along(how.scale, values.ndim))
        steps = np.clip(steps.astype(np.float64) + how.along(how.zero_point, values.ndim).astype(np.float64), low, high)
    result: Array = steps.astype(how.dtype)
    return result


def _axis(node: onnx.NodeProto) -> int:
    return next((int(item.i) for item in node.attribute if item.name == "axis"), 1)

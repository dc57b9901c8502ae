"""The normalization of frames made part of the first convolutions: passes over the whole frame less."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper, numpy_helper

from edgecv.converters.onnx_check import drop_unused, fresh, initializers, names_in
from edgecv.tensors import Array

__all__ = ["fold_frames"]

CHANNELS_FIRST = [0, 3, 1, 2]


@dataclass(frozen=True, slots=True)
class _Affine:
    """What a frame has become: channel ``order[c]`` of it times ``scale[c]``, plus ``shift[c]``."""

    order: Array
    scale: Array
    shift: Array


def fold_frames(model: onnx.ModelProto) -> None:
    """Fold, in place, what happens to uint8 frames before the first convolutions into their weights, as far as it goes.

    The order of the channels and a scale go into the weights; what is left is one sum, because a convolution's zero
    padding stands for zero after the shift. Where it pads nothing, the sum goes into the bias, and where the shift is
    zero there is none. Answers are the same to the rounding of float32.
    """
    graph = model.graph
    outputs = {value.name for value in graph.output}
    frames = {value.name for value in graph.input if value.type.tensor_type.elem_type == onnx.TensorProto.UINT8}
    for cast in [node for node in graph.node if node.op_type == "Cast" and node.input[0] in frames]:
        turn, steps, readers = _chain(model, cast, outputs)
        if turn is None or not steps or not readers or not all(_foldable(model, node) for node in readers):
            continue
        affine = _affine(model, steps)
        if affine is not None:
            _fold(model, turn, steps, readers, affine)
    drop_unused(model)


def _chain(
    model: onnx.ModelProto, cast: onnx.NodeProto, outputs: set[str]
) -> tuple[onnx.NodeProto | None, list[onnx.NodeProto], list[onnx.NodeProto]]:
    """The Transpose behind ``cast``, the steps behind that, each read by the next alone, and what reads the last."""
    turn, steps, name = None, [], cast.output[0]
    while True:
        readers = [node for node in model.graph.node if name in node.input]
        if name in outputs:
            return None, [], []
        if turn is None:
            if len(readers) != 1 or _perm(readers[0]) != CHANNELS_FIRST:
                return None, [], []
            turn = readers[0]
        elif len(readers) == 1 and readers[0].op_type in ("Slice", "Mul", "Add", "Sub", "Div"):
            steps.append(readers[0])
        else:
            return turn, steps, readers
        name = readers[0].output[0]


def _perm(node: onnx.NodeProto) -> list[int] | None:
    if node.op_type != "Transpose":
        return None
    return next((list(item.ints) for item in node.attribute if item.name == "perm"), None)


def _foldable(model: onnx.ModelProto, node: onnx.NodeProto) -> bool:
    """Whether it is a convolution of all channels whose weights are constant float32."""
    held = initializers(model)
    if node.op_type != "Conv" or len(node.input) < 2 or list(node.input).count(node.input[0]) != 1:
        return False
    if any(name and name not in held for name in node.input[1:]):
        return False
    weight = held[node.input[1]]
    group = next((item.i for item in node.attribute if item.name == "group"), 1)
    return weight.data_type == onnx.TensorProto.FLOAT and group == 1


def _affine(model: onnx.ModelProto, steps: list[onnx.NodeProto]) -> _Affine | None:
    """What the steps do to a frame of three channels; ``None`` where it is anything else."""
    held = {name: numpy_helper.to_array(value) for name, value in initializers(model).items()}
    order, scale, shift = np.arange(3), np.ones(3), np.zeros(3)
    for node in steps:
        operands = [held.get(name) for name in node.input]
        if node.op_type == "Slice":
            if not _flips_channels(operands[1:]):
                return None
            order, scale, shift = order[::-1], scale[::-1], shift[::-1]
            continue
        place = 1 if operands[0] is None else 0
        constant = operands[place]
        if len(operands) != 2 or constant is None or (place == 0 and node.op_type in ("Sub", "Div")):
            return None
        if constant.size != 1 and (constant.size != 3 or constant.shape[-3:] != (3, 1, 1)):
            return None
        number = np.broadcast_to(constant.reshape(-1).astype(np.float64), 3)
        if node.op_type in ("Mul", "Div"):
            factor = number if node.op_type == "Mul" else 1 / number
            scale, shift = scale * factor, shift * factor
        else:
            shift = shift + (number if node.op_type == "Add" else -number)
    return _Affine(order, scale, shift) if np.isfinite(scale).all() and scale.all() else None


def _flips_channels(operands: list[Array | None]) -> bool:
    """Whether starts, ends, axes and steps of a Slice turn the order of the channels round."""
    if len(operands) != 4 or any(operand is None or operand.size != 1 for operand in operands):
        return False
    start, end, axis, step = (int(np.ravel(operand)[0]) for operand in operands if operand is not None)
    return axis in (1, -3) and step == -1 and (start == -1 or start >= 2) and end < -3


def _fold(
    model: onnx.ModelProto,
    turn: onnx.NodeProto,
    steps: list[onnx.NodeProto],
    readers: list[onnx.NodeProto],
    affine: _Affine,
) -> None:
    graph, taken = model.graph, names_in(model.graph)
    last = steps[-1].output[0]
    for node in steps:
        graph.node.remove(node)
    gone = {name for node in steps for name in node.output}
    known = [value for value in graph.value_info if value.name not in gone]
    del graph.value_info[:]
    graph.value_info.extend(known)
    back = np.argsort(affine.order)  # the place of each of the frame's channels among what the convolutions take
    shift = (affine.shift / affine.scale)[back]
    into_bias = all(_pads_nothing(node) for node in readers)
    for node in readers:
        weight = numpy_helper.to_array(initializers(model)[node.input[1]]).astype(np.float64)
        folded = (weight * affine.scale.reshape(1, 3, 1, 1))[:, back]
        node.input[1] = _constant(graph, taken, node.input[1], folded)
        if into_bias and shift.any():
            bias = numpy_helper.to_array(initializers(model)[node.input[2]]) if len(node.input) > 2 else 0.0
            total = (folded * shift.reshape(1, 3, 1, 1)).sum((1, 2, 3)) + bias
            node.input[2:] = [_constant(graph, taken, f"{node.output[0]}_bias", total)]
    if into_bias or not shift.any():
        for node in readers:
            node.input[0] = turn.output[0]
        return
    name = _constant(graph, taken, f"{last}_shift", shift.reshape(1, 3, 1, 1))
    added = helper.make_node("Add", [turn.output[0], name], [last], name=fresh(f"node_{last}", taken))
    graph.node.insert(list(graph.node).index(turn) + 1, added)


def _pads_nothing(node: onnx.NodeProto) -> bool:
    held = {item.name: item for item in node.attribute}
    if "auto_pad" in held and held["auto_pad"].s not in (b"NOTSET", b"VALID", b""):
        return False
    return "pads" not in held or not any(held["pads"].ints)


def _constant(graph: onnx.GraphProto, taken: set[str], hint: str, values: Array) -> str:
    name = fresh(f"{hint}_folded", taken)
    graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(values, np.float32), name))
    return name

"""Zero padding in front of a convolution made part of it: one pass over the image less, and integers stay integers."""

from __future__ import annotations

from collections.abc import Sequence

import onnx
from onnx import numpy_helper

from edgecv.converters.onnx_check import drop_unused

__all__ = ["fold_pads"]


def fold_pads(model: onnx.ModelProto) -> None:
    """Fold, in place, each Pad with zeros of height and width into the convolutions that alone read it.

    Such Pads stand before the strided convolutions of weights that come from TensorFlow, which pads right and bottom
    only. The answers stay the same bits.
    """
    graph = model.graph
    constants = {value.name: value for value in graph.initializer}
    outputs = {value.name for value in graph.output}
    for pad in [node for node in graph.node if node.op_type == "Pad"]:
        readers = [node for node in graph.node if pad.output[0] in node.input]
        added = _spatial(pad, constants)
        if added is None or pad.output[0] in outputs or not all(_takes(node, pad, added) for node in readers):
            continue
        for node in readers:
            node.input[0] = pad.input[0]
            _add(node, added)
        graph.node.remove(pad)
    drop_unused(model)


def _spatial(pad: onnx.NodeProto, constants: dict[str, onnx.TensorProto]) -> list[int] | None:
    """The zeros before and after each spatial axis, in ONNX's order; ``None`` where the Pad does anything else."""
    mode = next((item.s for item in pad.attribute if item.name == "mode"), b"constant")
    names = [name for name in pad.input[1:] if name]
    if mode != b"constant" or not names or any(name not in constants for name in names) or len(pad.input) > 3:
        return None
    pads, *value = [numpy_helper.to_array(constants[name]) for name in names]
    half = len(pads) // 2
    if (value and value[0].any()) or (pads < 0).any() or pads[[0, 1, half, half + 1]].any():
        return None
    return [int(number) for number in (*pads[2:half], *pads[half + 2 :])]


def _takes(node: onnx.NodeProto, pad: onnx.NodeProto, added: Sequence[int]) -> bool:
    if node.op_type != "Conv" or list(node.input).index(pad.output[0]) != 0:
        return False
    held = {item.name: item for item in node.attribute}
    if "auto_pad" in held and held["auto_pad"].s not in (b"NOTSET", b""):
        return False
    return "pads" not in held or len(held["pads"].ints) == len(added)


def _add(convolution: onnx.NodeProto, added: Sequence[int]) -> None:
    held = next((item for item in convolution.attribute if item.name == "pads"), None)
    if held is None:
        convolution.attribute.append(onnx.helper.make_attribute("pads", list(added)))
    else:
        held.ints[:] = [one + other for one, other in zip(held.ints, added, strict=True)]

"""Frames as the integers they are: a network that reads levels of pixels, so that int8 needs no float in front."""

from __future__ import annotations

import torch
from torch import Tensor, fx

from edgecv.compression.capture import CONVOLUTIONS, PADS, is_call, parameter, set_parameter
from edgecv.compression.quantizers import ActivationQuantizer
from edgecv.preprocess import Preprocess

__all__ = ["fix_levels", "read_levels"]

aten = torch.ops.aten
NAME = "frame_levels"
ALMOST = 0.3  # of a standard deviation: how far what surrounds a frame may be from zeros


@torch.no_grad()
def read_levels(graph: fx.GraphModule, preprocess: Preprocess) -> bool:
    """Make the first convolution of a captured network read whole levels of pixels, in place; whether it could.

    A normalized frame is not made of 256 values with one step between them, since each channel has a standard deviation
    of its own: to quantize it is to round it, in float. Here the normalization moves into the convolution's weights and
    bias, so that its input is the pixels, less one level ``z``: they are integers already, and the quantizer of that
    input gives back the bytes of the frame.

    The answers stay the same, except where the convolution pads with zeros: its surroundings were the mean of each
    channel, and become the mean of all three. Where that is far off, and where the network does not begin with a
    convolution of three channels, nothing is changed.

    Args:
        preprocess: what the network was trained with; the graph takes what it gives.
    """
    frames = [node for node in graph.graph.nodes if node.op == "placeholder"]
    convolution, padded = _reader(frames[0]) if len(frames) == 1 else (None, False)
    weight = parameter(graph, convolution.args[1]) if convolution is not None else None
    if convolution is None or weight is None or weight.ndim != 4 or weight.shape[1] != len(preprocess.mean):
        return False
    if len(convolution.args[1].users) > 1:  # type: ignore[union-attr]  # another call reads no frames
        return False
    mean, std, level = _normalization(preprocess)
    shift = 255 * mean - level
    if (padded or _pads(convolution)) and float((shift / (255 * std)).abs().max()) > ALMOST:
        return False
    _fold(graph, convolution, weight, mean, std, level)
    _insert(graph, frames[0], (255 * std).float(), shift.float())
    return True


def fix_levels(graph: fx.GraphModule, preprocess: Preprocess) -> None:
    """Give the quantizer of what ``read_levels`` inserted the range of bytes, and keep it from learning another."""
    held = graph.get_submodule("activation_quantizers")._modules.get(NAME)
    if isinstance(held, ActivationQuantizer):
        level = _normalization(preprocess)[2]
        held.set_range(-level, 255 - level)
        held.gain.requires_grad_(False)


def _normalization(preprocess: Preprocess) -> tuple[Tensor, Tensor, int]:
    """Mean and standard deviation in the network's order of channels, and the level in the middle of the means."""
    mean, std = (torch.tensor(values, dtype=torch.float64) for values in (preprocess.mean, preprocess.std))
    if preprocess.color == "bgr":
        mean, std = mean.flip(0), std.flip(0)
    return mean, std, round(min(max(255 * float(mean.mean()), 0), 255))


def _reader(frame: fx.Node) -> tuple[fx.Node | None, bool]:
    """The convolution that alone reads ``frame``, and whether zeros are put around it in between."""
    node, padded = frame, False
    while len(node.users) == 1:
        node = next(iter(node.users))
        if is_call(node, *CONVOLUTIONS):
            return node, padded
        if not is_call(node, *PADS):
            break
        padded = True
    return None, padded


def _pads(convolution: fx.Node) -> bool:
    padding = convolution.args[4] if len(convolution.args) > 4 else 0
    return any(padding) if isinstance(padding, (list, tuple)) else bool(padding)


def _fold(graph: fx.GraphModule, node: fx.Node, weight: Tensor, mean: Tensor, std: Tensor, level: int) -> None:
    """``w (p / 255 - mean) / std`` as ``w' (p - level) + bias``."""
    wide = weight.double()
    name = str(node.args[1].target)  # type: ignore[union-attr]
    bias = parameter(graph, node.args[2]) if len(node.args) > 2 else None
    added = (wide * ((level / 255 - mean) / std).view(1, -1, 1, 1)).sum((1, 2, 3)).to(weight.dtype)
    set_parameter(graph, name, (wide / (255 * std).view(1, -1, 1, 1)).to(weight.dtype))
    target = str(node.args[2].target) if bias is not None else f"{name.removesuffix('.weight')}.bias"  # type: ignore[union-attr]
    set_parameter(graph, target, added if bias is None else bias + added)
    if bias is None:
        with graph.graph.inserting_before(node):
            held = graph.graph.get_attr(target)
        node.args = (*node.args[:2], held, *node.args[3:])


def _insert(graph: fx.GraphModule, frame: fx.Node, scale: Tensor, shift: Tensor) -> None:
    reader = next(iter(frame.users))
    for name, value in (("scale", scale), ("shift", shift)):
        set_parameter(graph, f"{NAME}.{name}", value.view(1, -1, 1, 1), trained=False)
    with graph.graph.inserting_before(reader):
        factor, offset = (graph.graph.get_attr(f"{NAME}.{name}") for name in ("scale", "shift"))
        scaled = graph.graph.call_function(aten.mul.Tensor, (frame, factor))
        levels = graph.graph.create_node("call_function", aten.add.Tensor, (scaled, offset), name=NAME)
    reader.replace_input_with(frame, levels)
    graph.recompile()

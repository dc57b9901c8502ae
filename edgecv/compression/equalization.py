"""Cross-layer equalization (Nagel et al., 2019, arXiv:1906.04721, section 4.1)."""

from __future__ import annotations

import torch
from torch import Tensor, fx

from edgecv.compression.capture import CONVOLUTIONS, held_parameter, is_call, parameter

__all__ = ["equalize"]

aten = torch.ops.aten
ROUNDS = 10


@torch.no_grad()
def equalize(graph: fx.GraphModule) -> None:
    """Rescale the channels between neighbouring convolutions, in place, until their weights have equal ranges.

    A channel that one layer scales down the next scales up, so the answers stay the same. That holds between
    convolutions with nothing or a ReLU in between; a ReLU6 would clip elsewhere, so those pairs are left alone.
    """
    pairs = _pairs(graph)
    for _ in range(ROUNDS):
        for first, second in pairs:
            _rescale(graph, first, second)


def _pairs(graph: fx.GraphModule) -> list[tuple[fx.Node, fx.Node]]:
    found = []
    for node in graph.graph.nodes:
        if not is_call(node, *CONVOLUTIONS) or len(node.users) != 1:
            continue
        reader = next(iter(node.users))
        if is_call(reader, aten.relu.default) and len(reader.users) == 1:
            reader = next(iter(reader.users))
        owned = is_call(reader, *CONVOLUTIONS) and all(_is_owned(graph, item) for item in (node, reader))
        if owned and _groups(reader) in (1, len(_weight(graph, reader))):
            found.append((node, reader))
    return found


def _rescale(graph: fx.GraphModule, first: fx.Node, second: fx.Node) -> None:
    before, after = _weight(graph, first), _weight(graph, second)
    depthwise = _groups(second) > 1
    outgoing = before.flatten(1).abs().amax(1)
    incoming = (after if depthwise else after.transpose(0, 1)).flatten(1).abs().amax(1)
    scale = torch.sqrt(outgoing * incoming) / incoming.clamp(min=1e-12)
    scale = torch.where((outgoing > 0) & (incoming > 0), scale, torch.ones_like(scale))
    before /= scale.view(-1, *[1] * (before.ndim - 1))
    bias = parameter(graph, first.args[2]) if len(first.args) > 2 else None
    if bias is not None:
        bias /= scale
    spatial = [1] * (after.ndim - 2)
    after *= scale.view(-1, 1, *spatial) if depthwise else scale.view(1, -1, *spatial)


def _is_owned(graph: fx.GraphModule, convolution: fx.Node) -> bool:
    """Whether its weights are its own, not another call's as well."""
    held = [item for item in convolution.args[1:3] if isinstance(item, fx.Node)]
    return all(parameter(graph, item) is not None and len(item.users) == 1 for item in held)


def _weight(graph: fx.GraphModule, convolution: fx.Node) -> Tensor:
    return held_parameter(graph, convolution.args[1])


def _groups(convolution: fx.Node) -> int:
    return int(convolution.args[6]) if len(convolution.args) > 6 else 1  # type: ignore[arg-type]

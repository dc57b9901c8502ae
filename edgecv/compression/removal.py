"""Channels taken out of a network, and the proof that nothing else has changed."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from edgecv.compression.channels import Group, Side, keep, widths

__all__ = ["Kept", "remove", "same_as_masked", "tensors_of", "what_stays"]

Inputs = tuple[Tensor, ...]
Kept = Mapping[tuple[str, Side], Tensor]
"""For one side of a layer, which of its channels stay: booleans."""
BROKEN = (AssertionError, IndexError, RuntimeError, TypeError, ValueError)
TOLERANCE = 1e-3  # of the largest output: rounding is a hundred times smaller, a wrong channel a hundred times larger


def what_stays(network: nn.Module, removed: Iterable[tuple[Group, Sequence[int]]]) -> Kept:
    """What stays where units of groups go."""
    layers = dict(network.named_modules())
    stays: dict[tuple[str, Side], Tensor] = {}
    for group, units in removed:
        gone = torch.isin(group.unit, torch.tensor(units, dtype=torch.long))
        for place in group.places:
            held = widths(layers[place.layer])
            size = held[place.side != "in"] if held else 0
            mask = stays.setdefault((place.layer, place.side), torch.ones(size, dtype=torch.bool))
            mask[place.index[gone[place.root]]] = False
    return stays


def remove(network: nn.Module, stays: Kept) -> None:
    """Leave only what stays, in place."""
    layers = dict(network.named_modules())
    for (name, side), mask in stays.items():
        keep(layers[name], side, mask.nonzero().flatten())


@torch.no_grad()
def same_as_masked(network: nn.Module, pruned: nn.Module, stays: Kept, inputs: Inputs) -> bool:
    """Whether ``pruned`` answers as ``network`` does with the weights of all that goes set to zero.

    It must, if channels were rightly matched. Where layers normalize over channels the answers differ rightly, and
    only their shapes are compared. Both networks are in eval mode.
    """
    masked = copy.deepcopy(network)
    normalizes = _mask(masked, stays)
    try:
        found = list(tensors_of(pruned(*inputs)))
    except BROKEN:
        return False
    wanted = list(tensors_of(masked(*inputs)))
    if [tensor.shape for tensor in found] != [tensor.shape for tensor in wanted]:
        return False
    return normalizes or all(map(_close, found, wanted))


def tensors_of(value: Any) -> Iterator[Tensor]:
    """The tensors in what a network gives: a tensor, or lists, tuples and dicts of them."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        yield from tensors_of(list(value.values()))
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from tensors_of(item)


def _close(found: Tensor, wanted: Tensor) -> bool:
    if not wanted.numel():
        return True
    scale = float(wanted.abs().max())
    return float((found - wanted).abs().max()) <= TOLERANCE * max(scale, 1e-12)


def _mask(network: nn.Module, stays: Kept) -> bool:
    """Set to zero what makes and what takes the channels that go; tell whether any layer normalizes over channels."""
    layers = dict(network.named_modules())
    for (name, side), mask in stays.items():
        layer, gone = layers[name], ~mask
        if isinstance(layer, (_ConvNd, nn.Linear)):
            _mask_weights(layer, side, gone)
        elif isinstance(layer, _NormBase):
            for values in (layer.weight, layer.bias, layer.running_mean):
                if values is not None:
                    values[gone] = 0
    return any(isinstance(layers[name], (nn.GroupNorm, nn.LayerNorm)) for name, _ in stays)


def _mask_weights(layer: _ConvNd | nn.Linear, side: Side, gone: Tensor) -> None:
    transposed = isinstance(layer, _ConvNd) and layer.transposed
    table = layer.weight.transpose(0, 1) if transposed else layer.weight  # [outputs, inputs of a group, …], a view
    if side != "in":
        table[gone] = 0
        if layer.bias is not None:
            layer.bias[gone] = 0
        return
    groups = layer.groups if isinstance(layer, _ConvNd) else 1
    rows, columns = table.shape[0] // groups, table.shape[1]
    for index in gone.nonzero().flatten().tolist():
        part, column = divmod(index, columns)
        table[part * rows : (part + 1) * rows, column] = 0

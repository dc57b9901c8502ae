"""Which units of channels go, so that a network keeps to its share of multiply-accumulates and parameters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from edgecv.compression.channels import Group, Place, is_depthwise, widths

__all__ = ["Block", "Costs", "Ledger", "blocks_of", "remove_blocks", "remove_to", "removed_units"]

Inputs = tuple[Tensor, ...]


@dataclass(frozen=True, slots=True)
class Costs:
    """Multiply-accumulates and parameters."""

    macs: float
    parameters: float

    def within(self, limit: Costs) -> bool:
        """Whether neither is above its limit; a hundred-millionth more is rounding."""
        return self.macs <= limit.macs * (1 + 1e-8) and self.parameters <= limit.parameters * (1 + 1e-8)


@dataclass(frozen=True, slots=True)
class Block:
    """Units of a group that are removed in one go, after those of the blocks before it.

    Attributes:
        kept: channels of the group that are left then.
        score: what their removal costs; lower ones go first.
    """

    group: Group
    units: tuple[int, ...]
    kept: int
    score: float


def blocks_of(
    group: Group, scores: Tensor, *, round_to: int, least: float, uniform_width: int | None = None
) -> list[Block]:
    """The units of a group in the order in which they go, in blocks that leave multiples of ``round_to`` channels.

    At least ``least`` channels stay. Blocks are scored by the mean importance of their units; with ``uniform_width``,
    the width that the group began with, by the share of it that has gone, which takes the same share of all groups.
    """
    sizes = torch.bincount(group.unit).tolist()
    found: list[Block] = []
    pending: list[int] = []
    kept, highest = group.width, 0.0
    for unit in torch.argsort(scores, stable=True).tolist():
        kept -= sizes[unit]
        if kept < max(1.0, least):
            break
        pending.append(unit)
        if kept % round_to == 0:
            mean = float(scores[pending].mean()) if uniform_width is None else 1 - kept / uniform_width
            highest = max(highest, mean)
            found.append(Block(group, tuple(pending), kept, highest))
            pending = []
    return found


@dataclass(slots=True)
class _Layer:
    inputs: int
    outputs: int
    macs: float = 0.0
    weights: int = 0
    others: int = 0
    depthwise: bool = False
    now: list[int] = field(default_factory=list)

    def costs(self) -> Costs:
        """As scaled by the channels it has now: weights by both sides, biases and norms by one."""
        one = self.now[1] / self.outputs
        both = one if self.depthwise else one * self.now[0] / self.inputs
        return Costs(self.macs * both, self.weights * both + self.others * one)


class Ledger:
    """What a network costs while channels are taken from its layers on paper."""

    def __init__(self, network: nn.Module, groups: Sequence[Group], inputs: Inputs, total: Costs) -> None:
        """``total`` is the whole network's; what is none of a layer's own stays as it is."""
        self._layers = _measured(network, inputs)
        self._counts = {group.name: [_per_unit(group, place) for place in group.places] for group in groups}
        self.costs = total

    def price(self, group: Group) -> Costs:
        """What one unit of a group costs now."""
        before, unit = self.costs, Block(group, (0,), 0, 0.0)
        self.take(unit)
        after = self.costs
        self.give_back(unit)
        self.costs = before
        return Costs(before.macs - after.macs, before.parameters - after.parameters)

    def take(self, block: Block) -> None:
        """Remove a block."""
        self._move(block, 1)

    def give_back(self, block: Block) -> None:
        """Undo the removal of a block."""
        self._move(block, -1)

    def _move(self, block: Block, sign: int) -> None:
        touched = {place.layer: self._layers[place.layer].costs() for place in block.group.places}
        for place, counts in zip(block.group.places, self._counts[block.group.name], strict=True):
            gone, layer = sign * int(counts[list(block.units)].sum()), self._layers[place.layer]
            if place.side != "out":
                layer.now[0] -= gone
            if place.side != "in":
                layer.now[1] -= gone
        macs, parameters = self.costs.macs, self.costs.parameters
        for name, before in touched.items():
            after = self._layers[name].costs()
            macs, parameters = macs + after.macs - before.macs, parameters + after.parameters - before.parameters
        self.costs = Costs(macs, parameters)


def remove_blocks(ledger: Ledger, blocks: Sequence[Block], wanted: float) -> list[Block]:
    """Remove blocks of one group until it is as near to ``wanted`` channels as it can be."""
    removed = []
    kept = blocks[0].group.width if blocks else 0
    for block in blocks:
        if abs(block.kept - wanted) > abs(kept - wanted):
            break
        kept = block.kept
        ledger.take(block)
        removed.append(block)
    return removed


def remove_to(ledger: Ledger, groups: Mapping[str, Sequence[Block]], limit: Costs) -> list[Block]:
    """Remove blocks, lowest score first, until ``ledger`` is within ``limit`` or there are none left.

    What the last ones took too much is given back where it fits, so that the limit is met closely.
    """
    queue = sorted(
        (block.score, number, name) for name, blocks in groups.items() for number, block in enumerate(blocks)
    )
    removed: list[Block] = []
    for _, number, name in queue:
        if ledger.costs.within(limit):
            break
        removed.append(groups[name][number])
        ledger.take(removed[-1])
    return _fill(ledger, removed, limit) if ledger.costs.within(limit) else removed


def _fill(ledger: Ledger, removed: list[Block], limit: Costs) -> list[Block]:
    kept, closed = list(removed), set()
    for block in reversed(removed):  # of a group, only the last that went can come back
        if block.group.name in closed:
            continue
        ledger.give_back(block)
        if ledger.costs.within(limit):
            kept.remove(block)
            continue
        ledger.take(block)
        closed.add(block.group.name)
    return kept


def _measured(network: nn.Module, inputs: Inputs) -> dict[str, _Layer]:
    """Every layer that has channels, with its multiply-accumulates in one run."""
    found: dict[str, _Layer] = {}
    hooks = []
    for name, layer in network.named_modules():
        held = widths(layer)
        if held is None:
            continue
        weight, own = getattr(layer, "weight", None), sum(p.numel() for p in layer.parameters(recurse=False))
        dense = isinstance(layer, (_ConvNd, nn.Linear))
        weights = weight.numel() if dense and weight is not None else 0
        found[name] = _Layer(*held, 0.0, weights, own - weights, is_depthwise(layer), list(held))
        if dense:
            hooks.append(layer.register_forward_hook(_Meter(found[name])))
    try:
        with torch.no_grad():
            network(*inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return found


class _Meter:
    """Adds a layer's multiply-accumulates at each of its calls."""

    def __init__(self, layer: _Layer) -> None:
        self._layer = layer

    def __call__(self, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        weight: Any = layer.weight
        # Every weight of a filter is used once for each place of the output; of a transposed one, of the input.
        grid = inputs[0] if getattr(layer, "transposed", False) else output
        self._layer.macs += grid.numel() * weight.numel() / weight.shape[0]


def _per_unit(group: Group, place: Place) -> Tensor:
    """How many channels of a place each unit takes; several roots of one channel are in one unit."""
    units = group.unit[place.root]
    size = int(place.index.max()) + 1
    pairs = torch.unique(units * size + place.index)
    return torch.bincount(pairs // size, minlength=int(group.unit.max()) + 1)


def removed_units(blocks: Sequence[Block]) -> Iterator[tuple[Group, list[int]]]:
    """The units that go, by group."""
    names = {block.group.name: block.group for block in blocks}
    for name, group in names.items():
        yield group, [unit for block in blocks if block.group.name == name for unit in block.units]

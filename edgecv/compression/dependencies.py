"""Which channels of a network go together: remove one here, and these must go there.

On top of torch-pruning's graph, channels that share a fate are tied, and groups that it cannot know are left whole:
those that reach an output of the network, a product over channels, channels that are padded, or a layer we do not know
how to cut.
"""

from __future__ import annotations

import copy
from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch_pruning._helpers import _HybridIndex

from edgecv.compression.channels import Group, Place, Side, is_depthwise, widths
from edgecv.compression.tracing import Inputs, barrier, products, trace

__all__ = ["find_groups"]


def find_groups(network: nn.Module, inputs: Inputs, protect: Iterable[str] = ()) -> tuple[list[Group], dict[str, str]]:
    """The groups of channels that can be removed, and for every other layer why its outputs stay.

    ``protect`` names layers whose outputs stay; a name stands for all that is below it.

    Raises:
        ConversionError: torch-pruning cannot trace the network.
    """
    traced = copy.deepcopy(network).eval().requires_grad_(True)
    return _Finder(traced, trace(traced, inputs), tuple(protect)).find()


class _Finder:
    """A walk through torch-pruning's graph for every layer that makes channels."""

    def __init__(self, network: nn.Module, graph: Any, protected: tuple[str, ...]) -> None:
        self._layers = dict(network.named_modules())
        self._names = {layer: name for name, layer in network.named_modules()}
        self._graph, self._protected = graph, protected
        self._nodes = graph.module2node
        self._products = products(graph)
        owners = Counter(id(p) for layer in self._layers.values() for p in layer.parameters(recurse=False))
        self._shared = {key for key, count in owners.items() if count > 1}

    def find(self) -> tuple[list[Group], dict[str, str]]:
        groups: list[Group] = []
        reasons: dict[str, str] = {}
        done: set[str] = set()
        for name, layer in self._layers.items():
            if name in done or layer not in self._nodes or not isinstance(layer, (_ConvNd, nn.Linear)):
                continue
            reached, reason = self._walk(layer)
            places = [] if reason else self._places(reached)
            reason = reason or next(filter(None, map(self._objection, places)), "")
            makers = {self._names[node.module] for node, fn in reached if self._makes(node, fn)}
            done |= makers
            if reason:
                reasons.update(dict.fromkeys(makers, reason))
                continue
            groups.append(self._group(name, places))
        return _disjoint(groups, reasons)

    def _walk(self, layer: nn.Module) -> tuple[dict[tuple[Any, Any], set[Any]], str]:
        """All that hangs on the outputs of ``layer``, as pairs of a channel there and one here; or why they stay."""
        width, reason = (widths(layer) or (0, 0))[1], ""
        start = self._nodes[layer]
        first = [_HybridIndex(i, i) for i in range(width)]
        function = self._graph.get_pruner_of_module(layer).prune_out_channels
        reached: dict[tuple[Any, Any], set[Any]] = defaultdict(set)
        reached[start, function].update(first)
        stack = [(start, function, first)]
        while stack:
            node, function, indices = stack.pop()
            for step in node.dependencies:
                if not step.is_triggered_by(function):
                    continue
                if node in self._products and step.target in node.outputs:
                    continue
                if step.target in self._products and node in step.target.outputs:
                    reason = reason or "a product over other channels makes them"
                    continue
                reason = reason or barrier(step.target)
                moved = indices
                for mapping in filter(None, step.index_mapping):
                    moved = mapping(moved)
                key = (step.target, step.handler)
                new = [pair for pair in moved if pair not in reached[key]]
                if new:
                    reached[key].update(new)
                    stack.append((*key, new))
        return reached, reason or ("" if width else "it has no channels that can be removed")

    def _places(self, reached: dict[tuple[Any, Any], set[Any]]) -> list[Place]:
        places = []
        for (node, function), pairs in reached.items():
            if node.module not in self._names:
                continue  # an operation without weights follows its inputs
            ordered = sorted(pair for pair in pairs if pair.root_idx is not None)
            index, root = (torch.tensor([pair[i] for pair in ordered]) for i in (0, 1))
            places.append(Place(self._names[node.module], self._side(node.module, function), index, root))
        return places

    def _side(self, layer: nn.Module, function: Any) -> Side:
        if not isinstance(layer, (_ConvNd, nn.Linear)) or is_depthwise(layer):
            return "both"
        return "out" if function == self._graph.get_pruner_of_module(layer).prune_out_channels else "in"

    def _makes(self, node: Any, function: Any) -> bool:
        made = isinstance(node.module, (_ConvNd, nn.Linear))
        return made and self._side(node.module, function) != "in"

    def _objection(self, place: Place) -> str:
        """Why the channels of a place must stay, or nothing."""
        layer = self._layers[place.layer]
        held = widths(layer)
        if place.side != "in" and any(
            place.layer == name or place.layer.startswith(f"{name}.") for name in self._protected
        ):
            return f"{place.layer!r} is protected"
        if held is None:
            return f"{place.layer!r} is a {type(layer).__name__}, which cannot be cut"
        if isinstance(layer, _ConvNd) and layer.groups == layer.out_channels > 1 and not is_depthwise(layer):
            return f"{place.layer!r} sums several channels into each"
        if any(id(parameter) in self._shared for parameter in layer.parameters(recurse=False)):
            return f"{place.layer!r} shares its weights with another layer"
        if not len(place.index) or int(place.index.max()) >= held[place.side != "in"]:
            return f"{place.layer!r} does not fit them"
        return ""

    def _group(self, name: str, places: list[Place]) -> Group:
        width = widths(self._layers[name])[1]  # type: ignore[index]  # it is a convolution or linear
        ties = _Ties(width)
        for place in places:
            if len(torch.unique(place.index)) < len(place.index):
                for roots in _by(place.index, place.root).values():
                    ties.join(roots)
            parts = _parts(self._layers[place.layer])
            if parts > 1:
                size = widths(self._layers[place.layer])[place.side != "in"] // parts  # type: ignore[index]
                for roots in _by(place.index % size, place.root).values():
                    ties.join(roots)
        return Group(name, width, tuple(places), ties.numbered())


def _disjoint(groups: list[Group], reasons: dict[str, str]) -> tuple[list[Group], dict[str, str]]:
    """Leave out groups that claim the same channel, which can only be a misunderstanding."""
    claims: Counter[tuple[str, str, int]] = Counter()
    for group in groups:
        claims.update(_claims(group))
    good = [group for group in groups if all(claims[claim] == 1 for claim in _claims(group))]
    clash = {group.name: "its channels belong to two groups" for group in groups if group not in good}
    return good, {**reasons, **clash}


def _claims(group: Group) -> set[tuple[str, str, int]]:
    return {(place.layer, place.side, i) for place in group.places for i in place.index.tolist()}


def _parts(layer: nn.Module) -> int:
    """In how many parts of equal size a layer's channels are, which must stay equal."""
    if isinstance(layer, nn.GroupNorm):
        return layer.num_groups
    return layer.groups if isinstance(layer, _ConvNd) and not is_depthwise(layer) else 1


def _by(keys: Tensor, values: Tensor) -> dict[int, list[int]]:
    found: dict[int, list[int]] = defaultdict(list)
    for key, value in zip(keys.tolist(), values.tolist(), strict=True):
        found[key].append(value)
    return found


class _Ties:
    """Channels in classes that are joined one after the other (union-find)."""

    def __init__(self, count: int) -> None:
        self._parent = list(range(count))

    def join(self, members: list[int]) -> None:
        roots = {self._find(member) for member in members}
        lowest = min(roots)
        for root in roots:
            self._parent[root] = lowest

    def numbered(self) -> Tensor:
        """The number of each member's class, in the order of their first members."""
        roots = [self._find(member) for member in range(len(self._parent))]
        numbers = {root: number for number, root in enumerate(dict.fromkeys(roots))}
        return torch.tensor([numbers[root] for root in roots])

    def _find(self, member: int) -> int:
        while self._parent[member] != member:
            self._parent[member] = self._parent[self._parent[member]]
            member = self._parent[member]
        return member

"""A captured graph computed node by node on all calibration batches, so that a layer can be set before the next one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from edgecv.compression.calibration import Inputs
from edgecv.compression.capture import parameter
from edgecv.errors import InputError

__all__ = ["Stream"]


class Stream:
    """The values of a graph's nodes, one for each batch; a value is dropped when its last reader is done.

    ``exact`` leaves every quantizer out and keeps the weights that the graph had when the stream began.
    """

    def __init__(self, graph: fx.GraphModule, batches: Sequence[Inputs], *, exact: bool) -> None:
        self._graph, self._batches, self._exact = graph, batches, exact
        self._values: dict[fx.Node, list[Any]] = {}
        self._weights: dict[fx.Node, Tensor] = {}
        self._placeholders = [node for node in graph.graph.nodes if node.op == "placeholder"]
        if any(len(batch) != len(self._placeholders) for batch in batches):
            raise InputError(f"the network takes {len(self._placeholders)} inputs, calibration has another number")
        for node in graph.graph.nodes:
            if exact and (weight := parameter(graph, node)) is not None:
                self._weights[node] = weight.detach().clone()
        self._left = {node: len(node.users) for node in graph.graph.nodes}

    @torch.no_grad()
    def step(self, node: fx.Node) -> list[Any]:
        """Compute ``node``, whose inputs were computed before, for every batch."""
        if node.op == "placeholder":
            position = self._placeholders.index(node)
            self._values[node] = [batch[position] for batch in self._batches]
        elif node.op == "call_module" and _reads_weights(node):
            self._values[node] = [self._call(node, 0)] * len(self._batches)
        elif node.op in ("call_function", "call_module"):
            self._values[node] = [self._call(node, index) for index in range(len(self._batches))]
        for source in node.all_input_nodes:
            self._left[source] -= 1
            if self._left[source] == 0:
                self._values.pop(source, None)
        return self._values.get(node, [])

    def values(self, node: fx.Node) -> list[Any]:
        """What was computed for ``node``."""
        return self._values[node]

    def replace(self, node: fx.Node, values: list[Any]) -> None:
        """Put other values in place of those computed for ``node``."""
        self._values[node] = values

    def weight(self, node: fx.Node) -> Tensor:
        """A weight as this stream reads it."""
        held = self._weights.get(node)
        found = parameter(self._graph, node) if held is None else held
        if found is None:
            raise InputError(f"{node.name} is no weight")
        return found

    def _call(self, node: fx.Node, index: int) -> Any:
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda item: self._value(item, index))
        if node.op == "call_function":
            return node.target(*args, **kwargs)  # type: ignore[operator]
        return args[0] if self._exact else self._graph.get_submodule(str(node.target))(*args, **kwargs)

    def _value(self, node: fx.Node, index: int) -> Any:
        return self.weight(node) if node.op == "get_attr" else self._values[node][index]


def _reads_weights(node: fx.Node) -> bool:
    """Whether a node gives the same for every batch."""
    return all(source.op == "get_attr" for source in node.all_input_nodes)

"""A network's operations as torch-pruning sees them (DepGraph: Fang et al., 2023, arXiv:2301.12900), with the mistakes
mended that it makes where it has to guess shapes."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch_pruning
from torch import Tensor, nn
from torch_pruning.dependency import shape_infer
from torch_pruning.dependency.index_mapping import _FlattenIndexMapping, _SplitIndexMapping
from torch_pruning.ops import OPTYPE

from edgecv.compression.removal import tensors_of
from edgecv.errors import ConversionError, one_line

__all__ = ["Inputs", "barrier", "products", "trace"]

Inputs = tuple[Tensor, ...]
BROKEN = (AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


def trace(network: nn.Module, inputs: Inputs) -> Any:
    """The graph of a network in eval mode, all of whose parameters have gradients.

    Raises:
        ConversionError: torch-pruning cannot trace it.
    """
    graph = torch_pruning.DependencyGraph()
    try:
        with torch.enable_grad():
            graph.build_dependency(network, inputs, output_transform=_marked, verbose=False)
    except BROKEN as error:
        raise ConversionError(
            f"torch-pruning cannot trace {type(network).__name__}: {type(error).__name__}: {one_line(error)}"
        ) from error
    for node in graph.module2node.values():
        _mend_mapping(node)
    return graph


def products(graph: Any) -> set[Any]:
    """The matrix products that sum over the channels of both their inputs: what they give has other channels."""
    return {node for node in graph.module2node.values() if _is_product(node) and _contracts(graph, node)}


def _is_product(node: Any) -> bool:
    return node.type == OPTYPE.ELEMENTWISE and _operation(node) in ("BmmBackward0", "MmBackward0", "BaddbmmBackward0")


def _contracts(graph: Any, node: Any) -> bool:
    summed = _shape(node.grad_fn.next_functions[0][0])[-1]
    return {shape_infer.infer_out_channels_recursively(graph, item, [0]) for item in node.inputs} == {summed}


def barrier(node: Any) -> str:
    """Why channels that reach ``node`` must stay, or nothing."""
    if node.type == OPTYPE.OUTPUT:
        return "they are an output of the network"
    if node.type == OPTYPE.PARAMETER:
        return "they meet a parameter outside of any known layer"
    operation = _operation(node)
    if node.type == OPTYPE.ELEMENTWISE and operation.startswith("ConvolutionBackward"):
        return "they meet a convolution whose weights are computed"
    if operation == "ConstantPadNdBackward0":
        pads, rank = node.grad_fn._saved_pad, len(_shape(node.grad_fn))
        place = 2 * (rank - 2)  # pads begin with the last axis; channels are axis 1
        if any(pads[place : place + 2]):
            return "channels are padded"
    return ""


def _marked(outputs: Any) -> list[Tensor]:
    """The tensors of the outputs, each behind one more operation: torch-pruning then knows it for an output."""
    return [tensor * 1 for tensor in tensors_of(outputs) if tensor.grad_fn is not None]


def _operation(node: Any) -> str:
    return node.grad_fn.name() if hasattr(node.grad_fn, "name") else ""


def _shape(function: Any) -> tuple[int, ...]:
    """The shape of what an operation of the forward pass gave, from its node of the backward pass."""
    return tuple(function._input_metadata[0].shape)


def _mend_mapping(node: Any) -> None:
    """Say from real shapes how an operation renumbers channels; torch-pruning guesses from the layers around it."""
    if node.type == OPTYPE.SPLIT:
        _mend_split(node)
        return
    moves = node.type == OPTYPE.SLICE and node.module.dim != 1 and len(_shape(node.grad_fn)) != 3
    if not moves and node.type != OPTYPE.RESHAPE:
        return
    before = _shape(node.grad_fn.next_functions[0][0])
    count, unfolded = (1, False) if moves else _unfolding(before, _shape(node.grad_fn))
    for other in node.inputs:
        _set_mapping(other, node, [_FlattenIndexMapping(count, reverse=unfolded) if count > 1 else None])
        _set_mapping(node, other, [_FlattenIndexMapping(count, reverse=not unfolded) if count > 1 else None])
    for other in node.outputs:
        _set_mapping(other, node, [None])
        _set_mapping(node, other, [None])


def _mend_split(node: Any) -> None:
    """Part ``k`` of a split along the channels begins where those before it end."""
    shapes = [tuple(part.shape) for part in node.grad_fn._input_metadata]
    along_channels = node.grad_fn._saved_dim in (1, 1 - len(shapes[0]) + 2**64)  # a negative axis is read as unsigned
    starts = [sum(shape[1] for shape in shapes[:k]) for k in range(len(shapes) + 1)]
    for other in set(node.outputs):
        parts = [k for function, k in other.grad_fn.next_functions if function is node.grad_fn]
        offsets = [starts[k : k + 2] for k in parts] if along_channels else []
        _set_mapping(node, other, [_SplitIndexMapping(offset) for offset in offsets] or [None])
        _set_mapping(other, node, [_SplitIndexMapping(offset, reverse=True) for offset in offsets] or [None])


def _set_mapping(source: Any, target: Any, mappings: list[Any]) -> None:
    """Give each of the edges from one node to another its mapping; the last is that of any more."""
    steps = [step for step in source.dependencies if step.target is target]
    for number, step in enumerate(steps):
        step.index_mapping[0] = mappings[min(number, len(mappings) - 1)]


def _unfolding(before: tuple[int, ...], after: tuple[int, ...]) -> tuple[int, bool]:
    """How many features are one channel's, and whether they are unfolded, where a reshape flattens or unfolds them."""
    if len(after) == 2 < len(before) and after[1] == math.prod(before[1:]):
        return math.prod(before[2:]), False
    if len(before) == 2 < len(after) and before[1] == math.prod(after[1:]):
        return math.prod(after[2:]), True
    return 1, False

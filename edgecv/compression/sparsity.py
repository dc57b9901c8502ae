"""Weights set to zero where they matter least, for those who store them compressed; shapes stay as they are."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils import prune

from edgecv.errors import InputError
from edgecv.plugins import unknown

__all__ = ["sparsify", "sparsity_of"]


def sparsify(
    network: nn.Module,
    amount: float | None = None,
    *,
    pattern: tuple[int, int] | None = None,
    protect: Iterable[str] = (),
) -> nn.Module:
    """A copy of ``network`` with the smallest weights of its convolutions and linear layers set to zero.

    No backend of ours is faster with it: it saves bytes where weights are stored compressed, and 2:4 is what sparse
    tensor cores read.

    Args:
        amount: the share of zeros over all layers together (``torch.nn.utils.prune.global_unstructured``, L1).
        pattern: ``(zeros, of)``: of every ``of`` weights that follow each other along the inputs of a filter, the
            ``zeros`` smallest; ``(2, 4)`` is NVIDIA's 2:4. A rest at the end of a row stays.
        protect: layers that are left as they are; a name stands for all layers below it.

    Raises:
        InputError: neither or both are given, one is out of range, or a name is none of the network's.
    """
    if (amount is None) == (pattern is None):
        raise InputError("give either amount, the share of zeros, or pattern, such as (2, 4)")
    sparse = copy.deepcopy(network)
    layers = list(_layers(sparse, tuple(protect)))
    if not layers:
        raise InputError("the network has no convolution or linear layer to sparsify")
    if amount is not None:
        if not 0 <= amount < 1:
            raise InputError(f"amount is a share from 0 and below 1, got {amount!r}")
        prune.global_unstructured([(layer, "weight") for layer in layers], prune.L1Unstructured, amount=float(amount))
    elif pattern is not None:
        _check_pattern(pattern)
        for layer in layers:
            mask = _pattern_mask(layer, *pattern)
            prune.custom_from_mask(layer, "weight", mask)  # type: ignore[no-untyped-call]
    for layer in layers:
        prune.remove(layer, "weight")  # type: ignore[no-untyped-call]
    return sparse


def sparsity_of(network: nn.Module) -> float:
    """The share of zeros among the weights of convolutions and linear layers."""
    weights = [layer.weight.detach() for layer in _layers(network, ())]
    zeros = sum(int((weight == 0).sum()) for weight in weights)
    return zeros / max(1, sum(int(weight.numel()) for weight in weights))


def _layers(network: nn.Module, protect: tuple[str, ...]) -> Iterator[Any]:
    known = dict(network.named_modules())
    for name in protect:
        if name not in known:
            raise InputError(unknown("layer", name, known))
    for name, layer in known.items():
        held = any(name == other or name.startswith(f"{other}.") for other in protect)
        if isinstance(layer, (_ConvNd, nn.Linear)) and not held:
            yield layer


def _check_pattern(pattern: tuple[int, int]) -> None:
    if len(pattern) != 2 or not all(isinstance(number, int) for number in pattern) or not 0 < pattern[0] < pattern[1]:
        raise InputError(f"pattern is (zeros, of), such as (2, 4), got {pattern!r}")


def _pattern_mask(layer: Any, zeros: int, of: int) -> Tensor:
    """Ones where weights stay. Inputs come last, as sparse kernels have them: [outputs, height, width, inputs]."""
    weight: Tensor = layer.weight.detach()
    transposed = getattr(layer, "transposed", False)
    rows = (weight.transpose(0, 1) if transposed else weight).movedim(1, -1)
    whole = rows.shape[-1] // of
    parts = rows[..., : whole * of].abs().reshape(*rows.shape[:-1], whole, of)
    smallest = parts.argsort(dim=-1, stable=True)[..., :zeros]
    mask = torch.ones_like(rows)
    mask[..., : whole * of] = torch.ones_like(parts).scatter(-1, smallest, 0).flatten(-2)
    mask = mask.movedim(-1, 1)
    return mask.transpose(0, 1) if transposed else mask

"""How much each unit of a group of channels matters, by the criteria of the literature."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from edgecv.compression.channels import Group, Place, Side
from edgecv.errors import InputError

__all__ = ["CRITERIA", "Criterion", "Loss", "importance"]

Criterion = Literal["l1", "l2", "bn_scale", "taylor", "hessian", "random"]
CRITERIA: tuple[Criterion, ...] = ("l1", "l2", "bn_scale", "taylor", "hessian", "random")
Loss = Callable[[nn.Module], Tensor]
"""Of a network on one batch of the calibration."""


def importance(
    network: nn.Module,
    groups: Sequence[Group],
    criterion: Criterion,
    *,
    losses: Sequence[Loss] = (),
    seed: int = 0,
) -> dict[str, Tensor]:
    """The importance of every unit of every group, by the group's name; groups it says nothing about are left out.

    ``"l1"`` and ``"l2"`` sum the weights of all layers that make or take a channel, absolute (Li et al., 2016,
    arXiv:1608.08710) or squared, and ``"bn_scale"`` the absolute scales of batch norms (Liu et al., 2017,
    arXiv:1708.06519); these are relative to the mean of the group. ``"taylor"`` is the squared first-order change of
    the loss (Molchanov et al., 2019, arXiv:1906.10771), ``"hessian"`` the second-order change with the empirical Fisher
    information for the Hessian's diagonal (Theis et al., 2018, arXiv:1801.05787), each the mean over ``losses``.
    """
    if criterion == "random":
        generator = torch.Generator().manual_seed(seed)
        return {group.name: torch.rand(_units(group), generator=generator) for group in groups}
    layers = dict(network.named_modules())
    if criterion in ("taylor", "hessian"):
        return _from_gradients(network, groups, criterion, losses)
    if criterion == "bn_scale":
        found = {group.name: _scales(group, layers) for group in groups}
        if not any(scores is not None for scores in found.values()):
            raise InputError("importance 'bn_scale' is read from batch norms, and the network has none; use 'l1'")
    else:
        power = 1 if criterion == "l1" else 2
        found = {group.name: _magnitudes(group, layers, power) for group in groups}
    return {name: scores / scores.mean().clamp_min(1e-12) for name, scores in found.items() if scores is not None}


def _magnitudes(group: Group, layers: dict[str, nn.Module], power: int) -> Tensor:
    total = torch.zeros(_units(group))
    for place, layer in _weighted(group, layers):
        total += _per_unit(group, place, _per_channel(layer, place.side, layer.weight.detach().abs() ** power))
    return total


def _scales(group: Group, layers: dict[str, nn.Module]) -> Tensor | None:
    norms = [(place, layers[place.layer]) for place in group.places]
    scales = [(place, layer.weight) for place, layer in norms if isinstance(layer, _BatchNorm) and layer.affine]
    if not scales:
        return None
    return torch.stack([_per_unit(group, place, weight.detach().abs().cpu()) for place, weight in scales]).sum(0)


def _from_gradients(
    network: nn.Module,
    groups: Sequence[Group],
    criterion: Criterion,
    losses: Sequence[Loss],
) -> dict[str, Tensor]:
    if not losses:
        raise InputError(f"importance {criterion!r} needs a loss: calibrate on labelled images, or give loss=")
    traced = copy.deepcopy(network).eval().requires_grad_(True)
    layers = dict(traced.named_modules())
    total = {group.name: torch.zeros(_units(group)) for group in groups}
    for loss in losses:
        traced.zero_grad(set_to_none=True)
        with torch.enable_grad():
            loss(traced).backward()  # type: ignore[no-untyped-call]
        for group in groups:
            total[group.name] += _change(group, layers, criterion) / len(losses)
    return total


def _change(group: Group, layers: dict[str, nn.Module], criterion: Criterion) -> Tensor:
    """What removing each unit changes, as its takers see it; its makers where a product takes it."""
    places = list(_weighted(group, layers))
    takers = [(place, layer) for place, layer in places if place.side == "in"] or places
    total = torch.zeros(_units(group))
    for place, layer in takers:
        product = layer.weight.detach() * (
            torch.zeros_like(layer.weight) if layer.weight.grad is None else layer.weight.grad
        )
        if criterion == "hessian":
            product = product**2
        total += _per_unit(group, place, _per_channel(layer, place.side, product))
    return total**2 if criterion == "taylor" else total / 2


def _weighted(group: Group, layers: dict[str, nn.Module]) -> Iterator[tuple[Place, Any]]:
    for place in group.places:
        layer = layers[place.layer]
        if isinstance(layer, (_ConvNd, nn.Linear)):
            yield place, layer


def _per_channel(layer: nn.Module, side: Side, values: Tensor) -> Tensor:
    """Sum what there is for every weight of a convolution or linear layer over those of each channel of one side."""
    if not isinstance(layer, _ConvNd) or not layer.transposed:
        values = values.transpose(0, 1)
    table = values.reshape(*values.shape[:2], -1).sum(2).cpu()  # [inputs of one group, outputs of all groups]
    if side != "in":
        return table.sum(0)
    return table.reshape(len(table), getattr(layer, "groups", 1), -1).sum(2).T.flatten()


def _per_unit(group: Group, place: Place, values: Tensor) -> Tensor:
    total = torch.zeros(_units(group), dtype=values.dtype)
    return total.index_add(0, group.unit[place.root], values[place.index])


def _units(group: Group) -> int:
    return int(group.unit.max()) + 1

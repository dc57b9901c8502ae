"""Layers with fewer channels: how wide a layer is, and what is left of it when only some channels are kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils.parametrize import is_parametrized

from edgecv.errors import InputError
from edgecv.plugins import unknown

__all__ = ["Group", "Place", "Side", "changed_widths", "is_depthwise", "keep", "shrink", "widths"]

Side = Literal["in", "out", "both"]
"""Which channels of a layer: ``"both"`` for one whose inputs and outputs are the same, such as a batch norm."""
Widths = dict[str, tuple[int, int]]


@dataclass(frozen=True, slots=True)
class Place:
    """Channels ``index`` on one side of a layer, each of which goes with channel ``root`` of its group."""

    layer: str
    side: Side
    index: Tensor
    root: Tensor


@dataclass(frozen=True, slots=True)
class Group:
    """Channels that are removed together.

    Attributes:
        name: the first layer that makes these channels; they are numbered as its outputs.
        width: how many there are.
        places: where else they are.
        unit: for each channel, the number of the unit it can only be removed with.
    """

    name: str
    width: int
    places: tuple[Place, ...]
    unit: Tensor


def is_depthwise(layer: nn.Module) -> bool:
    """Whether every channel is filtered by itself."""
    return isinstance(layer, _ConvNd) and layer.groups == layer.out_channels == layer.in_channels > 1


def widths(layer: nn.Module) -> tuple[int, int] | None:
    """The channels that go in and come out, or ``None`` where the layer has none, or none that can be removed."""
    if is_parametrized(layer):
        return None
    if isinstance(layer, _ConvNd):
        strange = layer.transposed and layer.groups > 1
        return None if strange else (layer.in_channels, layer.out_channels)
    if isinstance(layer, nn.Linear):
        return layer.in_features, layer.out_features
    count: int | None = None
    if isinstance(layer, _NormBase):  # batch and instance norm
        count = layer.num_features
    elif isinstance(layer, nn.GroupNorm):
        count = layer.num_channels
    elif isinstance(layer, nn.LayerNorm):
        count = layer.normalized_shape[0] if len(layer.normalized_shape) == 1 else None
    elif isinstance(layer, nn.PReLU):
        count = layer.num_parameters if layer.num_parameters > 1 else None
    return None if count is None else (count, count)


def keep(layer: nn.Module, side: Side, kept: Tensor) -> None:
    """Leave only the channels ``kept`` (ascending indices) on one side of a layer, in place."""
    if isinstance(layer, _ConvNd):
        _keep_convolution(layer, side, kept)
    elif isinstance(layer, nn.Linear):
        _pick(layer, "weight", kept, 0 if side == "out" else 1)
        if side == "out":
            _pick(layer, "bias", kept)
        layer.out_features, layer.in_features = layer.weight.shape
    else:
        for name in ("weight", "bias", "running_mean", "running_var"):
            _pick(layer, name, kept)
        _count(layer, len(kept))


def changed_widths(before: nn.Module, after: nn.Module) -> Widths:
    """The layers of ``after`` that are not as wide as in ``before``."""
    old = {name: widths(layer) for name, layer in before.named_modules()}
    new = {name: widths(layer) for name, layer in after.named_modules()}
    return {name: found for name, found in new.items() if found is not None and found != old.get(name)}


def shrink(network: nn.Module, wanted: Mapping[str, Any]) -> None:
    """Give layers the widths ``{name: [in, out]}``, in place; which channels stay is of no matter here.

    Raises:
        InputError: there is no such layer, or it is not wider than that.
    """
    layers = dict(network.named_modules())
    for name, sizes in wanted.items():
        if name not in layers:
            raise InputError(unknown("layer", name, layers))
        layer, held = layers[name], widths(layers[name])
        pair = isinstance(sizes, (list, tuple)) and len(sizes) == 2 and all(type(size) is int for size in sizes)
        if held is None or not pair or not all(0 < new <= old for new, old in zip(sizes, held, strict=True)):
            raise InputError(f"layer {name!r} is {held} channels wide (in, out), it cannot become {sizes!r}")
        if not isinstance(layer, (_ConvNd, nn.Linear)) or is_depthwise(layer):
            keep(layer, "both", torch.arange(sizes[1]))
            continue
        keep(layer, "in", _spread(held[0], sizes[0], getattr(layer, "groups", 1)))
        keep(layer, "out", torch.arange(sizes[1]))


def _spread(held: int, wanted: int, groups: int) -> Tensor:
    """The first channels of every group of a convolution."""
    if wanted % groups:
        raise InputError(f"a convolution of {groups} groups cannot have {wanted} input channels")
    each = torch.arange(groups)[:, None] * (held // groups) + torch.arange(wanted // groups)
    return each.flatten()


def _keep_convolution(layer: _ConvNd, side: Side, kept: Tensor) -> None:
    rows, columns = (1, 0) if layer.transposed else (0, 1)
    if side == "in":
        # A grouped convolution loses the same channels in all groups: those of the first say which columns.
        first = kept[kept < layer.in_channels // layer.groups]
        _pick(layer, "weight", first, columns)
        layer.in_channels = len(kept)
        return
    _pick(layer, "weight", kept, rows)
    _pick(layer, "bias", kept)
    layer.out_channels = len(kept)
    if side == "both":
        layer.in_channels = layer.groups = len(kept)


def _count(layer: nn.Module, channels: int) -> None:
    if isinstance(layer, _NormBase):
        layer.num_features = channels
    elif isinstance(layer, nn.GroupNorm):
        layer.num_channels = channels
    elif isinstance(layer, nn.LayerNorm):
        layer.normalized_shape = (channels,)
    elif isinstance(layer, nn.PReLU):
        layer.num_parameters = channels


def _pick(layer: nn.Module, name: str, kept: Tensor, axis: int = 0) -> None:
    value = getattr(layer, name, None)
    if value is None:
        return
    picked = value.detach().index_select(axis, kept.to(value.device))
    setattr(layer, name, nn.Parameter(picked, value.requires_grad) if isinstance(value, nn.Parameter) else picked)

"""A network with less for torch's exporter to trace: batch norms folded, nothing done in place."""

from __future__ import annotations

import itertools
from collections import Counter

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from edgecv.models.layers import SameConv2d

__all__ = ["fold_norms", "leave_in_place"]

HOOKS = ("_forward_hooks", "_forward_pre_hooks")


@torch.no_grad()
def fold_norms(network: nn.Module) -> None:
    """Fold, in place, each batch norm into the convolution in front of it, where a plain Sequential runs one behind the
    other and nothing else holds either. ``network`` must be in eval mode.

    ONNX writers fold them anyway, but tracing them first takes half of an export's time.
    """
    held = Counter(id(child) for module in network.modules() for child in module._modules.values())
    weights = Counter(id(value) for module in network.modules() for value in module.parameters(recurse=False))
    for parent in list(network.modules()):
        if not isinstance(parent, nn.Sequential) or type(parent).forward is not nn.Sequential.forward:
            continue
        children = list(parent._modules.items())
        for (name, layer), (after, norm) in itertools.pairwise(children):
            if not isinstance(layer, nn.Conv2d) or not isinstance(norm, nn.BatchNorm2d) or norm.running_var is None:
                continue
            alone = all(held[id(module)] == 1 and _is_plain(module) for module in (layer, norm))
            if alone and weights[id(layer.weight)] == 1:
                setattr(parent, name, fuse_conv_bn_eval(layer, norm))
                setattr(parent, after, nn.Identity())


def leave_in_place(network: nn.Module) -> None:
    """Let activations give new tensors: an operation in place is traced through all of its parts, which takes longer
    than everything else together.
    """
    for module in network.modules():
        if getattr(module, "inplace", None) is True:
            setattr(module, "inplace", False)  # noqa: B010  (no attribute of every module)


def _is_plain(module: nn.Module) -> bool:
    """Whether it is the layer itself, no relative that does more, and nothing looks at what goes in and out."""
    return type(module) in (nn.Conv2d, SameConv2d, nn.BatchNorm2d) and not any(getattr(module, name) for name in HOOKS)

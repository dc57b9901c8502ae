"""Blocks with branches that serve training alone, folded for deployment."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from edgecv.errors import ConversionError, one_line

__all__ = ["reparameterize"]

METHODS = ("fuse", "reparameterize", "switch_to_deploy")  # what libraries call it, in the order in which timm looks


@torch.no_grad()
def reparameterize(network: nn.Module) -> None:
    """Fold, in place, every submodule that offers it, as those of MobileOne, RepVGG, FastViT and RepViT do.

    A submodule offers it by a method ``fuse``, ``reparameterize`` or ``switch_to_deploy`` that can be called without
    arguments: it changes the submodule, or returns what replaces it. ``network`` must be in eval mode.

    Raises:
        ConversionError: a submodule's own method fails.
    """
    for name, child in list(network.named_children()):
        method = _offer(child)
        if method is not None:
            folded = _call(method, name, child)
            if isinstance(folded, nn.Module):
                setattr(network, name, folded.eval())
                child = folded
        reparameterize(child)


def _offer(module: nn.Module) -> Callable[[], Any] | None:
    """The method that folds ``module``: neither a layer of that name, nor one that wants arguments, as a VAE's does."""
    if getattr(module, "reparam_conv", None) is not None:  # folded already, which not all of timm's blocks bear twice
        return None
    found = (getattr(module, name, None) for name in METHODS)
    return next((method for method in found if inspect.ismethod(method) and _takes_nothing(method)), None)


def _takes_nothing(method: Callable[..., Any]) -> bool:
    try:
        inspect.signature(method).bind()
    except TypeError:
        return False
    return True


def _call(method: Callable[[], Any], name: str, module: nn.Module) -> Any:
    try:
        return method()
    except (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise ConversionError(
            f"the layer {name!r} cannot be folded for deployment, {type(module).__name__}.{method.__name__}() failed: "
            f"{one_line(error)}; mend it, or export with OnnxOptions(reparameterize=False)"
        ) from error

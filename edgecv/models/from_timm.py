"""``timm:NAME``: any classifier of timm (PyTorch Image Models), with its own options and preprocessing."""

from __future__ import annotations

import difflib
import math
import os
from typing import Any

import timm
from torch import nn

from edgecv.errors import BackendUnavailable, InputError, one_line
from edgecv.models.recipe import Library
from edgecv.preprocess import Preprocess
from edgecv.progress import Progress

__all__ = ["LIBRARY"]


def build(name: str, options: dict[str, Any]) -> nn.Module:
    """Make timm's ``name`` with fresh weights."""
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=1)  # all 1300 names would fill the screen
        guess = f"did you mean {near[0]!r}? " if near else ""
        raise InputError(f"unknown timm model {name!r}; {guess}timm.list_models() lists them")
    if "checkpoint_path" in options:  # recipes come from files, and must not make timm read others
        raise InputError(f"timm:{name} takes no checkpoint_path here: pass the file as weights")
    try:
        network: nn.Module = timm.create_model(name, pretrained=False, **options)
    except (AssertionError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(f"timm:{name} cannot be built with {options}: {one_line(error)}") from error
    preprocess = _preprocess(network, options.get("img_size"))
    network.edgecv_preprocess = preprocess  # type: ignore[assignment]  # a plain attribute
    return network


def load_published(name: str, progress: Progress) -> dict[str, Any]:
    """Download the published weights of ``name`` through timm, which keeps a cache and checks hashes of its own."""
    if not timm.is_model_pretrained(name):
        raise InputError(f"timm:{name} has no published weights")
    if os.environ.get("EDGECV_OFFLINE", "") not in ("", "0"):
        raise BackendUnavailable(f"EDGECV_OFFLINE is set: the weights of timm:{name} cannot be downloaded; pass a file")
    try:
        return dict(timm.create_model(name, pretrained=True).state_dict())
    except (OSError, RuntimeError) as error:
        raise BackendUnavailable(f"cannot download the weights of timm:{name}: {one_line(error)}") from error


def _preprocess(network: nn.Module, size: int | tuple[int, int] | None) -> Preprocess:
    """timm's evaluation transform: short side to ``size / crop_pct``, centre crop; or a stretch where it squashes."""
    chosen = (size, size) if isinstance(size, int) else size
    config = timm.data.resolve_model_data_config(network, {"input_size": (3, *chosen)} if chosen else None)
    height, width = config["input_size"][1:]
    short = math.floor(min(height, width) / config["crop_pct"])
    return Preprocess(
        size=(height, width),
        resize=None if config["crop_mode"] == "squash" else max(short, height, width),
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        interpolation="bilinear" if config["interpolation"] == "bilinear" else "bicubic",
    )


LIBRARY = Library(build, load_published)

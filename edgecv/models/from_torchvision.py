"""``torchvision:NAME``: any classifier of torchvision, with its own options and preprocessing."""

from __future__ import annotations

from typing import Any

import torchvision
from torch import nn

from edgecv.errors import InputError, one_line
from edgecv.models.downloads import fetch
from edgecv.models.recipe import Library
from edgecv.plugins import unknown
from edgecv.preprocess import Preprocess
from edgecv.progress import Progress

__all__ = ["LIBRARY"]

# Networks with helpers for training at several depths: without these options they give tuples in training.
PLAIN = {
    "googlenet": {"aux_logits": False, "init_weights": True},
    "inception_v3": {"aux_logits": False, "init_weights": True},
}


def build(name: str, options: dict[str, Any]) -> nn.Module:
    """Make torchvision's ``name`` with fresh weights."""
    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        raise InputError(unknown("torchvision model", name, known))
    try:
        network: nn.Module = torchvision.models.get_model(name, weights=None, **{**PLAIN.get(name, {}), **options})
    except (TypeError, ValueError) as error:
        raise InputError(f"torchvision:{name} cannot be built with {options}: {one_line(error)}") from error
    transforms = torchvision.models.get_model_weights(name).DEFAULT.transforms()
    network.edgecv_preprocess = _preprocess(transforms)  # type: ignore[assignment]  # a plain attribute
    return network


def load_published(name: str, progress: Progress) -> dict[str, Any]:
    """Download the newest published weights of ``name``; the file's name carries its hash."""
    import torch

    url = torchvision.models.get_model_weights(name).DEFAULT.url
    digits = url.rpartition("-")[2].partition(".")[0]
    weights: dict[str, Any] = torch.load(fetch(url, digits, progress=progress), map_location="cpu", weights_only=True)
    return {key: value for key, value in weights.items() if not key.lower().startswith("aux")}


def _preprocess(transforms: Any) -> Preprocess:
    crop, short = transforms.crop_size[0], transforms.resize_size[0]
    return Preprocess(
        size=(crop, crop),
        resize=max(short, crop),
        mean=tuple(transforms.mean),
        std=tuple(transforms.std),
        interpolation=transforms.interpolation.value,
    )


LIBRARY = Library(build, load_published)

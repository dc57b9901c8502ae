"""``torchvision:NAME``: any classifier of torchvision, with its own options and preprocessing."""

from __future__ import annotations

import re
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

# What torchvision itself sets for the published weights: two networks take images of another normalization, one a
# larger size. Helpers for training at several depths are left out: with them a network gives tuples in training.
PLAIN: dict[str, dict[str, Any]] = {
    "googlenet": {"aux_logits": False, "init_weights": True, "transform_input": True},
    "inception_v3": {"aux_logits": False, "init_weights": True, "transform_input": True},
    "vit_h_14": {"image_size": 518},
}
_OLD_DENSENET = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)")  # published before module names lost their dots


def build(name: str, options: dict[str, Any]) -> nn.Module:
    """Make torchvision's ``name`` with fresh weights."""
    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        raise InputError(unknown("torchvision model", name, known))
    chosen = {**PLAIN.get(name, {}), **options}
    try:
        network: nn.Module = torchvision.models.get_model(name, weights=None, **chosen)
    except (AssertionError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(f"torchvision:{name} cannot be built with {options}: {one_line(error)}") from error
    transforms = torchvision.models.get_model_weights(name).DEFAULT.transforms()
    preprocess = _preprocess(transforms, chosen.get("image_size", chosen.get("input_size")))
    network.edgecv_preprocess = preprocess  # type: ignore[assignment]  # a plain attribute
    return network


def load_published(name: str, progress: Progress) -> dict[str, Any]:
    """Download the newest published weights of ``name``; the file's name carries its hash."""
    import torch

    url = torchvision.models.get_model_weights(name).DEFAULT.url
    digits = url.rpartition("-")[2].partition(".")[0]
    weights: dict[str, Any] = torch.load(fetch(url, digits, progress=progress), map_location="cpu", weights_only=True)
    return {
        _OLD_DENSENET.sub(r"\1\2", key): value for key, value in weights.items() if not key.lower().startswith("aux")
    }


def _preprocess(transforms: Any, size: int | tuple[int, int] | None) -> Preprocess:
    """torchvision's evaluation transform; at ``size`` where the options chose one, with the margin in proportion."""
    crop, short = transforms.crop_size[0], transforms.resize_size[0]
    height, width = (size, size) if isinstance(size, int) else tuple(size or (crop, crop))
    return Preprocess(
        size=(height, width),
        resize=max(short * min(height, width) // crop, height, width),
        mean=tuple(transforms.mean),
        std=tuple(transforms.std),
        interpolation=transforms.interpolation.value,
    )


LIBRARY = Library(build, load_published)

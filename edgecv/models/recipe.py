"""Recipes: JSON that rebuilds a network, and the table of architectures they name."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from edgecv.errors import InputError
from edgecv.plugins import Table, unknown

__all__ = ["ARCHITECTURES", "Recipe", "create", "names", "recipe_of"]

ARCHITECTURES = Table(
    kind="model",
    group="edgecv.models",
    builtin={
        "mobilenet_v2": "edgecv.models.mobilenet_v2:MobileNetV2",
        "resnet18": "edgecv.models.resnet:resnet18",
        "squeezenet1_1": "edgecv.models.squeezenet:SqueezeNet",
    },
    extras={},
)


@dataclass(frozen=True, slots=True)
class Recipe:
    """An architecture's name and the options it was built with."""

    architecture: str
    options: dict[str, Any] = field(default_factory=dict)

    def build(self) -> nn.Module:
        """Make the network, with fresh weights."""
        builder = ARCHITECTURES.load(self.architecture)
        known = [name for name in inspect.signature(builder).parameters if name not in ("args", "kwargs")]
        for option in self.options:
            if option not in known:
                raise InputError(f"model {self.architecture!r}: {unknown('option', option, known)}")
        network: nn.Module = builder(**self.options)
        network.edgecv_recipe = self  # type: ignore[assignment]  # a plain attribute: it travels with deepcopy
        return network


def create(name: str, **options: Any) -> nn.Module:
    """Build a network with fresh weights from its name, as in ``create("mobilenet_v2", num_classes=10, width=0.5)``.

    Every architecture takes ``num_classes`` (default 1000) and ``stem``: ``"imagenet"``, or ``"small"`` for images of
    about 32 pixels, which keeps their resolution in the first layers. It takes float images
    ``[batch, 3, height, width]`` and gives logits ``[batch, num_classes]``.

    Raises:
        InputError: no such architecture or option, or an option's value is out of range.
    """
    return Recipe(name, options).build()


def names() -> tuple[str, ...]:
    """The architectures that ``create`` knows."""
    return tuple(sorted(ARCHITECTURES.names()))


def recipe_of(network: nn.Module) -> Recipe | None:
    """The recipe ``network`` was built from, or ``None`` where it is not one of ours."""
    recipe = getattr(network, "edgecv_recipe", None)
    return recipe if isinstance(recipe, Recipe) else None


def check_options(num_classes: int, stem: str, stems: Iterable[str] = ("imagenet", "small")) -> None:
    """Refuse what no architecture can be built with."""
    if not isinstance(num_classes, int) or num_classes < 1:
        raise InputError(f"num_classes is a whole number from 1, got {num_classes!r}")
    if stem not in stems:
        raise InputError(unknown("stem", stem, stems))

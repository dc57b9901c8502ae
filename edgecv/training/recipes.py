"""Training recipes as data: settings and preprocessing that suit a kind of images, by name or from a JSON file."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgecv.errors import InputError, one_line
from edgecv.plugins import unknown
from edgecv.preprocess import Preprocess
from edgecv.schema import decode, encode, loads
from edgecv.training.config import TrainConfig

__all__ = ["RECIPES", "TrainRecipe", "recipe_for"]


@dataclass(frozen=True, slots=True)
class TrainRecipe:
    """What a training run needs besides a network and data."""

    preprocess: Preprocess
    config: TrainConfig = field(default_factory=TrainConfig)

    def changed(self, settings: Mapping[str, Any]) -> TrainRecipe:
        """The recipe with other settings of its ``config``.

        Raises:
            InputError: no such setting, or a value it cannot have.
        """
        config = decode(TrainConfig, {**encode(self.config), **settings}, "settings")
        return dataclasses.replace(self, config=config)


IMAGENET: dict[str, Any] = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
RECIPES = {
    "digits": TrainRecipe(
        Preprocess(size=(32, 32), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
        TrainConfig(epochs=20, batch_size=128, learning_rate=8e-3, augment="digits"),
    ),
    # The optimizer and augmentation of He et al., 2015 (section 4.2), with a cosine in place of the steps.
    "cifar10": TrainRecipe(
        Preprocess(size=(32, 32), **IMAGENET),
        TrainConfig(
            epochs=60,
            batch_size=128,
            optimizer="sgd",
            learning_rate=0.1,
            weight_decay=5e-4,
            warmup_epochs=2.0,
            label_smoothing=0.0,
            ema_decay=0.995,
            augment="small_photos",
        ),
    ),
    "photos": TrainRecipe(
        Preprocess(size=(224, 224), resize=256, **IMAGENET),
        TrainConfig(epochs=60, learning_rate=1e-3, warmup_epochs=3.0, ema_decay=0.999, augment="photos", mixup=0.1),
    ),
}


def recipe_for(name: str | Path) -> TrainRecipe:
    """A recipe of ``RECIPES``, or one from a JSON file with the fields of ``TrainRecipe``.

    Raises:
        InputError: no such recipe, or the file is not one.
    """
    if str(name) in RECIPES:
        return RECIPES[str(name)]
    path = Path(name)
    if path.suffix != ".json":
        raise InputError(f"{unknown('recipe', str(name), RECIPES)}; a file ends in .json")
    try:
        text = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read recipe {path}: {one_line(error.strerror or error)}") from error
    return decode(TrainRecipe, loads(text, str(path)), str(path))

"""Training recipes of trackers: a network, how its pairs are drawn, and settings of the run, by name or from a file."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgecv.errors import InputError, one_line
from edgecv.plugins import unknown
from edgecv.schema import decode, encode, loads
from edgecv.training.config import TrainConfig
from edgecv.training.tracking_pairs import PairConfig

__all__ = ["TRACKER_RECIPES", "TrackerRecipe", "tracker_recipe_for"]


@dataclass(frozen=True, slots=True)
class TrackerRecipe:
    """What the training of a tracker needs besides sequences; ``model`` and ``options`` are those of ``create``."""

    model: str
    options: dict[str, Any] = field(default_factory=dict)
    pairs: PairConfig = field(default_factory=PairConfig)
    config: TrainConfig = field(default_factory=lambda: TrainConfig(loss="tracking"))

    def changed(self, settings: Mapping[str, Any]) -> TrackerRecipe:
        """The recipe with other settings of its ``config``; those of its pairs are named ``pairs.NAME``.

        Raises:
            InputError: no such setting, or a value it cannot have.
        """
        own = {key: value for key, value in settings.items() if not key.startswith("pairs.")}
        drawn = {key.removeprefix("pairs."): value for key, value in settings.items() if key not in own}
        config = decode(TrainConfig, {**encode(self.config), **own}, "settings")
        pairs = decode(PairConfig, {**encode(self.pairs), **drawn}, "settings.pairs")
        return dataclasses.replace(self, config=config, pairs=pairs)


# Optimizers, batches and pairs are those of the papers and their published code, with a cosine in place of each one's
# own decay; none of these runs was made here at full length.
_MOBILE = TrainConfig(
    epochs=50,
    batch_size=64,
    optimizer="sgd",
    learning_rate=0.01,
    weight_decay=1e-4,
    warmup_epochs=5.0,
    loss="tracking",
    label_smoothing=0.0,
    ema_decay=0.0,
    clip_norm=10.0,
)
_WIDE = PairConfig(pairs=100_000, shift=64.0, scale=0.18, negatives=0.2)
TRACKER_RECIPES = {
    # Bertinetto et al., 2016, section 4: 50 epochs of 50,000 pairs in batches of 8, from 1e-2 down. Every crop is at
    # the target's own scale: the response must fall at others, because the head compares several.
    "siamfc": TrackerRecipe(
        "siamfc_alexnet",
        pairs=PairConfig(pairs=50_000, scale=0.0),
        config=TrainConfig(
            epochs=50,
            batch_size=8,
            optimizer="sgd",
            learning_rate=1e-2,
            weight_decay=5e-4,
            warmup_epochs=0.0,
            loss="tracking",
            label_smoothing=0.0,
            ema_decay=0.0,
        ),
    ),
    # Li et al., 2019 (arXiv:1812.11703): targets anywhere within 64 pixels, boxes weigh 1.2.
    "siamrpn_mobile": TrackerRecipe(
        "siamrpn_mobile", pairs=_WIDE, config=dataclasses.replace(_MOBILE, epochs=20, box_weight=1.2)
    ),
    # Chen et al., 2020 (arXiv:2003.06761): both parts of the loss weigh the same.
    "nanotrack_v1": TrackerRecipe("nanotrack_v1", pairs=_WIDE, config=_MOBILE),
    "nanotrack_v2": TrackerRecipe("nanotrack_v2", pairs=_WIDE, config=_MOBILE),
}
_BY_MODEL = {recipe.model: recipe for recipe in TRACKER_RECIPES.values()}


def tracker_recipe_for(name: str | Path, model: str | None = None) -> TrackerRecipe:
    """A recipe of ``TRACKER_RECIPES``, one from a JSON file with the fields of ``TrackerRecipe``, or that of a model.

    Args:
        name: of a recipe or a file; empty for the recipe that suits ``model``.
        model: the network to train, where it is not the recipe's own.

    Raises:
        InputError: no such recipe, or the file is not one.
    """
    recipe = _named(name) if str(name) else _suiting(model)
    if model is None or model == recipe.model:
        return recipe
    return dataclasses.replace(recipe, model=model, options={})


def _suiting(model: str | None) -> TrackerRecipe:
    return _BY_MODEL.get(str(model)) or TRACKER_RECIPES["siamfc"]


def _named(name: str | Path) -> TrackerRecipe:
    if str(name) in TRACKER_RECIPES:
        return TRACKER_RECIPES[str(name)]
    path = Path(name)
    if path.suffix != ".json":
        raise InputError(f"{unknown('recipe', str(name), TRACKER_RECIPES)}; a file ends in .json")
    try:
        text = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read recipe {path}: {one_line(error.strerror or error)}") from error
    return decode(TrackerRecipe, loads(text, str(path)), str(path))

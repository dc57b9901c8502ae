"""``edgecv train`` of trackers: sequences instead of labelled images, a recipe of ``TRACKER_RECIPES``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import edgecv
from edgecv.cli.common import key_values, print_json, progress
from edgecv.errors import InputError
from edgecv.pipelines.tracking import open_sequences

__all__ = ["is_tracker_recipe", "train_tracker"]

VALIDATION_PAIRS = 1000
APART = 1 << 20  # added to the seed of validation pairs


def is_tracker_recipe(recipe: str | None, model: str | None) -> bool:
    """Whether ``edgecv train`` with these arguments trains a tracker."""
    from edgecv.models.recipe import TRACKERS
    from edgecv.schema import loads
    from edgecv.training.tracking_recipes import TRACKER_RECIPES

    if recipe and recipe.endswith(".json") and Path(recipe).is_file():
        found = loads(Path(recipe).read_bytes(), recipe)
        return isinstance(found, dict) and "model" in found
    return recipe in TRACKER_RECIPES or (not recipe and model in TRACKERS.names())


def train_tracker(args: argparse.Namespace) -> int:
    """Run ``edgecv train`` with its arguments, of which ``data`` is a folder of sequences or ``synthetic:COUNT``."""
    from edgecv.models.siamese import create_tracker
    from edgecv.models.weights import load_weights
    from edgecv.training.tracking_pairs import TrackingPairs
    from edgecv.training.tracking_recipes import tracker_recipe_for

    if args.size or args.teacher:
        raise InputError(f"--{'size' if args.size else 'teacher'} is for classifiers; a tracker has crops of its own")
    recipe = tracker_recipe_for(args.recipe or "", args.model).changed(_settings(args))
    train_data, val_data = _sequences(args)
    network = create_tracker(recipe.model, **{**recipe.options, **key_values(args.option, "model options")})
    if args.weights:
        load_weights(network, recipe.model, args.weights)
    seed, settings = recipe.config.seed, network.settings
    held = recipe.pairs.plain(min(VALIDATION_PAIRS, max(1, recipe.pairs.pairs // 10)))
    with progress() as report:
        result = edgecv.train(
            network,
            TrackingPairs(train_data, settings, recipe.pairs, seed=seed),
            TrackingPairs(val_data, settings, held, seed=seed + APART),
            recipe.config,
            preprocess=network.preprocess,
            out=args.out,
            progress=report,
        )
    _tell(args, result)
    return 0


def _tell(args: argparse.Namespace, result: Any) -> None:
    checkpoint, scores = args.out / "best.safetensors", result.scores
    if args.json:
        print_json({"scores": scores, "best_epoch": result.best_epoch, "checkpoint": checkpoint})
        return
    found = f"success {scores.success:.4f}, centres {scores.error_px:.1f} pixels off, on {scores.pairs} held-out pairs"
    print(f"validation {found}, epoch {result.best_epoch + 1} of {len(result.history)}")
    print(f"checkpoint: {checkpoint}")


def _settings(args: argparse.Namespace) -> dict[str, Any]:
    """The settings asked for; a short run warms up for a quarter of it at most."""
    settings = key_values(args.settings, "settings")
    epochs = settings.get("epochs")
    if isinstance(epochs, int) and "warmup_epochs" not in settings:
        settings["warmup_epochs"] = min(2.0, epochs / 4)
    return settings


def _sequences(args: argparse.Namespace) -> tuple[Any, Any]:
    from edgecv.training.tracking_pairs import hold_out_sequences

    found = _open(args.data)
    return (found, _open(args.val)) if args.val else hold_out_sequences(found)


def _open(source: str) -> Any:
    name, colon, count = source.partition(":")
    if name != "synthetic" or not colon:
        return open_sequences(source)
    from edgecv.training.synthetic import synthetic_sequences

    if not count.isdigit() or not int(count):
        raise InputError(f"synthetic sequences are asked for as synthetic:COUNT, got {source!r}")
    return synthetic_sequences(int(count))

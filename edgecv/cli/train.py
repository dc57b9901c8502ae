"""``edgecv train``: train a classifier, an embedding, or a tracker."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

import edgecv
from edgecv.cli.common import add_json, key_values, print_json, progress, scores_line
from edgecv.cli.train_tracker import is_tracker_recipe, train_tracker
from edgecv.data import Samples, hold_out, open_samples
from edgecv.errors import InputError
from edgecv.preprocess import Preprocess

EXAMPLE = "edgecv train digits --out runs/digits --option width=0.5 --option stem=small epochs=16"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "data",
        help="'digits', 'cifar10:PATH', or a folder with one sub-folder of images per class; for a tracker a folder of "
        "sequences, as GOT-10k, OTB, VOT or LaSOT have them, or 'synthetic:COUNT'",
    )
    parser.add_argument(
        "settings",
        nargs="*",
        metavar="KEY=VALUE",
        help="fields of edgecv.TrainConfig, such as epochs=16; for a tracker also pairs.NAME of PairConfig",
    )
    parser.add_argument(
        "--model",
        help="an architecture that edgecv models lists (default: mobilenet_v2), or a tracker, such as nanotrack_v2",
    )
    parser.add_argument(
        "--option", action="append", default=[], metavar="KEY=VALUE", help="an option of the architecture"
    )
    parser.add_argument("--weights", help="weights to start from: a file, or 'imagenet'")
    parser.add_argument(
        "--recipe",
        help="digits, cifar10, photos, for a tracker siamfc, siamrpn_mobile, nanotrack_v1 or nanotrack_v2, or a .json "
        "file: settings and preprocessing (default: by the data)",
    )
    parser.add_argument("--size", type=int, help="image side in pixels (default: the recipe's)")
    parser.add_argument("--teacher", type=Path, help="a checkpoint whose answers the network learns too")
    parser.add_argument("--val", help="validation data; by default every tenth training image is held out")
    parser.add_argument("--out", required=True, type=Path, help="the run's folder; an interrupted run goes on")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    if is_tracker_recipe(args.recipe, args.model):
        return train_tracker(args)
    args.model = args.model or "mobilenet_v2"
    train_data, val_data = _data(args)
    options = key_values(args.option, "model options")
    if "num_classes" in options:
        raise InputError("num_classes follows from the data; leave it out")
    from edgecv.training.recipes import recipe_for

    recipe = recipe_for(args.recipe or recipe_name(args.data)).changed(_settings(args))
    if recipe.config.loss == "cross_entropy":
        options["num_classes"] = len(train_data.labels)
    network = edgecv.models.create(args.model, weights=args.weights, **options)
    with progress() as report:
        result = edgecv.train(
            network,
            train_data,
            val_data,
            recipe.config,
            preprocess=resized(recipe.preprocess, args.size) if args.size else recipe.preprocess,
            teacher=edgecv.load_checkpoint(args.teacher) if args.teacher else None,
            out=args.out,
            progress=report,
        )
    checkpoint = args.out / "best.safetensors"
    if args.json:
        print_json({"scores": result.scores, "best_epoch": result.best_epoch, "checkpoint": checkpoint})
        return 0
    scores: Any = result.scores  # of a classifier or an embedding
    print(f"validation {scores_line(scores)}, epoch {result.best_epoch + 1} of {len(result.history)}")
    print(f"checkpoint: {checkpoint}")
    return 0


def resized(preprocess: Preprocess, size: int) -> Preprocess:
    """The same for another size: small images are stretched to it, larger ones cropped from an eighth more."""
    short = None if size < 64 else round(size * 8 / 7)
    return dataclasses.replace(preprocess, size=(size, size), resize=short)


def _data(args: argparse.Namespace) -> tuple[Samples, Samples]:
    train_data = open_samples(args.data, "train")
    if args.val:
        return train_data, open_samples(args.val, "test", train_data.labels)
    return hold_out(train_data, every=10)


def recipe_name(data: str) -> str:
    """The training recipe that suits a data set, by its name on the command line."""
    name = data.partition(":")[0]
    return {"digits": "digits", "mnist": "digits", "fashion_mnist": "cifar10", "cifar10": "cifar10"}.get(name, "photos")


def _settings(args: argparse.Namespace) -> dict[str, Any]:
    """The settings asked for, and where nothing else is said, the loss of an embedding and a short run's warm-up."""
    settings = key_values(args.settings, "settings")
    if args.model == "embedding":
        settings = {"loss": "triplet", "mixup": 0.0, "cutmix": 0.0, **settings}
    epochs = settings.get("epochs")
    if isinstance(epochs, int) and "warmup_epochs" not in settings:
        settings["warmup_epochs"] = min(2.0, epochs / 4)
    return settings

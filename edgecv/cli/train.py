"""``edgecv train``: train a classifier."""

from __future__ import annotations

import argparse
from pathlib import Path

import edgecv
from edgecv.cli.common import add_json, key_values, print_json, progress
from edgecv.data import Samples, hold_out, open_samples
from edgecv.errors import InputError
from edgecv.preprocess import Preprocess
from edgecv.schema import decode

EXAMPLE = "edgecv train digits --out runs/digits --size 32 --option width=0.5 --option stem=small epochs=16"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("data", help="'digits', 'cifar10:PATH', or a folder with one sub-folder of images per class")
    parser.add_argument(
        "settings", nargs="*", metavar="KEY=VALUE", help="fields of edgecv.TrainConfig, such as epochs=16"
    )
    parser.add_argument("--model", default="mobilenet_v2", help="an architecture that edgecv models lists")
    parser.add_argument(
        "--option", action="append", default=[], metavar="KEY=VALUE", help="an option of the architecture"
    )
    parser.add_argument("--size", type=int, default=224, help="image side in pixels (default: 224)")
    parser.add_argument("--val", help="validation data; by default every tenth training image is held out")
    parser.add_argument("--out", required=True, type=Path, help="the run's folder; an interrupted run goes on")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    train_data: Samples = open_samples(args.data, "train")
    if args.val:
        val_data = open_samples(args.val, "test", train_data.labels)
    else:
        train_data, val_data = hold_out(train_data, every=10)
    options = key_values(args.option, "model options")
    if "num_classes" in options:
        raise InputError("num_classes follows from the data; leave it out")
    defaults = {"augment": "digits" if args.data.startswith("digits") else "photos"}
    config = decode(edgecv.TrainConfig, {**defaults, **key_values(args.settings, "settings")}, "settings")
    network = edgecv.models.create(args.model, num_classes=len(train_data.labels), **options)
    with progress() as report:
        result = edgecv.train(
            network, train_data, val_data, config, preprocess=preprocess_for(args.size), out=args.out, progress=report
        )
    if args.json:
        print_json(
            {"accuracy": result.accuracy, "best_epoch": result.best_epoch, "checkpoint": args.out / "best.safetensors"}
        )
        return 0
    low, high = result.accuracy.interval
    print(
        f"validation top-1 {result.accuracy.top1:.4f} (95 % interval {low:.4f} to {high:.4f}, "
        f"{result.accuracy.samples} images), epoch {result.best_epoch + 1} of {len(result.history)}\n"
        f"checkpoint: {args.out / 'best.safetensors'}"
    )
    return 0


def preprocess_for(size: int) -> Preprocess:
    """Small images are stretched to size; larger ones are cropped from a short side an eighth longer, as is usual."""
    if size < 64:
        return Preprocess(size=(size, size), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    return Preprocess(
        size=(size, size), resize=round(size * 8 / 7), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
    )

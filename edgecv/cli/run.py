"""``edgecv run``: classify images."""

from __future__ import annotations

import argparse
from pathlib import Path

from edgecv.cli.common import add_backend, add_json, open_classifier, print_json
from edgecv.images import read_image

EXAMPLE = "edgecv run mybundle cat.jpg dog.png --top 3"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", type=Path, help="a bundle, or a checkpoint (on torch)")
    parser.add_argument("images", nargs="+", type=Path, help="image files")
    parser.add_argument("--top", type=int, default=1, help="guesses per image (default: 1)")
    add_backend(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    frames = [read_image(path) for path in args.images]
    with open_classifier(args.model, args) as classifier:
        answers = [classifier(frame, top=args.top) for frame in frames]
    if args.json:
        print_json([{"image": path, "guesses": guesses} for path, guesses in zip(args.images, answers, strict=True)])
        return 0
    for path, guesses in zip(args.images, answers, strict=True):
        print(f"{path}: " + ", ".join(f"{guess.label} {guess.score:.3f}" for guess in guesses))
    return 0

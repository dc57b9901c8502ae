"""``edgecv run``: classify images, or compare them by an embedding."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgecv.cli.common import add_backend, add_json, open_pipeline, print_json
from edgecv.errors import InputError
from edgecv.images import read_image
from edgecv.pipelines import Classifier, Embedder
from edgecv.pipelines.embedder import cosines, unit
from edgecv.runtimes import Session

EXAMPLE = "edgecv run mybundle cat.jpg dog.png --top 3"

Frame = NDArray[np.uint8]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", type=Path, help="a bundle, or a checkpoint (on torch)")
    parser.add_argument("images", nargs="+", type=Path, help="image files")
    parser.add_argument("--top", type=int, default=1, help="guesses per image (default: 1)")
    add_backend(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    frames = [read_image(path) for path in args.images]
    with open_pipeline(args.model, args) as pipeline:
        if isinstance(pipeline, Session):
            raise InputError(f"{args.model} gives tensors, which say nothing of images: open it with edgecv.load")
        if not isinstance(pipeline, (Classifier, Embedder)):
            raise InputError(f"{args.model} follows targets through frames: use edgecv track")
        found = _guess(pipeline, args, frames) if isinstance(pipeline, Classifier) else _compare(pipeline, args, frames)
    if args.json:
        print_json(found)
        return 0
    for answer in found:
        print(answer)
    return 0


def _guess(classifier: Classifier, args: argparse.Namespace, frames: list[Frame]) -> list[Any]:
    answers = [(path, classifier(frame, top=args.top)) for path, frame in zip(args.images, frames, strict=True)]
    if args.json:
        return [{"image": path, "guesses": guesses} for path, guesses in answers]
    return [f"{path}: " + ", ".join(f"{guess.label} {guess.score:.3f}" for guess in found) for path, found in answers]


def _compare(embedder: Embedder, args: argparse.Namespace, frames: list[Frame]) -> list[Any]:
    """How alike the first image is to each of the others; alone, its vector."""
    units = unit(embedder(frames))
    if args.json:
        vectors = units.astype(np.float32).tolist()
        return [{"image": path, "vector": vector} for path, vector in zip(args.images, vectors, strict=True)]
    if len(frames) == 1:
        raise InputError("give two images or more to compare, or --json for the vector of one")
    likeness = cosines(units[1:], units[0])
    return [f"{path}: {value:.3f} like {args.images[0]}" for path, value in zip(args.images[1:], likeness, strict=True)]

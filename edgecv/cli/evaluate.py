"""``edgecv evaluate``: accuracy, or verification of embeddings, on labelled images."""

from __future__ import annotations

import argparse
from pathlib import Path

from edgecv.cli.common import add_backend, add_json, open_pipeline, print_json, progress, scores_line
from edgecv.data import open_samples
from edgecv.evaluation import evaluate
from edgecv.manifest import Accuracy

EXAMPLE = "edgecv evaluate digits --data digits --backend openvino"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", type=Path, help="a bundle, or a checkpoint (on torch)")
    parser.add_argument(
        "--data", required=True, help="'digits', 'cifar10:PATH', or a folder with one sub-folder of images per class"
    )
    add_backend(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    with open_pipeline(args.model, args) as pipeline:
        samples = open_samples(args.data, "test", getattr(pipeline, "labels", ()))
        with progress() as report:
            scores = evaluate(pipeline, samples, progress=report)
        backend, reason = pipeline.session.backend, pipeline.session.reason
    if args.json:
        kind = "accuracy" if isinstance(scores, Accuracy) else "verification"
        print_json({kind: scores, "backend": backend, "reason": reason})
        return 0
    print(scores_line(scores))
    print(reason)
    return 0

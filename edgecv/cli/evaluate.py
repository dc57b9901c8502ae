"""``edgecv evaluate``: accuracy on labelled images."""

from __future__ import annotations

import argparse
from pathlib import Path

from edgecv.cli.common import add_backend, add_json, open_classifier, print_json, progress
from edgecv.data import open_samples
from edgecv.evaluation import evaluate

EXAMPLE = "edgecv evaluate digits --data digits --backend openvino"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", type=Path, help="a bundle, or a checkpoint (on torch)")
    parser.add_argument(
        "--data", required=True, help="'digits', 'cifar10:PATH', or a folder with one sub-folder of images per class"
    )
    add_backend(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    with open_classifier(args.model, args) as classifier:
        samples = open_samples(args.data, "test", classifier.labels)
        with progress() as report:
            accuracy = evaluate(classifier, samples, progress=report)
        reason = classifier.session.reason
    if args.json:
        print_json({"accuracy": accuracy, "backend": classifier.session.backend, "reason": reason})
        return 0
    low, high = accuracy.interval
    print(f"top-1 {accuracy.top1:.4f} (95 % interval {low:.4f} to {high:.4f}), top-5 {accuracy.top5:.4f}")
    print(f"{accuracy.samples} images, {reason}")
    return 0

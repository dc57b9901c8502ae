"""``edgecv cluster``: a checkpoint whose weights have few different values, small where it is stored packed."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import edgecv
from edgecv.cli.common import add_json, key_values, print_json, progress, scores_line, table
from edgecv.data import Samples, open_frames, open_samples
from edgecv.errors import InputError

if TYPE_CHECKING:
    from edgecv.compression.clustering import LayerPalette

EXAMPLE = "edgecv cluster runs/digits/best.safetensors --bits 5 --samples digits --data digits --out small.safetensors"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", type=Path, help="a .safetensors checkpoint of edgecv, in float")
    parser.add_argument("--out", type=Path, required=True, help="the .safetensors checkpoint to write")
    parser.add_argument("--bits", type=int, default=6, help="each layer has 2^BITS different weights (default: 6)")
    parser.add_argument(
        "--layer-bits", action="append", default=[], metavar="NAME=BITS",
        help="other bits for a layer; 16 rounds to bfloat16, 0 leaves it",
    )  # fmt: skip
    parser.add_argument("--sparsity", type=float, default=0.0, help="share of weights set to zero first (default: 0)")
    parser.add_argument("--samples", metavar="IMAGES", help="real images that answers are kept on, without labels")
    parser.add_argument("--limit", type=int, default=50, help="how many of them, spread evenly (default: 50)")
    parser.add_argument("--data", help="labelled images to score both networks on, as for edgecv evaluate")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    if args.out.suffix != ".safetensors":
        raise InputError(f"--out is a .safetensors file, got {args.out}")
    from edgecv.compression.clustering import palettes_of
    from edgecv.models.checkpoint import read_checkpoint

    config = edgecv.ClusterConfig(args.bits, key_values(args.layer_bits, "--layer-bits"), args.sparsity)
    network, card = read_checkpoint(args.model)
    if (args.samples or args.data) and card.preprocess is None:
        raise InputError(f"{args.model} does not say how images are preprocessed: save it with preprocess=")
    frames = open_frames(args.samples, args.limit) if args.samples else None
    data = open_samples(args.data, "test", card.labels) if args.data else None
    with progress() as report:
        clustered = edgecv.cluster(network, frames, config, preprocess=card.preprocess, progress=report)
        scores = [_scores(item, card, data) for item in (network, clustered)] if data else []
    edgecv.save_checkpoint(
        clustered, args.out, preprocess=card.preprocess, labels=card.labels, dataset=card.dataset,
        accuracy=scores[1] if scores and card.recipe.architecture != "embedding" else None,
    )  # fmt: skip
    layers = palettes_of(clustered)
    if args.json:
        named = dict(zip(("before", "clustered"), scores, strict=False))
        print_json({"checkpoint": args.out, "layers": layers, "scores": named})
    else:
        _print(layers, scores, args.out)
    return 0


def _scores(network: Any, card: Any, data: Samples) -> Any:
    from edgecv.pipelines import Classifier, Embedder
    from edgecv.runtimes.pt import TorchSession

    with TorchSession.from_network(network, card.preprocess) as session:
        if card.recipe.architecture == "embedding":
            return edgecv.evaluate(Embedder(session, card.preprocess), data)
        return edgecv.evaluate(Classifier(session, card.preprocess, card.labels), data)


def _print(layers: Sequence[LayerPalette], scores: Sequence[Any], out: Path) -> None:
    rows = [(item.layer, item.weights, item.zeros, item.values, f"{item.coded_bytes / 1e3:.1f}") for item in layers]
    print(table(rows, ("layer", "weights", "zeros", "values", "kB, coded")))
    coded, weights = sum(item.coded_bytes for item in layers), sum(item.weights for item in layers)
    print(f"all weights: {4e-6 * weights:.3f} MB as floats, {coded / 1e6:.3f} MB coded; biases are left as they are")
    for name, score in zip(("before", "clustered"), scores, strict=False):
        print(f"{name}: {scores_line(score)}")
    print(f"checkpoint: {out}; store it small with edgecv convert --pack")

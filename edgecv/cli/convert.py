"""``edgecv convert``: from a checkpoint to a bundle."""

from __future__ import annotations

import argparse
from pathlib import Path

import edgecv
from edgecv.cli.common import add_json, add_samples, print_json, progress, table
from edgecv.data import open_frames
from edgecv.errors import InputError
from edgecv.files import refuse_occupied
from edgecv.manifest import Parity

EXAMPLE = "edgecv convert runs/digits/best.safetensors --samples digits --out digits"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", type=Path, help="a .safetensors file of edgecv.train or edgecv.save_checkpoint")
    parser.add_argument("--out", required=True, type=Path, help="the bundle: a folder that does not exist, or is empty")
    parser.add_argument(
        "--backends", default="onnxruntime,openvino", help="comma-separated (default: onnxruntime,openvino)"
    )
    parser.add_argument("--batch", type=int, help="fix the batch size; by default it is free")
    parser.add_argument("--opset", type=int, default=18, help="ONNX opset 18 to 20 (default: 18)")
    parser.add_argument("--name", help="the bundle's name (default: the output folder's)")
    parser.add_argument("--no-parity", action="store_true", help="write the bundle without comparing anything")
    add_samples(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    if args.checkpoint.suffix != ".safetensors":
        raise InputError(f"convert takes a .safetensors checkpoint, got {args.checkpoint}")
    if not args.samples and not args.no_parity:
        raise InputError("give --samples IMAGES to compare the variants with the network on, or --no-parity")
    refuse_occupied(args.out)
    samples = open_frames(args.samples, args.limit) if args.samples else None
    from edgecv.models.checkpoint import read_checkpoint

    network, card = read_checkpoint(args.checkpoint)
    if card.preprocess is None:
        raise InputError(f"{args.checkpoint} does not say how images are preprocessed: save it with preprocess=")
    options = edgecv.ConvertOptions(
        name=args.name,
        onnx=edgecv.OnnxOptions(args.opset, args.batch),
        dataset=card.dataset,
        accuracy=card.accuracy,
        parity=not args.no_parity,
    )
    with progress() as report:
        bundle = edgecv.convert(
            network,
            args.out,
            preprocess=card.preprocess,
            labels=card.labels,
            backends=[name.strip() for name in args.backends.split(",")],
            samples=samples,
            options=options,
            progress=report,
        )
    variants = bundle.manifest.variants
    if args.json:
        print_json({"bundle": bundle.path, "sha256": bundle.sha256, "variants": variants})
        return 0
    rows = [(name, *(_figures(variant.parity) if variant.parity else "---")) for name, variant in variants.items()]
    print(table(rows, ("variant", "largest difference", "cosine", "top-1 agreement")))
    print(f"bundle: {bundle.path} (sha256 {bundle.sha256[:12]})")
    return 0


def _figures(parity: Parity) -> tuple[str, str, str]:
    top1 = "-" if parity.top1_agreement is None else f"{parity.top1_agreement:.1%}"
    return f"{parity.max_abs:.3g}", f"{parity.cosine:.7f}", top1

"""``edgecv convert``: from a checkpoint or an ONNX file to a bundle."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import edgecv
from edgecv.cli.common import add_json, add_samples, print_json, progress, table
from edgecv.cli.convert_graph import convert_tensors, is_graph
from edgecv.cli.convert_tracker import convert_nanotrack, convert_siamese, is_tracker
from edgecv.cli.train import resized
from edgecv.data import open_frames
from edgecv.errors import InputError, one_line
from edgecv.files import refuse_occupied
from edgecv.manifest import Parity
from edgecv.preprocess import Preprocess
from edgecv.schema import decode, loads

EXAMPLE = "edgecv convert runs/digits/best.safetensors --samples digits --out digits"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", type=Path, help="a .safetensors checkpoint of edgecv, or an .onnx file of any network")
    parser.add_argument("head", nargs="?", type=Path, help="with --from nanotrack: the head; model is the backbone")
    parser.add_argument("--from", dest="origin", choices=("nanotrack",), help="a published tracker of two .onnx files")
    parser.add_argument(
        "--search", type=int, metavar="PIXELS",
        help="with --from nanotrack: side of the search crop (default: 255, as published); 191 takes two thirds "
        "of the time, for targets that move by less than their own size from frame to frame",
    )  # fmt: skip
    parser.add_argument("--out", required=True, type=Path, help="the bundle: a folder that does not exist, or is empty")
    parser.add_argument(
        "--backends",
        default="onnxruntime,openvino",
        help="of onnxruntime, onnxruntime_mobile, openvino, tensorrt, tensorrt_rtx (default: onnxruntime,openvino)",
    )
    parser.add_argument(
        "--precisions",
        help="comma-separated: fp32, fp16, int8; the first is what a backend picks (default: what there is)",
    )
    parser.add_argument("--quantized", type=Path, help="what edgecv quantize made of the checkpoint: int8 beside fp32")
    parser.add_argument("--batch", type=int, help="fix the batch size; by default it is free")
    parser.add_argument("--opset", type=int, default=18, help="ONNX opset 18 to 20 (default: 18); a file keeps its own")
    parser.add_argument("--licence", metavar="SPDX", help="of the weights, such as Apache-2.0, for the manifest")
    parser.add_argument("--name", help="the bundle's name (default: the output folder's)")
    parser.add_argument(
        "--pack", action="store_true", help="store the graphs packed where that saves a quarter at least"
    )
    parser.add_argument("--no-parity", action="store_true", help="write the bundle without comparing anything")
    files = parser.add_argument_group("for an .onnx file")
    files.add_argument(
        "--preprocess", help="what its images went through: digits, cifar10, photos or a .json file of a Preprocess"
    )
    files.add_argument("--size", type=int, help="image side in pixels (default: that of --preprocess)")
    files.add_argument("--labels", type=Path, help="a text file with one class name per line")
    files.add_argument(
        "--task",
        choices=("classification", "embedding", "tensors"),
        help="what it gives (default: class scores; of several inputs or outputs: tensors, which leaves them as they "
        "are, and --samples is a folder of .npz files, each with an array for every input)",
    )
    add_samples(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    if args.origin == "nanotrack":
        return convert_nanotrack(args)
    if args.head is not None:
        raise InputError(f"convert takes one file, or two with --from nanotrack; got {args.model} and {args.head}")
    if args.search is not None:
        raise InputError("--search is for --from nanotrack: any other tracker is trained for the crop that it has")
    if args.model.suffix not in (".safetensors", ".onnx"):
        raise InputError(f"convert takes a .safetensors checkpoint or an .onnx file, got {args.model}")
    checkpoint = _read(args.model) if args.model.suffix == ".safetensors" else None
    if checkpoint and is_tracker(checkpoint[0]):
        return convert_siamese(args, checkpoint[0], checkpoint[1].dataset)
    if checkpoint is None and is_graph(args):
        return convert_tensors(args)
    if not args.samples and not args.no_parity:
        raise InputError("give --samples IMAGES to compare the variants with the network on, or --no-parity")
    refuse_occupied(args.out)
    samples = open_frames(args.samples, args.limit) if args.samples else None
    network, preprocess, labels, card = _checkpoint(args, *checkpoint) if checkpoint else _file(args)
    options = edgecv.ConvertOptions(
        name=args.name,
        onnx=edgecv.OnnxOptions(args.opset, args.batch),
        licence=args.licence,
        dataset=card.dataset if card else None,
        accuracy=card.accuracy if card else None,
        task=args.task,
        precisions=tuple(_listed(args.precisions)) if args.precisions else (),
        parity=not args.no_parity,
        pack=args.pack,
    )
    with progress() as report:
        bundle = edgecv.convert(
            network,
            args.out,
            preprocess=preprocess,
            labels=labels,
            quantized=edgecv.load_checkpoint(args.quantized) if args.quantized else None,
            backends=_listed(args.backends),
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


Inputs = tuple[Any, Preprocess, tuple[str, ...], Any]


def _read(path: Path) -> tuple[Any, Any]:
    from edgecv.models.checkpoint import read_checkpoint

    return read_checkpoint(path)


def _checkpoint(args: argparse.Namespace, network: Any, card: Any) -> Inputs:
    if args.preprocess or args.size or args.labels or args.task:
        raise InputError("--preprocess, --size, --labels and --task are for .onnx files; a checkpoint says them itself")
    if card.preprocess is None:
        raise InputError(f"{args.model} does not say how images are preprocessed: save it with preprocess=")
    return network, card.preprocess, card.labels, card


def _file(args: argparse.Namespace) -> Inputs:
    if not args.preprocess:
        raise InputError(f"{args.model} does not say how images are preprocessed: give --preprocess, or --task tensors")
    labels: tuple[str, ...] = ()
    if args.labels:
        try:
            labels = tuple(args.labels.read_text(encoding="utf-8").splitlines())
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"cannot read labels {args.labels}: {one_line(error)}") from error
    preprocess = _preprocess(args.preprocess)
    return args.model, resized(preprocess, args.size) if args.size else preprocess, labels, None


def _preprocess(name: str) -> Preprocess:
    if not name.endswith(".json"):
        from edgecv.training.recipes import recipe_for

        return recipe_for(name).preprocess
    try:
        text = Path(name).read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {name}: {one_line(error.strerror or error)}") from error
    return decode(Preprocess, loads(text, name), name)


def _listed(names: str) -> list[str]:
    return [name.strip() for name in names.split(",")]


def _figures(parity: Parity) -> tuple[str, str, str]:
    top1 = "-" if parity.top1_agreement is None else f"{parity.top1_agreement:.1%}"
    return f"{parity.max_abs:.3g}", f"{parity.cosine:.7f}", top1

"""``edgecv convert`` of ONNX files with several inputs or outputs, of which nothing is known but what they say."""

from __future__ import annotations

import argparse

from edgecv.bundle import Bundle
from edgecv.cli.common import print_json, progress, table
from edgecv.errors import InputError
from edgecv.files import refuse_occupied
from edgecv.manifest import TENSORS
from edgecv.pipelines.tensors import open_tensors

__all__ = ["convert_tensors", "is_graph"]

NOT_FOR_TENSORS = ("preprocess", "size", "labels", "quantized")


def is_graph(args: argparse.Namespace) -> bool:
    """Whether an ``.onnx`` file becomes a bundle of tensors: as asked for, or for its several inputs or outputs."""
    from edgecv.converters.onnx_check import initializers
    from edgecv.converters.sources import read_onnx

    if args.task or args.preprocess:
        return bool(args.task == TENSORS)
    model = read_onnx(args.model)
    constant = initializers(model)
    inputs = [value.name for value in model.graph.input if value.name not in constant]
    return max(len(inputs), len(model.graph.output)) > 1


def convert_tensors(args: argparse.Namespace) -> int:
    """Run ``edgecv convert`` with its arguments on an ``.onnx`` file, which keeps its inputs and outputs."""
    from edgecv.converters.graphs import GraphOptions, convert_graph
    from edgecv.converters.onnx_from_torch import OnnxOptions

    if wrong := [name for name in NOT_FOR_TENSORS if getattr(args, name) is not None]:
        raise InputError(f"--{wrong[0]} is not for --task tensors, which keeps a file's inputs and outputs as they are")
    if not args.samples and not args.no_parity:
        raise InputError(
            "give --samples FOLDER of .npz files, an array for each input in each, to compare the variants with the "
            "file on, or --no-parity"
        )
    refuse_occupied(args.out)
    precisions = args.precisions or "fp32"
    options = GraphOptions(
        name=args.name,
        onnx=OnnxOptions(args.opset, args.batch),
        precisions=tuple(name.strip() for name in precisions.split(",")),
        licence=args.licence,
        parity=not args.no_parity,
        pack=args.pack,
    )
    backends = [name.strip() for name in args.backends.split(",")]
    samples = open_tensors(args.samples, args.limit) if args.samples else None
    with progress() as report:
        bundle = convert_graph(
            args.model, args.out, backends=backends, samples=samples, options=options, progress=report
        )
    _tell(args, bundle)
    return 0


def _tell(args: argparse.Namespace, bundle: Bundle) -> None:
    variants = bundle.manifest.variants
    if args.json:
        print_json({"bundle": bundle.path, "sha256": bundle.sha256, "variants": variants})
        return
    figures = {name: item.parity for name, item in variants.items()}
    rows = [(name, *((f"{x.max_abs:.3g}", f"{x.cosine:.7f}") if x else "--")) for name, x in figures.items()]
    print(table(rows, ("variant", "largest difference", "cosine")))
    print(f"bundle: {bundle.path} (sha256 {bundle.sha256[:12]})")

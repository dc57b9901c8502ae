"""``edgecv convert --from nanotrack``: from the two files that NanoTrack is published as to a bundle."""

from __future__ import annotations

import argparse

from edgecv.cli.common import print_json, progress, table
from edgecv.errors import InputError
from edgecv.files import refuse_occupied
from edgecv.pipelines.tracking import open_sequences

__all__ = ["convert_nanotrack"]

NOT_FOR_TRACKERS = ("batch", "preprocess", "quantized", "size", "labels", "task")


def convert_nanotrack(args: argparse.Namespace) -> int:
    """Run ``edgecv convert`` with its arguments, of which ``model`` is the backbone and ``head`` the head."""
    from edgecv.converters.onnx_from_torch import OnnxOptions
    from edgecv.converters.torch_from_nanotrack import torch_from_nanotrack
    from edgecv.converters.trackers import TrackerOptions, convert_tracker

    if args.head is None:
        raise InputError("NanoTrack is two files: edgecv convert --from nanotrack backbone.onnx head.onnx --out DIR")
    if wrong := [name for name in NOT_FOR_TRACKERS if getattr(args, name) is not None]:
        raise InputError(f"--{wrong[0]} is not for trackers: their crops, batch and answers are fixed by the network")
    if not args.samples and not args.no_parity:
        raise InputError("give --samples SEQUENCES to compare the variants with the network on, or --no-parity")
    refuse_occupied(args.out)
    sequences = open_sequences(args.samples) if args.samples else None
    options = TrackerOptions(
        name=args.name,
        onnx=OnnxOptions(args.opset),
        precisions=tuple(name.strip() for name in (args.precisions or "fp32").split(",")),
        parity=not args.no_parity,
        limit=args.limit,
    )
    network = torch_from_nanotrack(args.model, args.head)
    backends = [name.strip() for name in args.backends.split(",")]
    with progress() as report:
        bundle = convert_tracker(
            network, args.out, backends=backends, samples=sequences, options=options, progress=report
        )
    variants = bundle.manifest.variants
    if args.json:
        print_json({"bundle": bundle.path, "sha256": bundle.sha256, "variants": variants})
        return 0
    rows = []
    for name, variant in variants.items():
        parity = variant.parity
        figures = (f"{parity.max_abs:.3g}", f"{parity.cosine:.7f}", f"{parity.mean_iou:.4f}") if parity else "---"
        rows.append((name, *figures))
    print(table(rows, ("variant", "largest difference", "cosine", "mean IoU")))
    print(f"bundle: {bundle.path} (sha256 {bundle.sha256[:12]})")
    return 0

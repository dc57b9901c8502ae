"""``edgecv convert`` of trackers: of a checkpoint, and of the two files that NanoTrack is published as."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from edgecv.bundle import Bundle
from edgecv.cli.common import print_json, progress, table
from edgecv.errors import InputError
from edgecv.files import refuse_occupied
from edgecv.pipelines.tracking import TrackSequence, open_sequences
from edgecv.progress import Progress

if TYPE_CHECKING:
    from edgecv.compression.trackers import QuantizedTracker
    from edgecv.models.siamese import Siamese

__all__ = ["convert_nanotrack", "convert_siamese", "is_tracker"]

NOT_FOR_TRACKERS = ("batch", "preprocess", "size", "labels", "task")


def convert_nanotrack(args: argparse.Namespace) -> int:
    """Run ``edgecv convert`` with its arguments, of which ``model`` is the backbone and ``head`` the head."""
    from edgecv.converters.torch_from_nanotrack import torch_from_nanotrack

    if args.head is None:
        raise InputError("NanoTrack is two files: edgecv convert --from nanotrack backbone.onnx head.onnx --out DIR")
    _check(args)
    options = {} if args.search is None else {"search": args.search}
    return convert_siamese(args, torch_from_nanotrack(args.model, args.head, **options))


def is_tracker(network: object) -> bool:
    """Whether a checkpoint's network is a tracker."""
    from edgecv.models.siamese import Siamese

    return isinstance(network, Siamese)


def convert_siamese(args: argparse.Namespace, network: Siamese, dataset: str | None = None) -> int:
    """Run ``edgecv convert`` with its arguments on a network, trained on ``dataset``.

    Where int8 is asked for and there is no quantized checkpoint, the network is quantized on the samples.
    """
    from edgecv.converters.onnx_from_torch import OnnxOptions
    from edgecv.converters.trackers import TrackerOptions, convert_tracker

    _check(args)
    sequences = open_sequences(args.samples) if args.samples else None
    options = TrackerOptions(
        name=args.name,
        onnx=OnnxOptions(args.opset),
        dataset=dataset,
        precisions=tuple(name.strip() for name in args.precisions.split(",")) if args.precisions else (),
        parity=not args.no_parity,
        limit=args.limit,
        pack=args.pack,
    )
    backends = [name.strip() for name in args.backends.split(",")]
    with progress() as report:
        quantized = _quantized(args, network, options.precisions, sequences, report)
        bundle = convert_tracker(
            network, args.out, quantized=quantized,
            backends=backends, samples=sequences, options=options, progress=report,
        )  # fmt: skip
    _tell(args, bundle)
    return 0


def _quantized(
    args: argparse.Namespace,
    network: Siamese,
    precisions: Sequence[str],
    sequences: Sequence[TrackSequence] | None,
    report: Progress,
) -> QuantizedTracker | None:
    from edgecv.compression.trackers import QuantizedTracker, quantize_tracker
    from edgecv.models.checkpoint import load_checkpoint

    if args.quantized:
        found = load_checkpoint(args.quantized)
        if not isinstance(found, QuantizedTracker):
            raise InputError(f"--quantized {args.quantized} is no quantized tracker")
        return found
    if "int8" not in precisions or isinstance(network, QuantizedTracker):
        return None
    if sequences is None:
        raise InputError("int8 is calibrated on real frames: give --samples SEQUENCES, or a tracker with --quantized")
    return quantize_tracker(network, sequences, progress=report)


def _check(args: argparse.Namespace) -> None:
    if wrong := [name for name in NOT_FOR_TRACKERS if getattr(args, name) is not None]:
        raise InputError(f"--{wrong[0]} is not for trackers: their crops, batch and answers are fixed by the network")
    if not args.samples and not args.no_parity:
        raise InputError("give --samples SEQUENCES to compare the variants with the network on, or --no-parity")
    refuse_occupied(args.out)


def _tell(args: argparse.Namespace, bundle: Bundle) -> None:
    variants = bundle.manifest.variants
    if args.json:
        print_json({"bundle": bundle.path, "sha256": bundle.sha256, "variants": variants})
        return
    rows = []
    for name, variant in variants.items():
        parity = variant.parity
        figures = (f"{parity.max_abs:.3g}", f"{parity.cosine:.7f}", f"{parity.mean_iou:.4f}") if parity else "---"
        rows.append((name, *figures))
    print(table(rows, ("variant", "largest difference", "cosine", "mean IoU")))
    for name, variant in variants.items():
        if variant.slower_than:
            print(f"{name} is no faster than {variant.slower_than} on this machine: auto takes the latter")
    print(f"bundle: {bundle.path} (sha256 {bundle.sha256[:12]})")

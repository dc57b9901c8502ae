"""``edgecv verify`` of trackers: every variant's maps and boxes, on crops of annotated sequences."""

from __future__ import annotations

import argparse
from pathlib import Path

from edgecv.bundle import Bundle
from edgecv.cli.common import progress
from edgecv.errors import InputError
from edgecv.parity import Verification
from edgecv.pipelines.tracking import Tracker, open_sequences
from edgecv.tracker_parity import verify_tracker

__all__ = ["verified"]


def verified(bundle: Bundle, args: argparse.Namespace) -> Verification:
    """What ``edgecv verify`` with its arguments finds in a tracker's bundle.

    Raises:
        InputError: an argument is not for trackers, or samples are missing.
    """
    if args.bisect:
        raise InputError(
            "--bisect cuts a bundle's one graph into parts, a tracker has two, template and search: without --bisect, "
            "verify says which variants differ; edgecv.converters.bisecting.bisect names the node of one ONNX graph"
        )
    if not args.samples:
        raise InputError(
            f"every file of {bundle.path} is intact; give --samples SEQUENCES to compare the variants' maps and boxes"
        )
    sequences = open_sequences(args.samples)
    reference = _network(args.against, args.threads).sessions if args.against else None
    with progress() as report:
        return verify_tracker(
            bundle, samples=sequences, reference=reference, limit=args.limit, threads=args.threads, progress=report
        )


def _network(path: Path, threads: int | None) -> Tracker:
    """A checkpoint's tracker, on torch."""
    from edgecv.models.checkpoint import load_checkpoint
    from edgecv.models.siamese import Siamese
    from edgecv.models.siamese.running import tracker_of

    network = load_checkpoint(path)
    if not isinstance(network, Siamese):
        raise InputError(f"{path} is no tracker: give the checkpoint that the bundle was made from")
    return tracker_of(network, threads)

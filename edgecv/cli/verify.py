"""``edgecv verify``: a bundle against itself, or against the network."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import edgecv
from edgecv.bundle import Bundle
from edgecv.cli.common import add_json, add_samples, print_json, progress, table
from edgecv.cli.verify_tracker import verified
from edgecv.data import Frame, open_frames
from edgecv.errors import InputError
from edgecv.manifest import TENSORS, Parity
from edgecv.parity import Verification
from edgecv.pipelines.tensors import open_tensors
from edgecv.preprocess import Preprocess
from edgecv.runtimes import Session
from edgecv.schema import encode
from edgecv.tracker_parity import TASK

EXAMPLE = "edgecv verify digits --samples digits --against runs/digits/best.safetensors"
AGREES = "no node differs by more than the tolerance: what differs is not in the graph, or adds up within it"
HEADER = ("variant", "verdict", "largest difference", "allowed", "mean", "PSNR dB", "cosine", "same decision")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", type=Path)
    parser.add_argument(
        "--against", type=Path, help="the checkpoint the bundle was made from; by default its own fp32 variant"
    )
    parser.add_argument(
        "--bisect", action="store_true", help="name the first node at which each variant that differs parts"
    )
    parser.add_argument("--variant", help="with --bisect: this one, whether it differs or not")
    parser.add_argument("--tolerance", type=float, help="with --bisect: of a tensor, as a share of its spread")
    parser.add_argument("--threads", type=int, help="CPU threads per inference (default: the runtime's choice)")
    add_samples(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    bundle = Bundle.load(args.bundle)
    if not args.bisect and (args.variant or args.tolerance):
        raise InputError("--variant and --tolerance go with --bisect")
    if bundle.manifest.task == TASK:
        return _tell(args, verified(bundle, args), "targets")
    if not args.samples:
        raise InputError(
            f"every file of {args.bundle} is intact; give --samples IMAGES to compare the variants' answers"
        )
    tensors = bundle.manifest.task == TENSORS
    if tensors and args.against:
        raise InputError(f"--against is for bundles of images, {args.bundle} takes tensors: leave it out")
    frames: Any = (open_tensors if tensors else open_frames)(args.samples, args.limit)
    if args.bisect and args.variant:
        return _bisect(bundle, [args.variant], frames, args)
    reference, preprocess = _network(args.against, bundle) if args.against else (None, None)
    with progress() as report:
        found = edgecv.verify(
            bundle.path,
            samples=frames,
            reference=reference,
            reference_preprocess=preprocess,
            threads=args.threads,
            progress=report,
        )
    apart = [name for name, gate in found.gates.items() if not gate.ok]
    if args.json and args.bisect:
        return _bisect(bundle, apart, frames, args)
    status = _tell(args, found, "samples" if tensors else "images")
    if args.bisect:
        _bisect(bundle, apart, frames, args)
    return status


def _tell(args: argparse.Namespace, found: Verification, samples: str) -> int:
    """Print what was found in so many of what the samples are; 1 where a variant differs."""
    if args.json:
        print_json({"ok": found.ok, **encode(found)})
        return 0 if found.ok else 1
    rows = [(name, "agrees" if gate.ok else "DIFFERS", *_figures(gate.parity)) for name, gate in found.gates.items()]
    rows += [(name, "not run", *"------") for name in found.skipped]
    print(f"reference: {args.against or found.reference}, {found.samples} {samples}")
    print(table(rows, HEADER))
    for name, gate in found.gates.items():
        for line in (*gate.failures, *([gate.cause] if gate.cause else [])):
            print(f"{name}: {line}")
    for name, reason in found.skipped.items():
        print(f"{name}: {reason}")
    return 0 if found.ok else 1


def _bisect(bundle: Bundle, names: list[str], frames: Sequence[Frame], args: argparse.Namespace) -> int:
    """Print where each variant parts from its reference; 1 where one does."""
    from edgecv.converters.bisecting_bundles import bisect_variant

    found = {
        name: bisect_variant(
            bundle, name, frames, checkpoint=args.against, tolerance=args.tolerance, threads=args.threads
        )
        for name in names
    }
    if args.json:
        print_json({name: encode(item) for name, item in found.items()})
    else:
        for name, item in found.items():
            print(f"{name}: {item or AGREES}")
    return 1 if any(found.values()) else 0


def _network(path: Path, bundle: Bundle) -> tuple[Session, Preprocess]:
    """A checkpoint's network behind the bundle's output name, and how its frames are prepared."""
    from edgecv.models.checkpoint import read_checkpoint
    from edgecv.runtimes.pt import TorchSession

    network, card = read_checkpoint(path)
    if card.preprocess is None:
        raise InputError(f"{path} does not say how images are preprocessed: save it with preprocess=")
    output = next(iter(bundle.manifest.graphs.values())).outputs[0].name
    return TorchSession.from_network(network, card.preprocess, output=output), card.preprocess


def _figures(parity: Parity) -> tuple[str, ...]:
    psnr = "-" if parity.psnr_db is None else f"{parity.psnr_db:.1f}"
    largest = (f"{value:.3g}" for value in (parity.max_abs, parity.tolerance, parity.mean_abs))
    return (*largest, psnr, f"{parity.cosine:.7f}", _decision(parity))


def _decision(parity: Parity) -> str:
    """The task's own figure: how often the decision is the same."""
    if parity.top1_agreement is not None:
        low, high = parity.top1_interval or (0.0, 1.0)
        top5 = "" if parity.top5_agreement is None else f", top-5 {parity.top5_agreement:.1%}"
        return f"top-1 {parity.top1_agreement:.1%} ({low:.1%} to {high:.1%}){top5}"
    if parity.rank1_agreement is not None:
        return f"nearest neighbour {parity.rank1_agreement:.1%}"
    return "-" if parity.mean_iou is None else f"mean IoU {parity.mean_iou:.3f}"

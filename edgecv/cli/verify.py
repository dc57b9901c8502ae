"""``edgecv verify``: a bundle against itself, or against the network."""

from __future__ import annotations

import argparse
from pathlib import Path

import edgecv
from edgecv.cli.common import add_json, add_samples, print_json, progress, table
from edgecv.data import open_frames
from edgecv.errors import InputError
from edgecv.runtimes import open_session

EXAMPLE = "edgecv verify digits --samples digits --against runs/digits/best.safetensors"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", type=Path)
    parser.add_argument(
        "--against", type=Path, help="the checkpoint the bundle was made from; by default its own fp32 variant"
    )
    parser.add_argument("--threads", type=int, help="CPU threads per inference (default: the runtime's choice)")
    add_samples(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    edgecv.Bundle.load(args.bundle)
    if not args.samples:
        raise InputError(
            f"every file of {args.bundle} is intact; give --samples IMAGES to compare the variants' answers"
        )
    frames = open_frames(args.samples, args.limit)
    reference = open_session(args.against, backend="torch") if args.against else None
    with progress() as report:
        found = edgecv.verify(args.bundle, samples=frames, reference=reference, threads=args.threads, progress=report)
    if args.json:
        print_json({"ok": found.ok, **_as_dict(found)})
    else:
        rows = [
            (
                name,
                "agrees" if g.ok else "DIFFERS",
                f"{g.parity.max_abs:.3g}",
                f"{g.parity.tolerance:.3g}",
                "; ".join(g.failures),
            )
            for name, g in found.gates.items()
        ]
        rows += [(name, "not run", "-", "-", reason) for name, reason in found.skipped.items()]
        print(f"reference: {args.against or found.reference}, {found.samples} images")
        print(table(rows, ("variant", "verdict", "largest difference", "allowed", "")))
    return 0 if found.ok else 1


def _as_dict(found: object) -> dict[str, object]:
    from edgecv.schema import encode

    result: dict[str, object] = encode(found)
    return result

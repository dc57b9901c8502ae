"""``edgecv models``: the architectures."""

from __future__ import annotations

import argparse

from edgecv.cli.common import add_json, print_json, table
from edgecv.schema import encode

EXAMPLE = "edgecv models --size 224"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--size", type=int, help="image side in pixels that MACs are counted at (default: 224, for CIFAR networks 32)"
    )
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    from edgecv.errors import InputError
    from edgecv.models import count, create, names, native_size

    if args.size is not None and not 32 <= args.size <= 4096:
        raise InputError(f"--size is from 32 to 4096 pixels, got {args.size}")
    sizes = {name: (args.size, args.size) if args.size else native_size(name) for name in names()}
    counts = {name: count(create(name), size) for name, size in sizes.items()}
    if args.json:
        print_json({"models": {name: {"size": sizes[name], **encode(counts[name])} for name in counts}})
        return 0
    rows = [(name, f"{c.parameters:,}", f"{c.macs / 1e6:,.1f}", sizes[name][0]) for name, c in counts.items()]
    print(table(rows, ("model", "parameters", "MMACs", "at pixels")))
    return 0

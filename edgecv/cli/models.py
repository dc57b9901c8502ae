"""``edgecv models``: the architectures."""

from __future__ import annotations

import argparse

from edgecv.cli.common import add_json, print_json, table

EXAMPLE = "edgecv models --size 224"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--size", type=int, default=224, help="image side in pixels that MACs are counted at (default: 224)"
    )
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    from edgecv.errors import InputError
    from edgecv.models import count, create, names

    if not 32 <= args.size <= 4096:
        raise InputError(f"--size is from 32 to 4096 pixels, got {args.size}")
    counts = {name: count(create(name), (args.size, args.size)) for name in names()}
    if args.json:
        print_json({"size": args.size, "models": counts})
        return 0
    rows = [(name, f"{c.parameters:,}", f"{c.macs / 1e6:,.1f}") for name, c in counts.items()]
    print(table(rows, ("model", "parameters", f"MMACs at {args.size}")))
    return 0

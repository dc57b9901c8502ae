"""``edgecv pack``: a copy of a bundle in fewer bytes, which runs as before; and back again."""

from __future__ import annotations

import argparse
from pathlib import Path

import edgecv
from edgecv.bundle import MANIFEST, Bundle
from edgecv.cli.common import add_json, print_json, table

EXAMPLE = "edgecv pack digits --out digits-small"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", type=Path, help="the bundle to copy")
    parser.add_argument("--out", required=True, type=Path, help="a folder that does not exist, or is empty")
    parser.add_argument("--undo", action="store_true", help="write every file as it was before it was packed")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    before = Bundle.load(args.bundle)
    if args.undo:
        from edgecv.converters.packing import unpack_bundle

        after = unpack_bundle(before, args.out)
    else:
        after = edgecv.pack(before, args.out)
    sizes = _bytes(before), _bytes(after)
    if args.json:
        print_json({"bundle": after.path, "sha256": after.sha256, "bytes_before": sizes[0], "bytes_after": sizes[1]})
        return 0
    rows = [(name, f"{size / 1e3:.1f}") for name, size in _sizes(after).items()]
    print(table(rows, ("file", "kB")))
    print(f"bundle: {after.path}, {sizes[1] / 1e6:.3f} MB of {sizes[0] / 1e6:.3f} MB (sha256 {after.sha256[:12]})")
    return 0


def _sizes(bundle: Bundle) -> dict[str, int]:
    manifest = {MANIFEST: (bundle.path / MANIFEST).stat().st_size}
    return manifest | {name: record.size_bytes for name, record in bundle.manifest.files.items()}


def _bytes(bundle: Bundle) -> int:
    return sum(_sizes(bundle).values())

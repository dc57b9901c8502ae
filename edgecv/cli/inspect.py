"""``edgecv inspect``: what a bundle, a checkpoint or a model file holds."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from edgecv.bundle import Bundle
from edgecv.card import model_card, stored_mb
from edgecv.cli.common import add_json, print_json, table
from edgecv.errors import InputError
from edgecv.files import write_file
from edgecv.preprocess import Preprocess
from edgecv.runtimes import open_session
from edgecv.schema import encode

EXAMPLE = "edgecv inspect digits --json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", type=Path, help="a bundle, a checkpoint, or a model file")
    parser.add_argument("--card", type=Path, metavar="FILE", help="of a bundle: write its model card, in Markdown")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    if args.model.is_dir():
        bundle = Bundle.load(args.model)
        if args.card:
            write_file(args.card, model_card(bundle))
        return _bundle(bundle, args.json)
    if args.card:
        raise InputError(f"--card is for a bundle, {args.model} is none")
    facts = _checkpoint(args.model) if args.model.suffix == ".safetensors" else _file(args.model)
    if args.json:
        print_json(facts)
    else:
        print("\n".join(f"{key:<12}{value}" for key, value in facts.items() if value is not None))
    return 0


def _bundle(bundle: Bundle, as_json: bool) -> int:
    manifest = bundle.manifest
    if as_json:
        print_json({"path": bundle.path, "sha256": bundle.sha256, "manifest": manifest})
        return 0
    print(
        f"{manifest.name}: {manifest.task}, {len(bundle.labels)} labels, sha256 {bundle.sha256[:12]}, every file intact"
    )
    for name, graph in manifest.graphs.items():
        ends = [", ".join(f"{spec.name}: {spec}" for spec in side) for side in (graph.inputs, graph.outputs)]
        print(f"graph {name}: {' -> '.join(ends)}")
    source = manifest.source
    print(f"licence: {source.licence or 'not said'}; trained on: {source.dataset or 'not said'}")
    if manifest.preprocess is not None:
        print(f"preprocess: {_shown(manifest.preprocess)}")
    for graph in manifest.graphs.values():
        for name, preprocess in graph.preprocess.items():
            print(f"preprocess of {name}: {_shown(preprocess)}")
    if accuracy := source.accuracy:
        low, high = accuracy.interval
        print(
            f"accuracy: top-1 {accuracy.top1:.4f} ({low:.4f} to {high:.4f}) on {accuracy.samples} images, when trained"
        )
    rows = []
    for name, variant in manifest.variants.items():
        needs = ", ".join(f"{library} >= {version}" for library, version in variant.requires.items())
        parity = f"{variant.parity.max_abs:.3g} on {variant.parity.samples}" if variant.parity else "not compared"
        rows.append((name, variant.backend, stored_mb(bundle, name), needs, parity))
    print()
    size_of = "MB, stored of decoded" if manifest.packed else "MB"
    print(table(rows, ("variant", "backend", size_of, "needs", "largest difference")))
    return 0


def _shown(pre: Preprocess) -> str:
    return f"{pre.size[0]}x{pre.size[1]}, resize {pre.resize}, mean {pre.mean}, std {pre.std}, {pre.color}"


def _checkpoint(path: Path) -> dict[str, Any]:
    from edgecv.models import count
    from edgecv.models.checkpoint import read_checkpoint

    network, card = read_checkpoint(path)
    counts = count(network, card.preprocess.size) if card.preprocess else None
    return {
        "model": card.recipe.architecture,
        "options": card.recipe.options,
        "labels": len(card.labels),
        "preprocess": encode(card.preprocess),
        "accuracy": encode(card.accuracy),
        "dataset": card.dataset,
        "parameters": counts.parameters if counts else None,
        "macs": counts.macs if counts else None,
    }


def _file(path: Path) -> dict[str, Any]:
    with open_session(path) as session:
        return {
            "file": str(path),
            "size_bytes": path.stat().st_size,
            "inputs": {spec.name: str(spec) for spec in session.inputs},
            "outputs": {spec.name: str(spec) for spec in session.outputs},
            "opened by": session.reason,
        }

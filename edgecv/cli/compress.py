"""``edgecv compress``: prune, train, quantize or cluster, convert and report, as one recipe file says."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

import edgecv
from edgecv.cli.common import add_json, print_json, progress, scores_line, table
from edgecv.manifest import Accuracy

if TYPE_CHECKING:
    from edgecv.chain import Compression

EXAMPLE = "edgecv compress recipe.yaml --out runs/small"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "recipe",
        type=Path,
        help="a .yaml or .json file: model, data (test, train, val, calibration, limit), steps (prune, train, "
        "quantize, cluster), convert, measure; relative paths are relative to it",
    )
    parser.add_argument(
        "--out", type=Path, required=True, help="the folder of the result; an interrupted or edited chain goes on there"
    )
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    with progress() as report:
        result = edgecv.compress(args.recipe, args.out, progress=report)
    if args.json:
        print_json(result.summary())
    else:
        _print(result)
    return 0


def _print(result: Compression) -> None:
    backends = list(dict.fromkeys(name for row in result.rows for name in row.latencies))
    rows = [
        (
            row.name,
            f"{row.counts.parameters:,}" if row.counts else "-",
            f"{row.counts.macs / 1e6:,.2f}" if row.counts else "-",
            f"{row.size_bytes / 1e6:.3f}",
            f"{row.scores.top1 if isinstance(row.scores, Accuracy) else row.scores.roc_auc:.4f}",
            *(f"{row.latencies[name].profile.p50_ms:.3f}" if name in row.latencies else "-" for name in backends),
        )
        for row in result.rows
    ]
    measure = "top-1" if isinstance(result.rows[0].scores, Accuracy) else "ROC-AUC"
    print(table(rows, ("step", "parameters", "MMACs", "MB", measure, *(f"{name}, ms" for name in backends))))
    last = [row for row in result.rows if row.counts][-1]
    print(f"{last.name}: {scores_line(last.scores)}")
    print(f"checkpoint: {result.checkpoint}")
    if result.bundle:
        print(f"bundle: {result.bundle}")
    print(f"report: {result.report}")

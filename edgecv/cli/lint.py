"""``edgecv lint``: whether ONNX graphs are ready for a backend."""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from edgecv.bundle import Bundle
from edgecv.cli.common import add_json, print_json
from edgecv.errors import InputError

if TYPE_CHECKING:
    from edgecv.converters.lint import Finding

EXAMPLE = "edgecv lint model.onnx --for tensorrt"
ALL = "all"
SHOWN = 5  # places per rule; --json has every one


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", type=Path, help="an .onnx file, or a bundle that holds some")
    parser.add_argument(
        "--for",
        dest="target",
        default=ALL,
        metavar="TARGET",
        help="onnxruntime, openvino, tensorrt, tensorrt_rtx or all (default: all)",
    )
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    from edgecv.converters.lint import TARGETS, lint

    targets = TARGETS if args.target == ALL else (args.target,)
    found = {name: lint(path, targets) for name, path in _graphs(args.model).items()}
    errors = sum(item.severity == "error" for findings in found.values() for item in findings)
    if args.json:
        print_json({"ok": errors == 0, "targets": targets, "graphs": found})
    else:
        print("\n".join(line for name, findings in found.items() for line in _lines(name, findings, targets)))
    return 1 if errors else 0


def _graphs(path: Path) -> dict[str, Path]:
    """The ONNX files to read, by what they are called in the report."""
    if not path.is_dir():
        return {path.name: path}
    bundle = Bundle.load(path)
    names = sorted({name for variant in bundle.manifest.variants.values() for name in variant.graphs.values()})
    graphs = {name: path / name for name in names if name.endswith(".onnx")}
    if not graphs:
        raise InputError(f"{path} holds no ONNX graph to lint; its graphs are {', '.join(names)}")
    return graphs


def _lines(name: str, findings: tuple[Finding, ...], targets: tuple[str, ...]) -> list[str]:
    """One graph's report: findings by rule, each with its mend and where to read more."""
    groups: dict[tuple[str, str, str, str], dict[str, set[str]]] = {}
    for item in findings:
        places = groups.setdefault((item.severity, item.rule, item.mend, item.evidence), {})
        places.setdefault(item.message, set()).add(item.target)
    counts = Counter(severity for (severity, *_), places in groups.items() for _ in places)
    totals = f"{_count(counts['error'], 'error')}, {_count(counts['warning'], 'warning')}"
    lines = [f"{name}: {totals} for {', '.join(targets)}"]
    for (severity, rule, mend, evidence), places in groups.items():
        concerned = ", ".join(sorted(set().union(*places.values())))
        lines += ["", f"{rule} {severity} for {concerned}"]
        lines += [f"  {message}" for message in list(places)[:SHOWN]]
        if len(places) > SHOWN:
            lines.append(f"  and {len(places) - SHOWN} more places; --json lists them")
        lines += [f"  mend: {mend}", f"  see: {evidence}"]
    return lines


def _count(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"

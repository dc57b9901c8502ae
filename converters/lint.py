"""``lint``: whether a graph is ready for a backend, and where it is not, which node, why and what to change."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from edgecv.converters import lint_cpu, lint_limits, lint_operators, lint_qdq, lint_types
from edgecv.converters.lint_graph import Graph, read_graph
from edgecv.converters.lint_nodes import name_of
from edgecv.converters.lint_rules import TARGETS, Finding, Rule
from edgecv.errors import InputError
from edgecv.plugins import unknown

__all__ = ["RULES", "TARGETS", "Finding", "Rule", "lint"]

RULES: tuple[Rule, ...] = tuple(
    sorted(
        (rule for part in (lint_operators, lint_types, lint_qdq, lint_limits, lint_cpu) for rule in part.RULES),
        key=lambda rule: (rule.id, rule.targets),
    )
)


def lint(model: str | Path | Any, targets: Sequence[str] = TARGETS) -> tuple[Finding, ...]:
    """Check an ONNX file or ``onnx.ModelProto`` for each target, without running or building anything.

    A graph without a finding can still be refused: the rules are necessary conditions, drawn from what TensorRT's
    parser, ONNX Runtime and OpenVINO were seen to refuse or to misread. Errors come first, then by rule and node.

    Raises:
        InputError: the file is not a whole ONNX model, or a target is unknown.
    """
    for target in targets:
        if target not in TARGETS:
            raise InputError(unknown("lint target", target, TARGETS))
    graph = read_graph(model)
    found = [
        Finding(
            rule.id, rule.severity, target, name_of(node) if node is not None else "", message, rule.mend, rule.evidence
        )
        for rule in RULES
        for target in rule.targets
        if target in targets
        for part in _parts(graph)
        for node, message in rule.check(part)
    ]
    return tuple(sorted(found, key=lambda item: (item.severity, item.rule)))


def _parts(graph: Graph) -> Iterator[Graph]:
    yield graph
    for inner in graph.subgraphs:
        yield from _parts(inner)

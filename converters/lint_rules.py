"""What a lint rule is and what it finds."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from edgecv.converters.lint_graph import Graph
from edgecv.converters.lint_nodes import Node

__all__ = ["TARGETS", "TENSORRT", "Finding", "Problem", "Rule"]

Severity = Literal["error", "warning"]
Problem = tuple[Node | None, str]  # the node, if one is to blame, and what is wrong with it
TENSORRT = ("tensorrt", "tensorrt_rtx")
TARGETS = ("onnxruntime", "openvino", *TENSORRT)


@dataclass(frozen=True, slots=True)
class Finding:
    """One place where a graph is not ready for a target.

    An ``error`` keeps the graph from being built, or gives other numbers in silence; a ``warning`` costs speed or
    accuracy, or holds for some versions only. ``node`` is the node's name, or that of its first output, or empty where
    the whole graph is meant; ``mend`` says what to change, ``evidence`` where to read why.
    """

    rule: str
    severity: Severity
    target: str
    node: str
    message: str
    mend: str
    evidence: str


@dataclass(frozen=True, slots=True)
class Rule:
    """A row of the table: ``check`` is called with the graph and each of its subgraphs.

    ``refusals`` are regular expressions: the messages of TensorRT's ONNX parser that the rule answers for. A graph
    without an error of the lint must not be refused with one of them.
    """

    id: str
    severity: Severity
    targets: tuple[str, ...]
    check: Callable[[Graph], Iterable[Problem]]
    mend: str
    evidence: str
    refusals: tuple[str, ...] = ()

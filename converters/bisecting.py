"""Find the first node where two backends, two precisions or two versions of one graph part."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx.helper

from edgecv.converters.onnx_check import checked, element_types, initializers, label, plain, reads
from edgecv.errors import ConversionError, InputError
from edgecv.runtimes.session import Session
from edgecv.tensors import Array

__all__ = ["Difference", "Divergence", "Open", "Side", "Statistics", "bisect"]

Open = Callable[[Path], Session]


@dataclass(frozen=True, slots=True)
class Side:
    """A graph and what opens an ONNX file of a part of it, as ``lambda path: OrtSession(path)``."""

    model: onnx.ModelProto
    open: Open


@dataclass(frozen=True, slots=True)
class Statistics:
    """What a tensor holds."""

    min: float
    max: float
    mean: float
    std: float

    def __str__(self) -> str:
        return f"min {self.min:.4g}, max {self.max:.4g}, mean {self.mean:.4g}, std {self.std:.4g}"


@dataclass(frozen=True, slots=True)
class Difference:
    """How far a tensor of ``b`` is from that of ``a``; ``share`` is the largest difference over the spread of ``a``.

    The spread is the standard deviation; where that is 0, the largest absolute value.
    """

    tensor: str
    a: Statistics
    b: Statistics
    max_abs: float
    mean_abs: float
    cosine: float
    share: float


@dataclass(frozen=True, slots=True)
class Divergence:
    """The node where two sides part, and by how much.

    Attributes:
        node, operator: the node of ``a``; where it has no name, its first output.
        output: the tensor that differs.
        inputs: the tensor in front of the node that differs most, none of them beyond the tolerance; ``None`` at the
            graph's beginning.
        alone: ``output`` where both sides run this node alone on the inputs of ``a``.
        confirmed: the node alone differs beyond the tolerance. Where it does not, differences have added up over
            several nodes, and this one is where they passed the tolerance.
        builds: how many graphs each side opened.
    """

    node: str
    operator: str
    output: Difference
    inputs: Difference | None
    alone: Difference
    confirmed: bool
    builds: int

    def __str__(self) -> str:
        found = self.output
        how = "by itself" if self.confirmed else "by what added up before it"
        return (
            f"node {self.node!r} ({self.operator}) is the first to differ, {how}: {found.tensor!r} by at most "
            f"{found.max_abs:.3g}, {found.share:.2g} of its spread, cosine {found.cosine:.6f}\n"
            f"  a: {found.a}\n  b: {found.b}"
        )


def bisect(a: Side, b: Side, inputs: Mapping[str, Array], tolerance: float) -> Divergence | None:
    """Name the first node whose output differs between two sides, or ``None`` where the graphs' outputs agree.

    Both graphs are cut behind a node, and the parts in front of the cut are built and run. Only what crosses the cut is
    an output, so a backend fuses in front of it as it does in the whole graph; all of it is compared. Half of the nodes
    are left after each comparison: with N nodes, each side opens at most ``log2(N) + 2`` graphs, log2 rounded up, the
    last of them the found node alone.

    The two graphs may differ, in precision or in weights: nodes are matched by name, those of one graph alone are no
    place to cut. If a difference vanishes on its way (by a clip) and nothing differs at the end, there is nothing to
    find; if several nodes part, one of them is named.

    Args:
        inputs: real samples, as either whole graph takes them.
        tolerance: the largest difference that counts as agreement, as a share of the tensor's spread.

    Raises:
        ConversionError: a side cannot open a part of its graph, or the two graphs have no node in common.
    """
    pair = _Pair(a, b, inputs)
    low, high = 0, len(pair.nodes)
    found, before = pair.compare(high), _Cut({}, [])
    if not found.beyond(tolerance):
        return None
    while high - low > 1:
        middle = (low + high) // 2
        cut = pair.compare(middle)
        if cut.beyond(tolerance):
            high, found = middle, cut
        else:
            low, before = middle, cut
    return _name(pair, high - 1, found, before, tolerance)


def _name(pair: _Pair, index: int, found: _Cut, before: _Cut, tolerance: float) -> Divergence:
    node = pair.nodes[index]
    outputs = [item for item in found.differences if item.tensor in node.output] or found.differences
    alone = pair.alone(index, before.values)
    return Divergence(
        node=node.name or node.output[0],
        operator=node.op_type,
        output=max(outputs, key=lambda item: item.share),
        inputs=max(before.differences, key=lambda item: item.share, default=None),
        alone=max(alone.differences, key=lambda item: item.share),
        confirmed=alone.beyond(tolerance),
        builds=pair.builds,
    )


@dataclass(frozen=True, slots=True)
class _Cut:
    """The tensors at a cut: what ``a`` holds, by ``a``'s names, and how ``b`` differs."""

    values: dict[str, Array]
    differences: list[Difference]

    def beyond(self, tolerance: float) -> bool:
        return any(item.share > tolerance for item in self.differences)


class _Pair:
    """Two graphs over the nodes they have in common, in the order of the first."""

    def __init__(self, a: Side, b: Side, inputs: Mapping[str, Array]) -> None:
        self._a, self._b = _Graph("a", a), _Graph("b", b)
        self._inputs = inputs
        self.nodes = [node for key, node in self._a.nodes.items() if key in self._b.nodes]
        if not self.nodes:
            raise ConversionError("the two graphs have no node in common: their nodes are matched by name")
        self._twins = self._matched()
        self._last = self._last_readers()
        self.builds = 0

    def compare(self, count: int) -> _Cut:
        """Run the graphs up to behind the first ``count`` common nodes, and compare what crosses the cut."""
        return self._compare(self._live(count), {}, f"cut behind {label(self.nodes[count - 1])}")

    def alone(self, index: int, values: Mapping[str, Array]) -> _Cut:
        """Run one node (and those of one graph alone in front of it) on ``values`` in both graphs."""
        node = self.nodes[index]
        return self._compare([name for name in node.output if name in self._twins], values, f"of {label(node)} alone")

    def _compare(self, names: list[str], given: Mapping[str, Array], part: str) -> _Cut:
        self.builds += 1
        twins = [self._twins[name] for name in names]
        ours = self._a.run(names, {**self._inputs, **given}, set(given), part)
        theirs = {self._twins[name]: value for name, value in given.items()}
        found = self._b.run(twins, {**self._inputs, **theirs}, set(theirs), part)
        pairs = zip(names, ours, found, strict=True)
        return _Cut(dict(zip(names, ours, strict=True)), [_difference(*pair) for pair in pairs])

    def _matched(self) -> dict[str, str]:
        """The tensors that common nodes give, by ``a``'s name: ``b``'s name."""
        twins = {}
        for node in self.nodes:
            twin = self._b.nodes[self._a.key(node)]
            for ours, theirs in zip(node.output, twin.output, strict=False):
                if ours in self._a.types and theirs in self._b.types:
                    twins[ours] = theirs
        return twins

    def _last_readers(self) -> dict[str, int]:
        """For every tensor of ``a`` the place of the last common node that depends on it through no other one."""
        places = {self._a.key(node): place for place, node in enumerate(self.nodes)}
        last = {name: len(self.nodes) for name in self._a.outputs}
        for key, node in reversed(self._a.nodes.items()):
            place = places.get(key, max((last.get(name, -1) for name in node.output), default=-1))
            for name in reads(node):
                last[name] = max(last.get(name, -1), place)
        return last

    def _live(self, count: int) -> list[str]:
        given = [name for node in self.nodes[:count] for name in node.output if name in self._twins]
        return [name for name in given if self._last.get(name, -1) >= count]


class _Graph:
    """One side's graph, and parts of it run."""

    def __init__(self, side: str, given: Side) -> None:
        self._side, self._open = side, given.open
        self._model = checked(plain(given.model))
        graph = self._model.graph
        self.types = element_types(self._model)
        self.outputs = [value.name for value in graph.output]
        self._values = {value.name: value for value in (*graph.value_info, *graph.output, *graph.input)}
        self._constants = initializers(self._model)
        names = Counter(node.name for node in graph.node)
        self._repeated = {name for name, count in names.items() if not name or count > 1}
        self.nodes = {self.key(node): node for node in graph.node}

    def key(self, node: onnx.NodeProto) -> str:
        """What a node is known by in both graphs: its name, if that is one, or else its first output."""
        return str(node.output[0] if node.name in self._repeated else node.name)

    def run(self, outputs: list[str], values: Mapping[str, Array], given: set[str], part: str) -> list[Array]:
        """Run the nodes between the inputs (or the tensors ``given`` in their place) and ``outputs``."""
        model = self._part(outputs, given)
        with tempfile.TemporaryDirectory(prefix="edgecv-bisect-") as folder:
            path = Path(folder, "part.onnx")
            path.write_bytes(model.SerializeToString(deterministic=True))
            try:
                with self._open(path) as session:
                    wanted = [value.name for value in model.graph.input]
                    arrays = [self._as_typed(name, values[name]) for name in wanted]
                    # By place, since a backend may call a tensor by another of its names.
                    feeds = {spec.name: array for spec, array in zip(session.inputs, arrays, strict=True)}
                    found = session.run(feeds)
                    return [found[spec.name] for spec in session.outputs]
            except (ConversionError, InputError) as error:
                raise ConversionError(f"side {self._side} cannot run its graph {part}: {error}") from error

    def _part(self, outputs: list[str], given: set[str]) -> onnx.ModelProto:
        nodes, needed = [], set(outputs)
        for node in reversed(self._model.graph.node):
            if needed.intersection(node.output) - given:
                nodes.append(node)
                needed |= reads(node)
        constants = [tensor for name, tensor in self._constants.items() if name in needed]
        made = {name for node in nodes for name in node.output} - given
        inputs = [self._values[name] for name in self._values if name in needed - made - set(self._constants)]
        graph = onnx.helper.make_graph(
            nodes[::-1], "part", inputs, [self._values[name] for name in outputs], initializer=constants
        )
        return onnx.helper.make_model(graph, ir_version=self._model.ir_version, opset_imports=self._model.opset_import)

    def _as_typed(self, name: str, value: Array) -> Array:
        return value.astype(onnx.helper.tensor_dtype_to_np_dtype(self.types[name]), copy=False)


def _difference(name: str, a: Array, b: Array) -> Difference:
    first, second = a.astype(np.float64).ravel(), b.astype(np.float64).ravel()
    if a.shape != b.shape:
        return Difference(name, _statistics(first), _statistics(second), np.inf, np.inf, 0.0, np.inf)
    with np.errstate(invalid="ignore", over="ignore"):  # either may hold infinities and NaN
        same = (first == second) | (np.isnan(first) & np.isnan(second))
        apart = np.nan_to_num(np.where(same, 0.0, np.abs(first - second)), nan=np.inf, posinf=np.inf)
        spread = float(first.std()) or float(np.abs(first).max(initial=0.0)) or 1.0
        norms = float(np.linalg.norm(first) * np.linalg.norm(second))
        cosine = 1.0 if same.all() else float(first @ second) / norms if norms else 0.0
    largest = float(apart.max(initial=0.0))
    share = largest / spread if np.isfinite(spread) else largest
    return Difference(name, _statistics(first), _statistics(second), largest, float(apart.mean()), cosine, share)


def _statistics(values: Array) -> Statistics:
    with np.errstate(invalid="ignore", over="ignore"):
        return Statistics(*(float(f(values)) if values.size else 0.0 for f in (np.min, np.max, np.mean, np.std)))

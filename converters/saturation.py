"""What an int8 graph answers on an x86 CPU without VNNI, whose kernels add pairs of u8 x s8 products in 16 bits.

``vpmaddubsw`` cuts a sum of two products off at -32768 and 32767. Two weights that add up to 129 or more, or to -129 or
less, can get there; 7-bit weights cannot. Which products make a pair was found by experiment on ONNX Runtime 1.31 and
OpenVINO 2026.4 (``benchmarks/saturation.py``).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnx.helper
import onnxruntime

from edgecv.converters.onnx_check import initializers, reads
from edgecv.converters.qdq_graph import QdqGraph
from edgecv.converters.qdq_layouts import clean_for_cpu
from edgecv.converters.saturation_cells import Cell, Runtime, find_cells
from edgecv.converters.saturation_sums import Sums, add_up, give, risky_pairs
from edgecv.cpu import SATURATES
from edgecv.errors import InputError
from edgecv.plugins import unknown
from edgecv.tensors import Array

__all__ = [
    "RUNTIMES",
    "LayerSaturation",
    "SaturatingLayer",
    "Simulation",
    "mark_saturation",
    "saturating_layers",
    "simulate",
]

RUNTIMES: tuple[Runtime, ...] = ("onnxruntime", "openvino")
CHUNK = 4  # frames at once


@dataclass(frozen=True, slots=True)
class SaturatingLayer:
    """A layer whose weights can saturate: ``pairs`` of its ``of`` pairs of weights, in ``channels`` output channels.

    ``largest`` is the largest absolute sum of two weights that are added; above 128 the pair can saturate.
    """

    node: str
    operator: str
    pairs: int
    of: int
    channels: int
    largest: int


@dataclass(frozen=True, slots=True)
class LayerSaturation:
    """What saturation did to a layer on given frames.

    Attributes:
        saturated: the share of its sums of two products that were cut off.
        changed: the share of its output values that are others because of it, given what earlier layers left.
        noise: root mean square of that change, as a share of the root mean square of the layer's output without it.
    """

    node: str
    operator: str
    saturated: float
    changed: float
    noise: float


@dataclass(frozen=True, slots=True)
class Simulation:
    """A graph's outputs by name, and what happened in each layer that can saturate."""

    outputs: dict[str, Array]
    layers: tuple[LayerSaturation, ...]


def saturating_layers(model: onnx.ModelProto, runtime: Runtime = "onnxruntime") -> list[SaturatingLayer]:
    """Name the layers of a quantized graph whose weights can saturate; none of them is run.

    Raises:
        ConversionError: as from ``clean_for_cpu``, whose result the graph is read as.
    """
    return [_layer(cell) for cell in _risky_cells(QdqGraph(clean_for_cpu(model)), runtime)]


def mark_saturation(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy whose metadata names the layers that can saturate, so that a runtime can warn.

    The key is ``edgecv.cpu.SATURATES``; it is left out where no layer can.
    """
    graph = QdqGraph(clean_for_cpu(model))
    names = {cell.name: None for runtime in RUNTIMES for cell in _risky_cells(graph, runtime)}
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    kept = [item for item in copy.metadata_props if item.key != SATURATES]
    del copy.metadata_props[:]
    copy.metadata_props.extend(kept)
    if names:
        copy.metadata_props.add(key=SATURATES, value=json.dumps(list(names)))
    return copy


def simulate(
    model: onnx.ModelProto,
    inputs: Mapping[str, Array],
    *,
    runtime: Runtime = "onnxruntime",
    saturate: bool = True,
    threads: int = 1,
) -> Simulation:
    """Run a quantized graph as ``runtime`` would on an x86 CPU without VNNI, whatever CPU this is.

    Layers that can saturate are computed in integers, everything else by ONNX Runtime without any optimization. What
    ONNX Runtime would quantize by itself when it opens the file (float weights behind a DequantizeLinear) stays float.

    Args:
        inputs: as the graph takes them; the first dimension of each is the batch, of any length.
        saturate: ``False`` gives what the same kernels answer with VNNI.
        threads: of ONNX Runtime.

    Raises:
        ConversionError: as from ``clean_for_cpu``, whose result the graph is read as.
        InputError: an input is missing, or a graph's fixed batch does not divide the inputs.
    """
    if runtime not in RUNTIMES:
        raise InputError(unknown("runtime", runtime, RUNTIMES))
    plan = _Plan(QdqGraph(clean_for_cpu(model)), runtime, saturate, threads)
    found = [plan.run(chunk) for chunk in plan.chunks(inputs)]
    outputs = {name: np.concatenate([part[name] for part in found]) for name in found[0]}
    return Simulation(outputs, tuple(tally.result() for tally in plan.tallies))


class _Plan:
    """The graph cut in front of and behind each layer that can saturate; the parts between are sessions."""

    def __init__(self, graph: QdqGraph, runtime: Runtime, saturate: bool, threads: int) -> None:
        self._model, self._saturate = graph.model, saturate
        self._outputs = [value.name for value in graph.graph.output]
        self._steps: list[tuple[_Part, Cell | None]] = []
        known = {value.name for value in graph.graph.input}
        for cell in _risky_cells(graph, runtime):
            self._steps.append((_Part(graph.model, [cell.source], known, threads), cell))
            known |= {cell.source, cell.target}
        self._steps.append((_Part(graph.model, self._outputs, known, threads), None))
        self.tallies = [_Tally(cell) for _, cell in self._steps if cell is not None]

    def chunks(self, inputs: Mapping[str, Array]) -> Iterator[dict[str, Array]]:
        """A few frames at a time, or as many as the graph is fixed to."""
        wanted = [value.name for value in self._model.graph.input]
        if set(wanted) != set(inputs):
            raise InputError(f"the graph takes {', '.join(wanted)}; got {', '.join(inputs) or 'nothing'}")
        fixed = self._model.graph.input[0].type.tensor_type.shape.dim[0].dim_value
        count, size = len(inputs[wanted[0]]), fixed or CHUNK
        if not count or (fixed and count % fixed):
            raise InputError(f"the graph's batch is fixed to {fixed or 'at least 1'}; {count} frames do not fill it")
        for start in range(0, count, size):
            yield {name: values[start : start + size] for name, values in inputs.items()}

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """One chunk through all parts."""
        values, tallies = dict(inputs), iter(self.tallies)
        for part, cell in self._steps:
            part.run(values)
            if cell is not None:
                sums = add_up(cell, values[cell.source])
                exact = give(cell, sums.exact, sums.shape)
                found = give(cell, sums.exact - sums.excess, sums.shape) if self._saturate else exact
                next(tallies).add(sums, exact, found)
                values[cell.target] = found
        return {name: values[name] for name in self._outputs}


class _Part:
    """What lies between known tensors and those wanted, run exactly."""

    def __init__(self, model: onnx.ModelProto, wanted: Sequence[str], known: set[str], threads: int) -> None:
        self._wanted = [name for name in wanted if name not in known]
        if not self._wanted:
            return
        part = _cut(model, self._wanted, known)
        settings = onnxruntime.SessionOptions()
        settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        settings.intra_op_num_threads = threads
        settings.log_severity_level = 4
        self._session = onnxruntime.InferenceSession(
            part.SerializeToString(), settings, providers=["CPUExecutionProvider"]
        )
        self._inputs = [value.name for value in part.graph.input]

    def run(self, values: dict[str, Array]) -> None:
        if self._wanted:
            found = self._session.run(self._wanted, {name: values[name] for name in self._inputs})
            values.update(zip(self._wanted, found, strict=True))


class _Tally:
    """What is counted of one layer over all frames."""

    def __init__(self, cell: Cell) -> None:
        self._cell = cell
        self._pairs = self._saturated = self._values = self._changed = 0
        self._lost = self._power = 0.0

    def add(self, sums: Sums, exact: Array, found: Array) -> None:
        self._pairs, self._saturated = self._pairs + sums.pairs, self._saturated + sums.saturated
        self._values, self._changed = self._values + exact.size, self._changed + int((exact != found).sum())
        point = float(self._cell.output.zero_point.ravel()[0]) if self._cell.output else 0.0
        self._lost += float(np.square(exact.astype(np.float64) - found).sum())
        self._power += float(np.square(exact.astype(np.float64) - point).sum())

    def result(self) -> LayerSaturation:
        noise = float(np.sqrt(self._lost / self._power)) if self._power else 0.0
        shares = self._saturated / max(self._pairs, 1), self._changed / max(self._values, 1)
        return LayerSaturation(self._cell.name, self._cell.operator, *shares, noise)


def _risky_cells(graph: QdqGraph, runtime: Runtime) -> Iterator[Cell]:
    for cell in find_cells(graph, runtime):
        if risky_pairs(cell).any():
            yield cell


def _layer(cell: Cell) -> SaturatingLayer:
    risky, weight = risky_pairs(cell), cell.weight.astype(np.int16)
    largest = int(np.abs(weight[:, :, 0::2] + weight[:, :, 1::2]).max())
    return SaturatingLayer(
        cell.name, cell.operator, int(risky.sum()), int(risky.size), int(risky.any(2).sum()), largest
    )


def _cut(model: onnx.ModelProto, wanted: Sequence[str], known: set[str]) -> onnx.ModelProto:
    """The nodes between ``known`` tensors and ``wanted`` ones, as a model."""
    nodes, needed = [], set(wanted)
    for node in reversed(model.graph.node):
        if (needed - known).intersection(node.output):
            nodes.append(node)
            needed |= reads(node)
    graph = model.graph
    types = {value.name: value for value in (*graph.value_info, *graph.output, *graph.input)}
    constants = [tensor for name, tensor in initializers(model).items() if name in needed]
    cut = onnx.helper.make_graph(
        nodes[::-1], "part", [types[name] for name in types if name in needed & known],
        [types[name] for name in wanted], initializer=constants,
    )  # fmt: skip
    return onnx.helper.make_model(cut, ir_version=model.ir_version, opset_imports=model.opset_import)

"""What int8 gains, in each layer and altogether, measured on the backend that will run."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper
from torch import nn

from edgecv.converters.onnx_check import initializers
from edgecv.converters.onnx_from_torch import onnx_from_torch
from edgecv.converters.qdq_cpu import cpu_layout
from edgecv.converters.speed import speed_ratio
from edgecv.preprocess import Preprocess
from edgecv.progress import Progress, silent
from edgecv.runtimes.registry import session_class
from edgecv.runtimes.session import Session, SessionOptions

__all__ = ["MARK", "Speed", "gains_ms", "in_float", "layers_in", "speeds"]

MARK = ".integers"  # ends the name of a layer's int8 weights, as onnx_from_torch writes them
ROUNDS = 15
Clock = Callable[[], float]


@dataclass(frozen=True, slots=True)
class Speed:
    """How many times as fast as the float network the quantized one is, and what each layer has of that."""

    ratio: float
    gains_ms: dict[str, float]


def speeds(
    network: nn.Module, quantized: nn.Module, preprocess: Preprocess, backend: str, *, progress: Progress = silent
) -> Speed:
    """Measure a network and its quantized twin on one backend and one thread, one image at a time."""
    with tempfile.TemporaryDirectory() as scratch:
        paths = [Path(scratch, name) for name in ("float.onnx", "int8.onnx")]
        for path, item in zip(paths, (network, quantized), strict=True):
            onnx_from_torch(item, path, preprocess)
        model = onnx.load(str(paths[1]))
        onnx.save(cpu_layout(model), str(paths[1]))
        create, options = session_class(backend), SessionOptions(threads=1)
        with create.open(paths[0], options) as one, create.open(paths[1], options) as other:
            ratio = speed_ratio(one, other, {one.inputs[0].name: _image(one)})
    return Speed(ratio, gains_ms(model, backend, progress=progress))


def gains_ms(
    model: onnx.ModelProto,
    backend: str,
    *,
    threads: int = 1,
    clock: Clock = time.perf_counter,
    progress: Progress = silent,
) -> dict[str, float]:
    """For each quantized layer, the milliseconds lost if it alone were float.

    The whole network is run with the layer's weights in float, in turns with the quantized one, so what it costs to
    leave and enter integers around the layer is counted. One image at a time.

    Args:
        model: a quantized network as ``onnx_from_torch`` writes it.
    """
    layers = layers_in(model)
    found = {}
    with tempfile.TemporaryDirectory() as scratch:
        with _open(cpu_layout(model), Path(scratch, "int8.onnx"), backend, threads) as base:
            for done, layer in enumerate(layers, 1):
                changed = cpu_layout(in_float(model, layer))
                with _open(changed, Path(scratch, f"{done}.onnx"), backend, threads) as other:
                    found[layer] = _difference_ms(base, other, clock)
                progress(f"speed on {backend}", done, len(layers))
    return found


def layers_in(model: onnx.ModelProto) -> list[str]:
    """The quantized layers of a graph that ``onnx_from_torch`` wrote, by their names in the network."""
    found = [name.removesuffix(MARK) for name in initializers(model) if name.endswith(MARK)]
    return [name.partition("weight_quantizers.")[2] for name in found]


def in_float(model: onnx.ModelProto, layer: str) -> onnx.ModelProto:
    """A copy in which the weights of ``layer`` are float: the same values, not stored as integers."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graph, held = copy.graph, initializers(copy)
    for node in [node for node in graph.node if node.op_type == "DequantizeLinear"]:
        if node.input[0].endswith(f"weight_quantizers.{layer}{MARK}"):
            weight = numpy_helper.to_array(held[node.input[0]]).astype(np.float32)
            scale = numpy_helper.to_array(held[node.input[1]]).reshape(-1, *[1] * (weight.ndim - 1))
            graph.initializer.append(numpy_helper.from_array(weight * scale, node.output[0]))
            graph.node.remove(node)
    return copy


def _open(model: onnx.ModelProto, path: Path, backend: str, threads: int) -> Session:
    onnx.save(model, str(path))
    session: Session = session_class(backend).open(path, SessionOptions(threads=threads))
    return session


def _difference_ms(base: Session, other: Session, clock: Clock) -> float:
    """The median over rounds of how much longer ``other`` takes than ``base``."""
    image = {base.inputs[0].name: _image(base)}
    for session in (base, other):
        session.run(image)
    differences = []
    for _ in range(ROUNDS):
        marks = [clock()]
        for session in (base, other):
            session.run(image)
            marks.append(clock())
        differences.append((marks[2] - marks[1]) - (marks[1] - marks[0]))
    return statistics.median(differences) * 1e3


def _image(session: Session) -> np.ndarray:
    shape = session.inputs[0].shape or ()
    return np.zeros([size or 1 for size in shape], session.inputs[0].numpy)

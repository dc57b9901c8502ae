"""What quantization does to each layer: harm, speed, and the values of the worst."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn

from edgecv.compression.calibration import Inputs, batches_of
from edgecv.compression.capture import capture, held_parameter
from edgecv.compression.levels import read_levels
from edgecv.compression.placement import layers_of, quantized_layers, weight_quantizers
from edgecv.compression.ptq import quantized_products
from edgecv.compression.sensitivity import harms
from edgecv.compression.streams import Stream
from edgecv.converters.speed_map import gains_ms
from edgecv.preprocess import Preprocess
from edgecv.progress import Progress, silent

__all__ = ["LayerMap", "LayerRow", "LayerValues", "Spread", "layer_map", "values_of"]

EXPLAINED = 32  # images that the harm of every layer is measured on
LOOKED_AT = 8  # images that histograms are of
BINS = 80

Values = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class LayerRow:
    """A quantized layer; ``snr_db`` is ``None`` where rounding it changes nothing. See ``Harm`` and ``gains_ms``."""

    layer: str
    bits: int
    snr_db: float | None
    agreement: float | None
    gain_ms: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class LayerMap:
    """The quantized layers, the worst first; and how many times as fast as float the network is, by backend."""

    layers: tuple[LayerRow, ...]
    speed_ratio: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Spread:
    """How often values lie between ``edges``, before and after rounding."""

    edges: NDArray[np.float64]
    before: NDArray[np.int64]
    after: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class LayerValues:
    """A layer's weights, and the activations that it reads."""

    layer: str
    weights: Spread
    activations: Spread


def layer_map(
    quantized: fx.GraphModule,
    model: onnx.ModelProto,
    frames: Sequence[NDArray[np.uint8]],
    preprocess: Preprocess,
    ratios: Mapping[str, float],
    progress: Progress = silent,
) -> LayerMap:
    """Measure what each layer of ``quantized`` does to the answers, and what int8 gains in it on each backend.

    Args:
        model: ``quantized`` as ``onnx_from_torch`` writes it.
        ratios: how many times as fast as the float network it is, by backend.
    """
    found = harms(quantized, _batches(frames, EXPLAINED, preprocess), progress)
    gains = {name: gains_ms(model, name, progress=progress) for name in ratios}
    bits = quantized_layers(quantized)
    rows = tuple(
        LayerRow(
            item.layer,
            bits[item.layer],
            item.snr_db if math.isfinite(item.snr_db) else None,
            item.agreement,
            {name: round(gain[item.layer], 4) for name, gain in gains.items()},
        )
        for item in found
    )
    return LayerMap(rows, {name: round(ratio, 3) for name, ratio in ratios.items()})


def values_of(
    network: nn.Module,
    quantized: fx.GraphModule,
    layers: Sequence[str],
    frames: Sequence[NDArray[np.uint8]],
    preprocess: Preprocess,
) -> list[LayerValues]:
    """How the weights and the inputs of some layers are spread in a network, and in what ``quantize`` made of it."""
    batches = _batches(frames, LOOKED_AT, preprocess)
    graph = capture(network, [list(tensor.shape[1:]) for tensor in batches[0]])
    read_levels(graph, preprocess)  # as quantize does, so that the first layers read the same
    plain = {node: name for name, nodes in layers_of(graph).items() for node in nodes[:1]}
    rounding = {id(quantizer): name for name, quantizer in weight_quantizers(quantized).items()}
    products = quantized_products(quantized)
    rounded = {node: rounding[id(quantizer)] for node, (quantizer, _) in products.items()}
    before = _read(graph, plain, layers, batches, exact=True)
    after = _read(quantized, rounded, layers, batches, exact=False)
    weights = {rounded[node]: quantizer(weight) for node, (quantizer, weight) in products.items()}
    held = {name: held_parameter(graph, node.args[1]) for node, name in plain.items()}
    return [
        LayerValues(name, _spread(_flat([held[name]]), _flat([weights[name]])), _steps(before[name], after[name]))
        for name in layers
    ]


def _batches(frames: Sequence[Any], limit: int, preprocess: Preprocess) -> list[Inputs]:
    return batches_of([frames[index] for index in range(min(limit, len(frames)))], preprocess)


def _read(
    graph: fx.GraphModule,
    names: Mapping[fx.Node, str],
    layers: Sequence[str],
    batches: Sequence[Inputs],
    *,
    exact: bool,
) -> dict[str, Values]:
    """The values that each layer reads, of its first call."""
    stream, found = Stream(graph, batches, exact=exact), {}
    for node in graph.graph.nodes:
        name = names.get(node, "")
        if name in layers and name not in found:
            found[name] = _flat(stream.values(node.args[0]))
        stream.step(node)
    return found


def _flat(parts: Sequence[Tensor]) -> Values:
    with torch.no_grad():
        return torch.cat([part.detach().flatten() for part in parts]).numpy()


def _spread(before: Values, after: Values) -> Spread:
    low, high = (float(pick([pick(before), pick(after)])) for pick in (np.min, np.max))
    edges = np.linspace(low, high if high > low else low + 1, BINS + 1)
    return Spread(edges, np.histogram(before, edges)[0], np.histogram(after, edges)[0])


def _steps(before: Values, after: Values) -> Spread:
    """With as many of the quantizer's levels in every bin: others would show a comb that is not there."""
    levels = np.unique(after)
    low, high = min(before.min(), levels[0]), max(before.max(), levels[-1])
    if len(levels) < 2:
        return _spread(before, after)
    step = float(np.diff(levels).min())
    wide = step * max(1, math.ceil((high - low) / step / BINS))
    first, last = math.floor(low / wide), math.ceil(high / wide) + 1
    edges = np.arange(first, last + 1) * wide - step / 2
    return Spread(edges, np.histogram(before, edges)[0], np.histogram(after, edges)[0])

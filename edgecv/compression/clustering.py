"""``cluster``: the weights of each layer become few different values, which a packed bundle stores in few bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn

from edgecv.compression.calibration import Calibration, Inputs, batches_of
from edgecv.compression.capture import capture, held_parameter
from edgecv.compression.feedback import round_with_feedback, second_moments
from edgecv.compression.placement import is_quantized, layers_of
from edgecv.compression.pruning import inputs_of
from edgecv.compression.sparsity import sparsify
from edgecv.compression.streams import Stream
from edgecv.errors import InputError
from edgecv.models.recipe import recipe_of
from edgecv.plugins import unknown
from edgecv.preprocess import Preprocess
from edgecv.progress import Progress, silent

__all__ = ["ClusterConfig", "LayerPalette", "cluster", "palette_of", "palettes_of", "rebuild"]

HALF = 16  # bits of a layer that gets no palette: its weights are rounded to bfloat16
BITS = (0, *range(1, 9), HALF)
LLOYD_STEPS = 60


@dataclass(frozen=True, slots=True)
class ClusterConfig:
    """How weights are clustered.

    Args:
        bits: each layer has at most ``2 ** bits`` different weights, 0 included where there are zeros: 1 to 8.
        layer_bits: other bits for some layers, by name; 0 leaves a layer as it is, 16 rounds its weights to bfloat16,
            as is done with depthwise convolutions unless they are named: their channels differ too much for one
            palette, and they are small.
        sparsity: the share of weights that become zero first, see ``sparsify``; zeros stay zeros in any case.
    """

    bits: int = 6
    layer_bits: Mapping[str, int] = field(default_factory=dict)
    sparsity: float = 0.0

    def __post_init__(self) -> None:
        if self.bits not in range(1, 9):
            raise InputError(f"bits is 1 to 8, got {self.bits!r}")
        if wrong := {name: bits for name, bits in self.layer_bits.items() if bits not in BITS}:
            name, bits = next(iter(wrong.items()))
            raise InputError(f"layer_bits are 1 to 8, 16 for bfloat16, or 0 to leave a layer; {name!r} has {bits!r}")
        if not 0 <= self.sparsity < 1:
            raise InputError(f"sparsity is a share from 0 and below 1, got {self.sparsity!r}")


@dataclass(frozen=True, slots=True)
class LayerPalette:
    """A layer's weights: how many, how many are zero, how many values they have; and the bytes that these take, each
    coded by how often it is (their entropy, and the palette itself).
    """

    layer: str
    weights: int
    zeros: int
    values: int
    coded_bytes: int


def cluster(
    network: nn.Module,
    calibration: Calibration | None = None,
    config: ClusterConfig | None = None,
    *,
    preprocess: Preprocess | None = None,
    progress: Progress = silent,
) -> fx.GraphModule:
    """Give the weights of each convolution and linear layer few different values (arXiv:1510.00149, section 3).

    Batch norms are folded first. The result is an ordinary network, saved, loaded and converted as any other, at the
    same speed; it is small where it is stored packed (``ConvertOptions.pack``). ``network`` itself is left as it was.

    Args:
        calibration: some 50 images like those the network will see, which each layer's error is kept small on: about a
            bit per weight less for the same answers. Without any, every weight becomes the nearest value.
        preprocess: what the network was trained with, for calibration on frames.

    Raises:
        ConversionError: torch.export cannot capture the network.
        InputError: the network is quantized, a name is none of its layers', or the calibration does not fit.
    """
    config = config or ClusterConfig()
    if is_quantized(network):
        raise InputError(f"{type(network).__name__} is quantized already: int8 weights are clustered as they are")
    batches = batches_of(calibration, preprocess) if calibration is not None else []
    shapes = [list(tensor.shape[1:]) for tensor in inputs_of(network, batches, preprocess)]
    graph = capture(network, shapes)
    bits = _bits(graph, config)
    sparse = capture(sparsify(network, config.sparsity), shapes) if config.sparsity else graph
    kept = {name: held_parameter(sparse, nodes[0].args[1]) != 0 for name, nodes in layers_of(sparse).items()}
    _cluster(graph, bits, kept, batches, progress)
    recipe = recipe_of(network)
    if recipe is not None:
        step = recipe.then("cluster", {"shapes": shapes})
        graph.edgecv_recipe = step  # type: ignore[assignment]  # a plain attribute: it travels with deepcopy
    return graph


def rebuild(network: nn.Module, settings: Mapping[str, Any]) -> fx.GraphModule:
    """The structure that ``cluster`` gave ``network``, with weights still to be loaded.

    Raises:
        InputError: the settings are not those of a recipe step.
    """
    shapes = settings.get("shapes")
    whole = isinstance(shapes, list) and all(
        isinstance(shape, list) and all(isinstance(size, int) and size > 0 for size in shape) for shape in shapes
    )
    if not whole or set(settings) != {"shapes"}:
        raise InputError("a recipe's cluster step has shapes")
    return capture(network, shapes)  # type: ignore[arg-type]


def palette_of(weights: NDArray[Any], entries: int) -> NDArray[np.float32]:
    """At most ``entries`` values, in order, which are close to ``weights``: k-means in one dimension.

    Centres start evenly spaced, so that the few large weights have some too (section 3.2 of the paper), and end as
    bfloat16, which halves what a palette takes. Where there are no more values than entries, these are the palette.
    """
    ordered, counts = np.unique(weights, return_counts=True)
    if len(ordered) <= entries:
        return ordered.astype(np.float32)
    total = np.concatenate(([0], np.cumsum(counts)))
    sums = np.concatenate(([0.0], np.cumsum(ordered.astype(np.float64) * counts)))
    centres = np.linspace(ordered[0], ordered[-1], entries, dtype=np.float64)
    for _ in range(LLOYD_STEPS):
        edges = np.concatenate(([0], np.searchsorted(ordered, _between(centres)), [len(ordered)]))
        count = total[edges[1:]] - total[edges[:-1]]
        moved = (sums[edges[1:]] - sums[edges[:-1]])[count > 0] / count[count > 0]
        done = np.array_equal(moved, centres)
        centres = moved
        if done:
            break
    return np.unique(_bfloat16(torch.from_numpy(centres)).numpy())


def palettes_of(network: nn.Module) -> list[LayerPalette]:
    """What the weights of every layer of a clustered network consist of."""
    if not isinstance(network, fx.GraphModule):
        raise InputError(f"palettes are those of what edgecv.cluster made, got a {type(network).__name__}")
    found = []
    for name, nodes in layers_of(network).items():
        weight = held_parameter(network, nodes[0].args[1]).detach()
        values, counts = torch.unique(weight, return_counts=True)
        share = counts.double() / weight.numel()
        bits = -(counts * torch.log2(share)).sum()
        coded = float(bits) / 8 + values.numel() * (2 if torch.equal(values, _bfloat16(values)) else 4)
        found.append(LayerPalette(name, weight.numel(), int((weight == 0).sum()), values.numel(), round(coded)))
    return found


@torch.no_grad()
def _cluster(
    graph: fx.GraphModule,
    bits: Mapping[str, int],
    kept: Mapping[str, Tensor],
    batches: Sequence[Inputs],
    progress: Progress,
) -> None:
    """Cluster the layers in turn, in place; each sees its inputs as the clustered ones before it leave them."""
    first = {nodes[0]: name for name, nodes in layers_of(graph).items()}
    stream = Stream(graph, batches, exact=False)
    nodes = list(graph.graph.nodes) if batches else list(first)
    for done, node in enumerate(nodes, 1):
        if bits.get(first.get(node, "")):
            name = first[node]
            inputs = stream.values(node.all_input_nodes[0]) if batches else []
            weight = held_parameter(graph, node.args[1])
            weight.copy_(_clustered(node, weight, kept[name], bits[name], inputs))
        if batches:
            stream.step(node)
        progress("cluster", done, len(nodes))


def _clustered(product: fx.Node, weight: Tensor, kept: Tensor, bits: int, inputs: Sequence[Tensor]) -> Tensor:
    if bits == HALF:
        return torch.where(kept, _bfloat16(weight), 0.0)
    values = weight[kept].cpu().numpy()
    if not len(values):
        return torch.zeros_like(weight)
    palette = torch.from_numpy(palette_of(values, max(1, 2**bits - bool((~kept).any()))))
    moments = second_moments(product, weight, inputs) if inputs else None
    if moments is None:
        return torch.where(kept, _nearest(weight, palette.to(weight)), 0.0)
    return round_with_feedback(weight, kept, moments, lambda column: _nearest(column, palette.to(column)))


def _nearest(values: Tensor, palette: Tensor) -> Tensor:
    edges = (palette[1:] + palette[:-1]) / 2
    return palette[torch.bucketize(values.contiguous(), edges)]


def _between(centres: NDArray[np.float64]) -> NDArray[np.float64]:
    middle: NDArray[np.float64] = (centres[1:] + centres[:-1]) / 2
    return middle


def _bfloat16(values: Tensor) -> Tensor:
    return values.to(torch.bfloat16).float()


def _bits(graph: fx.GraphModule, config: ClusterConfig) -> dict[str, int]:
    known = layers_of(graph)
    for name in config.layer_bits:
        if name not in known:
            raise InputError(unknown("layer", name, known))
    if not known:
        raise InputError("the network has no convolution or linear layer to cluster")
    usual = {name: HALF if _is_depthwise(graph, nodes[0]) else config.bits for name, nodes in known.items()}
    return {name: config.layer_bits.get(name, usual[name]) for name in known}


def _is_depthwise(graph: fx.GraphModule, product: fx.Node) -> bool:
    """Whether each group of a convolution has one channel in and one out."""
    weight = held_parameter(graph, product.args[1])
    groups = product.args[6] if len(product.args) > 6 else 1
    return weight.ndim > 2 and weight.shape[1] == 1 and weight.shape[0] == groups

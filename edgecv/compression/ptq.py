"""Post-training quantization: ranges, weights and corrected biases from some real images, without labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, fx

from edgecv.compression.adaround import round_adaptively
from edgecv.compression.calibration import Inputs
from edgecv.compression.capture import CONVOLUTIONS, PADS, PRODUCTS, held_parameter, is_call
from edgecv.compression.gptq import round_to_outputs
from edgecv.compression.quantizers import ActivationQuantizer, WeightQuantizer
from edgecv.compression.ranges import RangeMethod, activation_range, weight_scale
from edgecv.compression.streams import Stream
from edgecv.progress import Progress, silent

__all__ = ["ROUNDINGS", "Rounding", "calibrate", "correct", "fit_biases", "quantized_products"]

Rounding = Literal["gptq", "adaround", "nearest"]
ROUNDINGS = ("gptq", "adaround", "nearest")
STEPS = 60  # of AdaRound in each layer; more do little more
LARGEST_BIAS = 2.0**30  # in steps of an int32 accumulator

aten = torch.ops.aten


@torch.no_grad()
def calibrate(
    graph: fx.GraphModule,
    batches: Sequence[Inputs],
    activations: RangeMethod,
    weights: Literal["minmax", "mse"],
    progress: Progress = silent,
) -> None:
    """Set every range of ``graph`` from what the float network computes on ``batches``, and every weight's scale."""
    stream = Stream(graph, batches, exact=True)
    nodes = list(graph.graph.nodes)
    seen: dict[ActivationQuantizer, tuple[float, float]] = {}
    for done, node in enumerate(nodes, 1):
        values = stream.step(node)
        module = graph.get_submodule(str(node.target)) if node.op == "call_module" else None
        if isinstance(module, WeightQuantizer):
            module.set_scale(weight_scale(values[0], module.limit, weights))
        elif isinstance(module, ActivationQuantizer):
            low, high = activation_range(values, activations)
            known = seen.get(module, (0.0, 0.0))
            seen[module] = min(low, known[0]), max(high, known[1])
        progress("calibrate", done, len(nodes))
    for quantizer, (low, high) in seen.items():
        quantizer.set_range(low, high)


@torch.no_grad()
def correct(
    graph: fx.GraphModule,
    batches: Sequence[Inputs],
    rounding: Rounding = "nearest",
    *,
    biases: bool = True,
    seed: int = 0,
    progress: Progress = silent,
) -> None:
    """Correct each quantized layer in turn for what rounding changed, in it and before it, on ``batches``.

    The mean of each channel before its activation function becomes that of the float network again (Nagel et al., 2019,
    arXiv:1906.04721, section 4.2, with the data instead of batch norm's statistics), unless ``biases`` is off. Where
    ``rounding`` is not to the nearest, it is chosen first.
    """
    exact, rounded = Stream(graph, batches, exact=True), Stream(graph, batches, exact=False)
    nodes, products = list(graph.graph.nodes), quantized_products(graph)
    corrected: set[fx.Node] = set()
    for done, node in enumerate(nodes, 1):
        inputs = rounded.values(node.args[0]) if node in products else []
        wanted, got = exact.step(node), rounded.step(node)
        if node in products and node.args[2] not in corrected:  # a layer that is called twice is corrected once
            bias = held_parameter(graph, node.args[2])
            corrected.add(node.args[2])
            quantizer, weight = products[node]
            if rounding == "adaround":
                round_adaptively(node, weight, quantizer, bias, inputs, wanted, steps=STEPS, seed=seed)
            elif rounding == "gptq":
                round_to_outputs(node, weight, quantizer, inputs, wanted, None if biases else bias)
            if rounding != "nearest":
                got = [_call(node, part, quantizer(weight), bias) for part in inputs]
            if biases:
                shift = _mean(node, wanted) - _mean(node, got)
                bias += shift
                got = [part + _along(node, shift) for part in got]
            rounded.replace(node, got)
        progress("correct", done, len(nodes))


@torch.no_grad()
def fit_biases(graph: fx.GraphModule) -> None:
    """Widen the weights' scale of channels whose bias would not fit an int32 accumulator.

    Such channels have weights of nearly nothing: what they give is their bias.
    """
    for product, (quantizer, _) in quantized_products(graph).items():
        source = _input_quantizer(graph, product)
        if source is not None:
            step = source.affine()[0] * LARGEST_BIAS
            least = held_parameter(graph, product.args[2]).abs() / step
            quantizer.set_scale(torch.maximum(quantizer.scale, least))


def _input_quantizer(graph: fx.GraphModule, product: fx.Node) -> ActivationQuantizer | None:
    """What rounds a layer's input, zero padding aside."""
    node = product.args[0]
    while is_call(node, *PADS):
        node = node.args[0]  # type: ignore[union-attr]
    module = graph.get_submodule(str(node.target)) if isinstance(node, fx.Node) and node.op == "call_module" else None
    return module if isinstance(module, ActivationQuantizer) else None


def quantized_products(graph: fx.GraphModule) -> dict[fx.Node, tuple[WeightQuantizer, Tensor]]:
    """The calls of quantized layers, with the quantizer and the float weights of each."""
    found = {}
    for node in graph.graph.nodes:
        if is_call(node, *PRODUCTS) and node.args[1].op == "call_module":
            module = graph.get_submodule(str(node.args[1].target))
            if isinstance(module, WeightQuantizer):
                found[node] = module, held_parameter(graph, node.args[1].args[0])
    return found


def _call(product: fx.Node, values: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    result: Tensor = product.target(values, weight, bias, *product.args[3:])  # type: ignore[operator]
    return result


def _mean(product: fx.Node, values: Sequence[Tensor]) -> Tensor:
    """The mean of each output channel over all batches."""
    axis = 1 if is_call(product, *CONVOLUTIONS) else -1
    sums = torch.stack([part.transpose(0, axis).flatten(1).sum(1) for part in values]).sum(0)
    return sums / sum(part.numel() // part.shape[axis] for part in values)


def _along(product: fx.Node, shift: Tensor) -> Tensor:
    """``shift``, shaped to be added to a layer's output."""
    dimensions = {aten.conv1d.default: 1, aten.conv2d.default: 2, aten.conv3d.default: 3}
    return shift.view(-1, *[1] * dimensions.get(product.target, 0))  # type: ignore[call-overload]

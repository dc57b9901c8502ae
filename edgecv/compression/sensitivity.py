"""What quantizing each layer alone does to a network's answers."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from edgecv.compression.calibration import Inputs
from edgecv.compression.placement import activation_quantizers, weight_quantizers
from edgecv.compression.ptq import quantized_products
from edgecv.errors import InputError
from edgecv.progress import Progress, silent

__all__ = ["Harm", "costliest", "harms", "only"]


@dataclass(frozen=True, slots=True)
class Harm:
    """What one layer's rounding does, with everything else in float.

    Attributes:
        layer: its name.
        snr_db: of the answers, against the float network's: the signal's variance over the error's mean square.
        agreement: the share of images whose best class stays; ``None`` where answers are not scores of classes.
    """

    layer: str
    snr_db: float
    agreement: float | None


@torch.no_grad()
def harms(graph: fx.GraphModule, batches: Sequence[Inputs], progress: Progress = silent) -> list[Harm]:
    """Quantize each layer of ``graph`` alone (its weights, and the activations it reads and gives), the worst first."""
    with only(graph, []):
        wanted = _answers(graph, batches)
    found = []
    layers = list(weight_quantizers(graph))
    for done, layer in enumerate(layers, 1):
        with only(graph, [layer]):
            found.append(_harm(layer, wanted, _answers(graph, batches)))
        progress("harm of each layer", done, len(layers))
    return sorted(found, key=lambda item: item.snr_db)


def costliest(found: Sequence[Harm], gains_ms: Mapping[str, float] | None = None) -> list[str]:
    """Name the layers in the order in which they should stay float, for the most speed at the least harm.

    Without ``gains_ms`` that is the order of their harm. With it, layers that int8 makes no faster come first, then
    those with the largest error for each millisecond gained: the greedy order of a knapsack, errors taken to add up.
    """
    errors = {item.layer: 10 ** (-item.snr_db / 10) for item in found}
    if gains_ms is None:
        return sorted(errors, key=errors.__getitem__, reverse=True)
    if missing := [layer for layer in errors if layer not in gains_ms]:
        raise InputError(f"gains name the milliseconds of every quantized layer, {missing[0]!r} has none")
    paid = {layer: errors[layer] / gain if (gain := gains_ms[layer]) > 0 else math.inf for layer in errors}
    return sorted(errors, key=lambda layer: (paid[layer], errors[layer]), reverse=True)


@contextlib.contextmanager
def only(graph: fx.GraphModule, layers: Sequence[str]) -> Iterator[None]:
    """Within it ``graph`` rounds the weights of ``layers`` and the activations next to them, and nothing else."""
    near = _neighbours(graph)
    kept = {name for layer in layers for name in near[layer]}
    parts = [(name in kept, item) for name, item in activation_quantizers(graph).items()]
    parts += [(name in layers, item) for name, item in weight_quantizers(graph).items()]  # type: ignore[misc]
    before = [item.enabled for _, item in parts]
    for enabled, item in parts:
        item.enabled = enabled
    try:
        yield
    finally:
        for (_, item), enabled in zip(parts, before, strict=True):
            item.enabled = enabled


def _neighbours(graph: fx.GraphModule) -> dict[str, set[str]]:
    """The activation quantizers that feed each layer or read its output."""
    names = {id(item): name for name, item in weight_quantizers(graph).items()}
    found: dict[str, set[str]] = {name: set() for name in names.values()}
    for product, (quantizer, _) in quantized_products(graph).items():
        near = [*_quantizers_before(product), *_quantizers_after(product)]
        found[names[id(quantizer)]].update(near)
    return found


def _quantizers_before(node: fx.Node) -> Iterator[str]:
    source = node.args[0]
    while isinstance(source, fx.Node) and source.op == "call_function" and source.args:
        source = source.args[0]
    if isinstance(source, fx.Node) and source.op == "call_module":
        yield str(source.target).removeprefix("activation_quantizers.")


def _quantizers_after(node: fx.Node) -> Iterator[str]:
    while len(node.users) == 1:
        node = next(iter(node.users))
        if node.op == "call_module":
            yield str(node.target).removeprefix("activation_quantizers.")
            return
        if node.op != "call_function":
            return


def _answers(graph: nn.Module, batches: Sequence[Inputs]) -> list[Tensor]:
    """Each output over all batches."""
    outputs = [graph(*batch) for batch in batches]
    columns = [(item,) if isinstance(item, Tensor) else tuple(item) for item in outputs]
    return [torch.cat(parts) for parts in zip(*columns, strict=True)]


def _harm(layer: str, wanted: Sequence[Tensor], got: Sequence[Tensor]) -> Harm:
    error = sum(float((one - other).square().mean()) for one, other in zip(wanted, got, strict=True))
    signal = sum(float(one.var()) for one in wanted)
    snr = 10 * math.log10(signal / error) if error and signal else math.inf
    classes = wanted[0].ndim == 2 and wanted[0].shape[1] > 1
    same = float((wanted[0].argmax(1) == got[0].argmax(1)).float().mean()) if classes else None
    return Harm(layer, round(snr, 2), same)

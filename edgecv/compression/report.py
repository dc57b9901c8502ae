"""What pruning has changed, in figures."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from edgecv.compression.channels import widths
from edgecv.models.counting import Counts, count

__all__ = ["LayerChannels", "PruneReport", "prune_report"]


@dataclass(frozen=True, slots=True)
class LayerChannels:
    """The output channels of a convolution or linear layer, before and after."""

    name: str
    before: int
    after: int


@dataclass(frozen=True, slots=True)
class PruneReport:
    """A network before and after; ``layers`` are those that have lost channels. Latency is measured elsewhere."""

    before: Counts
    after: Counts
    layers: tuple[LayerChannels, ...]


def prune_report(before: nn.Module, after: nn.Module, inputs: tuple[Tensor, ...]) -> PruneReport:
    """Compare a network with its pruned copy; ``inputs`` is one item of what it takes, as ``inputs_of`` gives it."""
    layers = dict(after.named_modules())
    found = []
    for name, layer in before.named_modules():
        old, new = widths(layer), widths(layers[name])
        if isinstance(layer, (_ConvNd, nn.Linear)) and old and new and old[1] != new[1]:
            found.append(LayerChannels(name, old[1], new[1]))
    return PruneReport(count(before, inputs=inputs), count(after, inputs=inputs), tuple(found))

"""Parameters and multiply-accumulates (MACs) of any network."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

__all__ = ["Counts", "count"]


@dataclass(frozen=True, slots=True)
class Counts:
    """``parameters`` are trainable numbers; ``macs`` are of one image of the given size."""

    parameters: int
    macs: int


def count(
    network: nn.Module, size: tuple[int, int] = (224, 224), *, inputs: tuple[Tensor, ...] | None = None
) -> Counts:
    """Count the parameters of ``network`` and the MACs of one image of ``size`` (height, width), or of ``inputs``.

    Convolutions and matrix products count, as in the papers; element-wise work does not. One multiply-add is one MAC
    (torch's own counter says two operations). The network is run once, on zeros where no
    inputs are given, and left in the mode it was in.
    """
    device = next((p.device for p in network.parameters()), torch.device("cpu"))
    training = network.training
    network.eval()
    try:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            network(*(inputs or (torch.zeros(1, 3, *size, device=device),)))
    finally:
        network.train(training)
    return Counts(sum(p.numel() for p in network.parameters()), counter.get_total_flops() // 2)

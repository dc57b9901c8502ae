"""The part of preprocessing that lives inside the graph."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from edgecv.preprocess import Preprocess

__all__ = ["Framed"]


class Framed(nn.Module):
    """A network that takes frames: uint8 ``[batch, height, width, 3]`` RGB instead of normalized channels-first floats.

    Training, the converters and the torch backend all put this around a network, so the cast, the layout change and
    the normalization of ``preprocess`` are the same arithmetic everywhere and cannot be forgotten.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, network: nn.Module, preprocess: Preprocess) -> None:
        super().__init__()
        self.network = network
        self.flip = preprocess.color == "bgr"
        mean, std = (torch.tensor(values, dtype=torch.float64) for values in (preprocess.mean, preprocess.std))
        if self.flip:
            mean, std = mean.flip(0), std.flip(0)
        self.register_buffer("scale", (1 / (255 * std)).float().view(1, 3, 1, 1), persistent=False)
        self.register_buffer("shift", (-mean / std).float().view(1, 3, 1, 1), persistent=False)

    def forward(self, frames: Tensor) -> Any:
        return self.network(self.normalize(frames))

    def normalize(self, frames: Tensor) -> Tensor:
        """uint8 NHWC RGB frames to what the network takes."""
        image = frames.float().permute(0, 3, 1, 2)  # the cast first: TensorRT does nothing else with uint8
        if torch.compiler.is_exporting():
            image = image.contiguous()  # adaptive pooling of the other layout is traced as reading through strides
        if self.flip:
            image = image.flip(1)
        return image * self.scale + self.shift

"""A tracker network that exports in seconds and follows what is bright, for tests of what is made from trackers."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from edgecv.models.siamese.branches import Siamese
from edgecv.pipelines.tracking import Confidence, TrackerSettings
from edgecv.preprocess import Preprocess

SETTINGS = TrackerSettings(
    head="points",
    exemplar=31,
    search=63,
    penalty=0.05,
    window=0.2,
    rate=0.3,
    confidence=Confidence((0.0, 1.0, 0.0, 0.0), (0.0, 1.0, 0.0, 0.0, 1.0)),
)


class Tiny(Siamese):
    """The brightness of each cell, correlated; a target has the sides of a 40x30 one times ``scale``."""

    sides: Tensor
    signs: Tensor

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__(SETTINGS, Preprocess(size=(63, 63), mean=(0.4, 0.5, 0.6), std=(0.2, 0.2, 0.2), color="bgr"))
        self.backbone = nn.Sequential(_even(nn.Conv2d(3, 6, 9, 8, padding=4, bias=False), 2.0), nn.ReLU())
        self.score = _even(nn.Conv2d(16, 2, 1, bias=False), 0.1)
        self.box = _even(nn.Conv2d(16, 4, 1, bias=False), 1e-3)
        sides = torch.tensor([8.9, 6.7, 8.9, 6.7]) * scale
        self.register_buffer("sides", sides.view(1, 4, 1, 1))
        self.register_buffer("signs", torch.tensor([-1.0, 1.0]).view(1, 2, 1, 1))

    def template(self, image: Tensor) -> Tensor:
        features: Tensor = self.backbone(image)
        return features

    def search(self, features: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        found: Tensor = self.backbone(image)
        product = torch.matmul(features.flatten(2).transpose(1, 2), found.flatten(2)) / math.sqrt(6)
        cells = product.reshape(product.shape[0], 16, *found.shape[2:])
        return self.score(cells) * self.signs, self.box(cells).exp() * self.sides


def _even(layer: nn.Conv2d, total: float) -> nn.Conv2d:
    """A convolution that adds up everything it sees, each of its channels a little more than the one before."""
    channels = torch.arange(layer.out_channels).view(-1, 1, 1, 1)
    layer.weight.data = torch.full_like(layer.weight, total / layer.weight[0].numel()) * (1 + channels / 10)
    return layer

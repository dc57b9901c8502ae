"""SqueezeNet: fire modules (Iandola et al., 2016, arXiv:1602.07360); 1.1 is the authors' later, lighter release."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edgecv.models.recipe import check_options

__all__ = ["SqueezeNet", "squeezenet1_0", "squeezenet1_1"]

POOL = "pool"
Layers = tuple[str | tuple[int, int], ...]
# Squeeze and expand channels of each fire module, with the poolings between them.
LAYERS_1_0: Layers = (
    POOL, (16, 64), (16, 64), (32, 128), POOL, (32, 128), (48, 192), (48, 192), (64, 256), POOL, (64, 256),
)  # fmt: skip
LAYERS_1_1: Layers = (
    POOL, (16, 64), (16, 64), POOL, (32, 128), (32, 128), POOL, (48, 192), (48, 192), (64, 256), (64, 256),
)  # fmt: skip


def squeezenet1_0(num_classes: int = 1000, stem: str = "imagenet", dropout: float = 0.5) -> SqueezeNet:
    """SqueezeNet 1.0, as in the paper; the options are those of ``SqueezeNet``."""
    return SqueezeNet(LAYERS_1_0, (96, 7), num_classes, stem, dropout)


def squeezenet1_1(num_classes: int = 1000, stem: str = "imagenet", dropout: float = 0.5) -> SqueezeNet:
    """SqueezeNet 1.1: the accuracy of 1.0 for 2.4 times fewer MACs; the options are those of ``SqueezeNet``."""
    return SqueezeNet(LAYERS_1_1, (64, 3), num_classes, stem, dropout)


class SqueezeNet(nn.Module):
    """SqueezeNet with torchvision's state-dict keys; ``first`` is the channels and the kernel of the first convolution.

    ``stem="small"`` pads the first convolution, takes out its stride and the pooling behind it, for images of about
    32 pixels.
    """

    def __init__(self, layers: Layers, first: tuple[int, int], num_classes: int, stem: str, dropout: float) -> None:
        super().__init__()
        check_options(num_classes, stem)
        small, (channels, kernel) = stem == "small", first
        begin = nn.Conv2d(3, channels, kernel, 1 if small else 2, kernel // 2 if small else 0)
        features: list[nn.Module] = [begin, nn.ReLU(inplace=True)]
        for layer in layers:
            if isinstance(layer, str):
                pool = nn.MaxPool2d(3, 2, ceil_mode=True)
                features.append(nn.Identity() if small and len(features) == 2 else pool)
            else:
                features.append(Fire(channels, *layer))
                channels = 2 * layer[1]
        self.features = nn.Sequential(*features)
        final = nn.Conv2d(channels, num_classes, 1)
        self.classifier = nn.Sequential(nn.Dropout(dropout), final, nn.ReLU(inplace=True))
        _initialize(self, final)

    def forward(self, image: Tensor) -> Tensor:
        scores: Tensor = self.classifier(self.features(image))
        return scores.mean((2, 3))


class Fire(nn.Module):
    """Squeeze to few channels, then expand by 1x1 and 3x3 filters side by side."""

    def __init__(self, inputs: int, squeeze: int, expand: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(inputs, squeeze, 1)
        self.expand1x1 = nn.Conv2d(squeeze, expand, 1)
        self.expand3x3 = nn.Conv2d(squeeze, expand, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        squeezed = torch.relu(self.squeeze(image))
        return torch.cat([torch.relu(self.expand1x1(squeezed)), torch.relu(self.expand3x3(squeezed))], 1)


def _initialize(network: nn.Module, final: nn.Conv2d) -> None:
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    nn.init.normal_(final.weight, 0, 0.01)

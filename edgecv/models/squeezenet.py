"""SqueezeNet 1.1: fire modules (Iandola et al., 2016, arXiv:1602.07360; 1.1 is the authors' later, lighter release)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edgecv.models.recipe import check_options

__all__ = ["SqueezeNet"]

POOL = "pool"
# Squeeze and expand channels of each fire module, with the poolings between them.
LAYERS: tuple[str | tuple[int, int], ...] = (
    POOL, (16, 64), (16, 64), POOL, (32, 128), (32, 128), POOL, (48, 192), (48, 192), (64, 256), (64, 256),
)  # fmt: skip


class SqueezeNet(nn.Module):
    """SqueezeNet 1.1 with torchvision's state-dict keys.

    ``stem="small"`` pads the first convolution, takes out its stride and the pooling behind it, for images of about
    32 pixels.
    """

    def __init__(self, num_classes: int = 1000, stem: str = "imagenet", dropout: float = 0.5) -> None:
        super().__init__()
        check_options(num_classes, stem)
        small = stem == "small"
        layers: list[nn.Module] = [nn.Conv2d(3, 64, 3, 1 if small else 2, 1 if small else 0), nn.ReLU(inplace=True)]
        channels = 64
        for layer in LAYERS:
            if isinstance(layer, str):
                first = len(layers) == 2
                layers.append(nn.Identity() if small and first else nn.MaxPool2d(3, 2, ceil_mode=True))
            else:
                layers.append(Fire(channels, *layer))
                channels = 2 * layer[1]
        self.features = nn.Sequential(*layers)
        final = nn.Conv2d(channels, num_classes, 1)
        self.classifier = nn.Sequential(nn.Dropout(dropout), final, nn.ReLU(inplace=True))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.normal_(final.weight, 0, 0.01)

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

"""MobileNetV2: inverted residuals with linear bottlenecks (Sandler et al., 2018, arXiv:1801.04381)."""

from __future__ import annotations

from torch import Tensor, nn

from edgecv.errors import InputError
from edgecv.models.recipe import check_options

__all__ = ["MobileNetV2"]

# Table 2 of the paper: expansion, channels, repeats, stride of the first.
STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


class MobileNetV2(nn.Module):
    """MobileNetV2 with torchvision's state-dict keys.

    Args:
        width: multiplies every channel count, rounded to multiples of 8; the last layer never has fewer than 1280.
        stem: ``"small"`` takes the stride out of the first convolution, for images of about 32 pixels.
        dropout: before the classifier.
    """

    def __init__(
        self, num_classes: int = 1000, width: float = 1.0, stem: str = "imagenet", dropout: float = 0.2
    ) -> None:
        super().__init__()
        check_options(num_classes, stem)
        if not 0 < width <= 10:
            raise InputError(f"width is above 0 and at most 10, got {width!r}")
        channels = divisible(32 * width)
        layers: list[nn.Module] = [conv_bn_relu6(3, channels, kernel=3, stride=1 if stem == "small" else 2)]
        for expansion, base, repeats, stride in STAGES:
            for index in range(repeats):
                out = divisible(base * width)
                layers.append(InvertedResidual(channels, out, stride if index == 0 else 1, expansion))
                channels = out
        last = divisible(1280 * max(1.0, width))
        self.features = nn.Sequential(*layers, conv_bn_relu6(channels, last, kernel=1))
        self.classifier = nn.Sequential(nn.Dropout(dropout), nn.Linear(last, num_classes))
        initialize(self)

    def forward(self, image: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.features(image).mean((2, 3)))
        return logits


class InvertedResidual(nn.Module):
    """Expand, filter each channel, project; with the input added where the shape stays."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        expand = [conv_bn_relu6(inputs, hidden, kernel=1)] if expansion != 1 else []
        self.residual = stride == 1 and inputs == outputs
        self.conv = nn.Sequential(
            *expand,
            conv_bn_relu6(hidden, hidden, kernel=3, stride=stride, groups=hidden),
            nn.Conv2d(hidden, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )

    def forward(self, image: Tensor) -> Tensor:
        out: Tensor = self.conv(image)
        return image + out if self.residual else out


def conv_bn_relu6(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Convolution, batch norm and ReLU6, padded so that stride 1 keeps the size."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU6(inplace=True))


def divisible(channels: float, by: int = 8) -> int:
    """Round to a multiple of ``by``, never losing more than a tenth (the rule of the authors' code)."""
    rounded = max(by, int(channels + by / 2) // by * by)
    return rounded + by if rounded < 0.9 * channels else rounded


def initialize(network: nn.Module) -> None:
    """He initialization for convolutions, ones and zeros for batch norm, small normal weights for linear layers."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, 0, 0.01)
            nn.init.zeros_(module.bias)

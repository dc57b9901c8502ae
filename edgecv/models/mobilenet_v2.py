"""MobileNetV2: inverted residuals with linear bottlenecks (Sandler et al., 2018, arXiv:1801.04381)."""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn

from edgecv.models.layers import Padding, check_width, conv, conv_bn, divisible, initialize
from edgecv.models.recipe import check_options

__all__ = ["MobileNetV2"]

# Table 2 of the paper: expansion, channels, repeats, stride of the first.
STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
relu6 = partial(nn.ReLU6, inplace=True)


class MobileNetV2(nn.Module):
    """MobileNetV2 with torchvision's state-dict keys.

    Args:
        width: multiplies every channel count, rounded to multiples of 8; the last layer never has fewer than 1280.
        stem: ``"small"`` takes the stride out of the first convolution, for images of about 32 pixels.
        padding: ``"same_tf"`` for weights that come from TensorFlow.
        dropout: before the classifier.
    """

    def __init__(
        self,
        num_classes: int = 1000,
        width: float = 1.0,
        stem: str = "imagenet",
        padding: str = "symmetric",
        dropout: float = 0.2,
    ) -> None:
        super().__init__()
        check_options(num_classes, stem)
        check_width(width)
        pad, channels = Padding(padding), divisible(32 * width)
        layers: list[nn.Module] = [conv_bn(conv(3, channels, 3, 1 if stem == "small" else 2, pad=pad), relu6)]
        for expansion, base, repeats, stride in STAGES:
            for index in range(repeats):
                out = divisible(base * width)
                layers.append(InvertedResidual(channels, out, stride if index == 0 else 1, expansion, pad))
                channels = out
        last = divisible(1280 * max(1.0, width))
        self.features = nn.Sequential(*layers, conv_bn(conv(channels, last, 1, pad=pad), relu6))
        self.classifier = nn.Sequential(nn.Dropout(dropout), nn.Linear(last, num_classes))
        initialize(self)

    def forward(self, image: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.features(image).mean((2, 3)))
        return logits


class InvertedResidual(nn.Module):
    """Expand, filter each channel, project; with the input added where the shape stays."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int, pad: Padding) -> None:
        super().__init__()
        hidden = inputs * expansion
        expand = [conv_bn(conv(inputs, hidden, 1, pad=pad), relu6)] if expansion != 1 else []
        self.residual = stride == 1 and inputs == outputs
        self.conv = nn.Sequential(
            *expand,
            conv_bn(conv(hidden, hidden, 3, stride, hidden, pad=pad), relu6),
            conv(hidden, outputs, 1, pad=pad),
            nn.BatchNorm2d(outputs),
        )

    def forward(self, image: Tensor) -> Tensor:
        out: Tensor = self.conv(image)
        return image + out if self.residual else out

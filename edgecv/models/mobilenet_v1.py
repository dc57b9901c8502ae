"""MobileNetV1: depthwise separable convolutions (Howard et al., 2017, arXiv:1704.04861)."""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn

from edgecv.models.layers import Padding, check_width, conv, divisible, initialize
from edgecv.models.recipe import check_options

__all__ = ["MobileNetV1"]

# Table 1 of the paper: channels, repeats, stride of the first.
STAGES = ((64, 1, 1), (128, 2, 2), (256, 2, 2), (512, 6, 2), (1024, 2, 2))


class MobileNetV1(nn.Module):
    """MobileNetV1 with timm's state-dict keys.

    Args:
        width: multiplies every channel count, rounded to multiples of 8.
        stem: ``"small"`` takes the stride out of the first convolution, for images of about 32 pixels.
        padding: ``"same_tf"`` for weights that come from TensorFlow.
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
        self.conv_stem = conv(3, channels, 3, 1 if stem == "small" else 2, pad=pad)
        self.bn1 = nn.BatchNorm2d(channels)
        stages = []
        for base, repeats, stride in STAGES:
            blocks = []
            for index in range(repeats):
                out = divisible(base * width)
                blocks.append(Separable(channels, out, stride if index == 0 else 1, pad))
                channels = out
            stages.append(nn.Sequential(*blocks))
        self.blocks = nn.Sequential(*stages)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(channels, num_classes)
        self.act = relu6()
        initialize(self)

    def forward(self, image: Tensor) -> Tensor:
        features = self.blocks(self.act(self.bn1(self.conv_stem(image))))
        logits: Tensor = self.classifier(self.dropout(features.mean((2, 3))))
        return logits


class Separable(nn.Module):
    """Filter each channel by itself, then mix the channels."""

    def __init__(self, inputs: int, outputs: int, stride: int, pad: Padding) -> None:
        super().__init__()
        self.conv_dw = conv(inputs, inputs, 3, stride, inputs, pad=pad)
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv_pw = conv(inputs, outputs, 1, pad=pad)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.act = relu6()

    def forward(self, image: Tensor) -> Tensor:
        filtered = self.act(self.bn1(self.conv_dw(image)))
        mixed: Tensor = self.act(self.bn2(self.conv_pw(filtered)))
        return mixed


relu6 = partial(nn.ReLU6, inplace=True)

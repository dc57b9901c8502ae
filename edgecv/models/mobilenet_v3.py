"""MobileNetV3: searched blocks, squeeze-and-excite, hard swish (Howard et al., 2019, arXiv:1905.02244)."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

from torch import Tensor, nn
from torch.nn import functional

from edgecv.models.layers import Padding, check_width, conv, conv_bn, divisible, initialize
from edgecv.models.recipe import check_options

__all__ = ["MobileNetV3", "mobilenet_v3_large", "mobilenet_v3_small"]


class Row(NamedTuple):
    """One line of the paper's tables; a scaled row has the channels that are built."""

    kernel: int
    hidden: int
    channels: int
    squeeze: bool
    swish: bool
    stride: int

    def scaled(self, width: float) -> Row:
        """The row with its channel counts multiplied."""
        return self._replace(hidden=divisible(self.hidden * width), channels=divisible(self.channels * width))


# Tables 1 and 2 of the paper.
LARGE = tuple(Row(*row) for row in (
    (3, 16, 16, False, False, 1), (3, 64, 24, False, False, 2), (3, 72, 24, False, False, 1),
    (5, 72, 40, True, False, 2), (5, 120, 40, True, False, 1), (5, 120, 40, True, False, 1),
    (3, 240, 80, False, True, 2), (3, 200, 80, False, True, 1), (3, 184, 80, False, True, 1),
    (3, 184, 80, False, True, 1), (3, 480, 112, True, True, 1), (3, 672, 112, True, True, 1),
    (5, 672, 160, True, True, 2), (5, 960, 160, True, True, 1), (5, 960, 160, True, True, 1),
))  # fmt: skip
SMALL = tuple(Row(*row) for row in (
    (3, 16, 16, True, False, 2), (3, 72, 24, False, False, 2), (3, 88, 24, False, False, 1),
    (5, 96, 40, True, True, 2), (5, 240, 40, True, True, 1), (5, 240, 40, True, True, 1),
    (5, 120, 48, True, True, 1), (5, 144, 48, True, True, 1), (5, 288, 96, True, True, 2),
    (5, 576, 96, True, True, 1), (5, 576, 96, True, True, 1),
))  # fmt: skip
norm = partial(nn.BatchNorm2d, eps=1e-3, momentum=0.01)
relu, hardswish = partial(nn.ReLU, inplace=True), partial(nn.Hardswish, inplace=True)


def mobilenet_v3_large(
    num_classes: int = 1000, width: float = 1.0, stem: str = "imagenet", padding: str = "symmetric"
) -> MobileNetV3:
    """MobileNetV3-Large; the options are those of ``MobileNetV3``."""
    return MobileNetV3(LARGE, 1280, num_classes, width=width, stem=stem, padding=padding)


def mobilenet_v3_small(
    num_classes: int = 1000, width: float = 1.0, stem: str = "imagenet", padding: str = "symmetric"
) -> MobileNetV3:
    """MobileNetV3-Small; the options are those of ``MobileNetV3``."""
    return MobileNetV3(SMALL, 1024, num_classes, width=width, stem=stem, padding=padding)


class MobileNetV3(nn.Module):
    """MobileNetV3 with torchvision's state-dict keys.

    Args:
        rows: the table of blocks.
        head: channels of the hidden layer of the classifier.
        width: multiplies every channel count, rounded to multiples of 8.
        stem: ``"small"`` takes the stride out of the first convolution, for images of about 32 pixels.
        padding: ``"same_tf"`` for weights that come from TensorFlow.
    """

    def __init__(
        self, rows: tuple[Row, ...], head: int, num_classes: int, *, width: float, stem: str, padding: str
    ) -> None:
        super().__init__()
        check_options(num_classes, stem)
        check_width(width)
        pad, channels = Padding(padding), divisible(16 * width)
        first = conv(3, channels, 3, 1 if stem == "small" else 2, pad=pad)
        layers: list[nn.Module] = [conv_bn(first, hardswish, norm)]
        for row in (row.scaled(width) for row in rows):
            layers.append(Block(channels, row, pad))
            channels = row.channels
        layers.append(conv_bn(conv(channels, 6 * channels, 1, pad=pad), hardswish, norm))
        self.features = nn.Sequential(*layers)
        hidden = divisible(head * width)
        self.classifier = nn.Sequential(
            nn.Linear(6 * channels, hidden), hardswish(), nn.Dropout(0.2), nn.Linear(hidden, num_classes)
        )
        initialize(self)

    def forward(self, image: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.features(image).mean((2, 3)))
        return logits


class Block(nn.Module):
    """Expand, filter each channel, weigh the channels, project; with the input added where the shape stays."""

    def __init__(self, inputs: int, row: Row, pad: Padding) -> None:
        super().__init__()
        activation = hardswish if row.swish else relu
        depthwise = conv(row.hidden, row.hidden, row.kernel, row.stride, row.hidden, pad=pad)
        expand = [conv_bn(conv(inputs, row.hidden, 1, pad=pad), activation, norm)] if row.hidden != inputs else []
        squeeze = [SqueezeExcite(row.hidden)] if row.squeeze else []
        self.residual = row.stride == 1 and inputs == row.channels
        self.block = nn.Sequential(
            *expand,
            conv_bn(depthwise, activation, norm),
            *squeeze,
            conv_bn(conv(row.hidden, row.channels, 1, pad=pad), None, norm),
        )

    def forward(self, image: Tensor) -> Tensor:
        out: Tensor = self.block(image)
        return image + out if self.residual else out


class SqueezeExcite(nn.Module):
    """Weigh each channel by what all channels hold (Hu et al., 2017, arXiv:1709.01507), with a hard sigmoid."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = divisible(channels // 4)
        self.fc1 = nn.Conv2d(channels, hidden, 1)
        self.fc2 = nn.Conv2d(hidden, channels, 1)

    def forward(self, image: Tensor) -> Tensor:
        pooled = image.mean((2, 3), keepdim=True)
        return image * functional.hardsigmoid(self.fc2(functional.relu(self.fc1(pooled))))

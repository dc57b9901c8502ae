"""The first stages of MobileNetV2 as features for correlation: stride 8, without the borders that padding made."""

from __future__ import annotations

from torch import Tensor, nn

from edgecv.models.layers import Padding, check_width, conv, conv_bn, divisible
from edgecv.models.mobilenet_v2 import STAGES, InvertedResidual, relu6

__all__ = ["MobileNetFeatures"]

# Stages of the paper's table with the stride each is built with: 8 in all, where MobileNetV2 itself goes on to 32. The
# last two of the table are left out.
STRIDES = (1, 2, 2, 1, 1)
BORDER = 4  # cells at each side that padding reaches: a cell there tells where in the crop it lies, not what it shows


class MobileNetFeatures(nn.Module):
    """Float images to ``[batch, channels, side / 8 - 8, side / 8 - 8]``, rounded up: 8 cells of 127 pixels, 24 of 255.

    The first 14 layers have torchvision's keys and shapes, so a classifier's weights start them. Padded cells at the
    border would teach a tracker that the target is in the middle, so they are cut off. (SiamDW: Zhang & Peng, 2019,
    arXiv:1901.01660.)
    """

    def __init__(self, width: float, channels: int) -> None:
        super().__init__()
        check_width(width)
        pad, inputs = Padding("symmetric"), divisible(32 * width)
        layers: list[nn.Module] = [conv_bn(conv(3, inputs, 3, 2, pad=pad), relu6)]
        for (expansion, base, repeats, _), stride in zip(STAGES, STRIDES, strict=False):
            for index in range(repeats):
                outputs = divisible(base * width)
                layers.append(InvertedResidual(inputs, outputs, stride if index == 0 else 1, expansion, pad))
                inputs = outputs
        self.features = nn.Sequential(*layers)
        self.neck = nn.Sequential(conv(inputs, channels, 1, pad=pad), nn.BatchNorm2d(channels))

    def forward(self, image: Tensor) -> Tensor:
        features: Tensor = self.neck(self.features(image))
        return features[:, :, BORDER:-BORDER, BORDER:-BORDER]

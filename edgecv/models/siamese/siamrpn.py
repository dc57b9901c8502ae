"""SiamRPN for mobile devices: MobileNetV2, depthwise correlation, a head of anchors.

SiamRPN is Li et al., 2018; the depthwise correlation and its two branches are SiamRPN++'s (Li et al., 2019,
arXiv:1812.11703).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from edgecv.errors import InputError
from edgecv.models.layers import Padding, check_width, conv, conv_bn, initialize
from edgecv.models.siamese.branches import Siamese
from edgecv.models.siamese.correlation import correlate_channels
from edgecv.models.siamese.mobilenet import MobileNetFeatures
from edgecv.models.siamese.variants import sibling
from edgecv.pipelines.tracking.settings import TrackerSettings
from edgecv.preprocess import Preprocess

__all__ = ["MOBILE", "SiamRPN", "Variant", "siamrpn_mobile"]

PAD = Padding("symmetric")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, as the backbone's published weights want it


@dataclass(frozen=True, slots=True)
class Variant:
    """One sibling of the family.

    Args:
        width: multiplies the backbone's channels.
        channels: of the features that are correlated.
        hidden: 1x1 layers of each branch between the correlation and its answer.
        ratios: proportions (height / width) of the anchors, all of the area of a square of ``anchor`` pixels.
        search, exemplar: sides of the crops.
    """

    width: float = 1.0
    channels: int = 128
    hidden: int = 1
    ratios: tuple[float, ...] = (1 / 3, 1 / 2, 1.0, 2.0, 3.0)
    anchor: float = 64.0
    search: int = 255
    exemplar: int = 127

    def __post_init__(self) -> None:
        object.__setattr__(self, "ratios", tuple(self.ratios))
        check_width(self.width)
        if self.channels < 1 or self.hidden < 0:
            raise InputError(f"channels is 1 or more, hidden 0 or more, got {self.channels} and {self.hidden}")


MOBILE = Variant()


def siamrpn_mobile(**options: Any) -> SiamRPN:
    """SiamRPN with five anchors a cell."""
    return SiamRPN(sibling(MOBILE, options))


class SiamRPN(Siamese):
    """Exemplar and search crop to a score and four offsets per anchor. The tracker's constants are SiamRPN's."""

    def __init__(self, variant: Variant) -> None:
        settings = TrackerSettings(
            head="anchors",
            exemplar=variant.exemplar,
            search=variant.search,
            stride=8,
            penalty=0.055,
            window=0.42,
            rate=0.295,
            ratios=variant.ratios,
            anchor=variant.anchor,
        )
        super().__init__(settings, Preprocess(size=(variant.search, variant.search), mean=MEAN, std=STD))
        self.variant = variant
        self.backbone = MobileNetFeatures(variant.width, variant.channels)
        anchors = len(variant.ratios)
        self.score = Branch(variant.channels, 2 * anchors, variant.hidden)
        self.box = Branch(variant.channels, 4 * anchors, variant.hidden)
        initialize(self)

    def template(self, image: Tensor) -> Tensor:
        features: Tensor = self.backbone(image)
        return features

    def search(self, features: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        """``score`` ``[batch, 2 * anchors, rows, columns]``, the logits of background for all anchors and then of the
        target, and ``box`` ``[batch, 4 * anchors, rows, columns]``, all offsets in x, then in y, width and height:
        those of the centre in units of the anchor's sides, those of the sides as logarithms.
        """
        found = self.backbone(image)
        return self.score(features, found), self.box(features, found)


class Branch(nn.Module):
    """Adjust both features, correlate them channel by channel, and read the answer."""

    def __init__(self, channels: int, outputs: int, hidden: int) -> None:
        super().__init__()
        self.kernel = adjust(channels)
        self.search = adjust(channels)
        layers = [conv_bn(conv(channels, channels, 1, pad=PAD), nn.ReLU) for _ in range(hidden)]
        self.answer = nn.Sequential(*layers, nn.Conv2d(channels, outputs, 1))

    def forward(self, features: Tensor, image: Tensor) -> Tensor:
        answer: Tensor = self.answer(correlate_channels(self.kernel(features), self.search(image)))
        return answer


def adjust(channels: int) -> nn.Sequential:
    """A depthwise-separable 3x3 convolution without padding."""
    filters = nn.Conv2d(channels, channels, 3, groups=channels, bias=False)
    return nn.Sequential(conv_bn(filters, nn.ReLU), conv_bn(conv(channels, channels, 1, pad=PAD), nn.ReLU))

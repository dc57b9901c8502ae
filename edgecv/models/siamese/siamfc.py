"""SiamFC: the exemplar's features are the kernel of a cross-correlation (Bertinetto et al., 2016, arXiv:1606.09549)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from edgecv.errors import InputError
from edgecv.models.layers import check_width, initialize
from edgecv.models.siamese.branches import Siamese
from edgecv.models.siamese.correlation import correlate
from edgecv.models.siamese.mobilenet import MobileNetFeatures
from edgecv.models.siamese.variants import sibling
from edgecv.pipelines.tracking.settings import TrackerSettings
from edgecv.plugins import unknown
from edgecv.preprocess import Preprocess

__all__ = ["ALEXNET", "MOBILENET", "SiamFC", "Variant", "siamfc_alexnet", "siamfc_mobilenet"]

BACKBONES = ("alexnet", "mobilenet_v2")
# Table 1 of the paper: kernel, stride, channels, groups, whether it is pooled (3x3, stride 2) afterwards.
LAYERS = (
    (11, 2, 96, 1, True),
    (5, 1, 256, 2, True),
    (3, 1, 384, 1, False),
    (3, 1, 384, 2, False),
    (3, 1, 256, 2, False),
)


@dataclass(frozen=True, slots=True)
class Variant:
    """One sibling of the family.

    Args:
        backbone: ``"alexnet"`` or ``"mobilenet_v2"``.
        width: multiplies the backbone's channels.
        channels: of the features that are correlated.
        search, exemplar: sides of the crops.
        scales: how many sizes of the target a tracker tries on every frame.
        penalty, window, rate: how the tracker weighs candidates, as ``TrackerSettings`` has them; the paper's.
    """

    backbone: str
    width: float = 1.0
    channels: int = 256
    search: int = 255
    exemplar: int = 127
    scales: int = 3
    penalty: float = 0.9745
    window: float = 0.176
    rate: float = 0.59

    def __post_init__(self) -> None:
        if self.backbone not in BACKBONES:
            raise InputError(unknown("backbone", self.backbone, BACKBONES))
        check_width(self.width)
        if self.channels < 2 or self.channels % 2:
            raise InputError(f"channels is an even number from 2, got {self.channels}")


ALEXNET = Variant("alexnet")
MOBILENET = Variant("mobilenet_v2", channels=128)


def siamfc_alexnet(**options: Any) -> SiamFC:
    """SiamFC as in the paper, but for the search at 3 scales instead of 5 (the authors' SiamFC-3s)."""
    return SiamFC(sibling(ALEXNET, options))


def siamfc_mobilenet(**options: Any) -> SiamFC:
    """SiamFC on the first stages of MobileNetV2."""
    return SiamFC(sibling(MOBILENET, options))


class SiamFC(Siamese):
    """Exemplar and search crop to one response per place of the exemplar."""

    def __init__(self, variant: Variant) -> None:
        settings = TrackerSettings(
            head="peak",
            exemplar=variant.exemplar,
            search=variant.search,
            stride=8,
            penalty=variant.penalty,
            window=variant.window,
            rate=variant.rate,
            scales=variant.scales,
            step=1.0375,
        )
        super().__init__(settings, Preprocess(size=(variant.search, variant.search)))
        self.variant = variant
        self.backbone = (
            AlexNet(variant) if variant.backbone == "alexnet" else MobileNetFeatures(variant.width, variant.channels)
        )
        # The paper's final scale and bias: correlations of hundreds of channels are far too large for a logistic loss.
        self.adjust = nn.Conv2d(1, 1, 1)
        initialize(self)
        nn.init.constant_(self.adjust.weight, 1e-3)

    def template(self, image: Tensor) -> Tensor:
        features: Tensor = self.backbone(image)
        return features

    def search(self, features: Tensor, image: Tensor) -> Tensor:
        """``score`` ``[batch, 1, rows, columns]``: the logit of the target's centre being there."""
        logits: Tensor = self.adjust(correlate(features, self.backbone(image)))
        return logits


class AlexNet(nn.Sequential):
    """The paper's five convolutions without padding, batch norm after all but the last: stride 8."""

    def __init__(self, variant: Variant) -> None:
        layers: list[nn.Module] = []
        inputs = 3
        for index, (kernel, stride, channels, groups, pooled) in enumerate(LAYERS):
            last = index == len(LAYERS) - 1
            outputs = variant.channels if last else max(2, int(channels * variant.width) // 2 * 2)
            convolution = nn.Conv2d(inputs, outputs, kernel, stride, groups=groups, bias=last)
            after = [] if last else [nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]
            layers.append(nn.Sequential(convolution, *after, *([nn.MaxPool2d(3, 2)] if pooled else [])))
            inputs = outputs
        super().__init__(*layers)

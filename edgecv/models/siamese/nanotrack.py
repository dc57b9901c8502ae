"""NanoTrack: a MobileNetV3-small cut at stride 16, pixelwise correlation, an anchor-free head.

The layers are those of the weights and graphs published in HonglinChu/SiamTrackers (Apache-2.0). The head is SiamBAN's
(Chen et al., 2020, arXiv:2003.06761), the correlation Alpha-Refine's (Yan et al., 2020, arXiv:2012.06815).
"""

from __future__ import annotations

from collections.abc import MutableMapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from edgecv.errors import InputError
from edgecv.models.layers import Padding, check_width, conv, divisible, initialize
from edgecv.models.mobilenet_v3 import SMALL, Row, hardswish, relu
from edgecv.models.siamese.branches import Siamese
from edgecv.models.siamese.variants import sibling
from edgecv.pipelines.tracking.confidence import Confidence
from edgecv.pipelines.tracking.settings import TrackerSettings
from edgecv.preprocess import Preprocess

__all__ = ["V1", "V2", "NanoTrack", "Tower", "Variant", "nanotrack_v1", "nanotrack_v2"]

PAD = Padding("symmetric")
STAGES = 8  # blocks of MobileNetV3-small that are kept: 48 channels at stride 16
STRIDE = 16


@dataclass(frozen=True, slots=True)
class Tower:
    """One branch of the head: its channels, and the kernel of each depthwise-separable layer."""

    channels: int
    kernels: tuple[int, ...]

    def __post_init__(self) -> None:
        if self.channels < 1 or not self.kernels or any(kernel < 1 or kernel % 2 == 0 for kernel in self.kernels):
            raise InputError(f"a tower has 1 channel or more and odd kernels, got {self.channels} and {self.kernels}")


@dataclass(frozen=True, slots=True)
class Variant:
    """One sibling of the family.

    Args:
        score, box: the two branches.
        shared: one correlation of the bare features serves both branches; otherwise each projects them first.
        width: multiplies the backbone's channels.
        search: side of the search crop; the answer has a cell for every 16 pixels of it, rounded up.
        exemplar: side of the exemplar crop.
        color: order of the channels that the network takes.
        penalty, window, rate: how the tracker weighs candidates, as ``TrackerSettings`` has them.
        confidence: constants of the tracker's status.
        published: names of the parts in the published weights where they differ from ours.
    """

    score: Tower
    box: Tower
    shared: bool
    penalty: float
    window: float
    rate: float
    confidence: Confidence | None = None
    width: float = 1.0
    search: int = 255
    exemplar: int = 127
    color: Literal["rgb", "bgr"] = "bgr"
    published: dict[str, str] | None = None


# Layers as in the published graphs; penalty, window and rate as in the published configuration of each version. The
# confidence was fitted with the published weights on VOT2013 car and VOT2015 car1 (benchmarks/trackers.py --status).
V1 = Variant(
    score=Tower(128, (5, 5, 3)),
    box=Tower(96, (3, 3, 5, 5)),
    shared=True,
    penalty=0.148,
    window=0.462,
    rate=0.390,
    confidence=Confidence((-16.28, 1.186, 3.93, 4.309), (-17.28, 1.317, 2.736, 3.052, 8.927)),
    published={
        "ban_head.corr_pw.CA_layer.": "correlations.0.attention.",
        "ban_head.cls_tower.": "score.",
        "ban_head.bbox_tower.": "box.",
        "ban_head.cls_logits.0.": "logits.",
        "ban_head.bbox_pred.0.": "sides.",
    },
)
V2 = Variant(
    score=Tower(96, (3,) * 6),
    box=Tower(96, (3,) * 6),
    shared=False,
    penalty=0.150,
    window=0.490,
    rate=0.385,
    confidence=Confidence((-12.8, 0.8333, -0.04419, 3.677), (-19.26, 1.263, -0.3269, 1.69, 21.37)),
    published={
        "ban_head.corr_pw_cls.CA_layer.": "correlations.0.attention.",
        "ban_head.corr_pw_cls.conv_kernel.": "correlations.0.kernel.",
        "ban_head.corr_pw_cls.conv_search.": "correlations.0.search.",
        "ban_head.corr_pw_reg.CA_layer.": "correlations.1.attention.",
        "ban_head.corr_pw_reg.conv_kernel.": "correlations.1.kernel.",
        "ban_head.corr_pw_reg.conv_search.": "correlations.1.search.",
        "ban_head.cls_pw_tower.": "score.",
        "ban_head.bbox_pw_tower.": "box.",
        "ban_head.cls_pred.0.": "logits.",
        "ban_head.bbox_pred.0.": "sides.",
    },
)


def nanotrack_v1(**options: Any) -> NanoTrack:
    """NanoTrack v1: one shared correlation, towers of 3 and 4 layers."""
    return NanoTrack(sibling(V1, options))


def nanotrack_v2(**options: Any) -> NanoTrack:
    """NanoTrack v2: a correlation for each branch, towers of 6 layers."""
    return NanoTrack(sibling(V2, options))


class NanoTrack(Siamese):
    """Exemplar and search crop to a score and a box for every cell of a grid.

    Images are float 0-255, BGR unless the variant says otherwise. The published weights load strictly, although they
    have other names and a neck that no published graph uses.
    """

    def __init__(self, variant: Variant) -> None:
        settings = TrackerSettings(
            head="points",
            exemplar=variant.exemplar,
            search=variant.search,
            stride=STRIDE,
            penalty=variant.penalty,
            window=variant.window,
            rate=variant.rate,
            confidence=variant.confidence,
        )
        as_is = (1 / 255, 1 / 255, 1 / 255)
        super().__init__(settings, Preprocess(size=(variant.search, variant.search), std=as_is, color=variant.color))
        self.variant = variant
        self.backbone = Backbone(variant.width)
        cells = (-(-variant.exemplar // STRIDE)) ** 2
        channels = SMALL[STAGES - 1].scaled(variant.width).channels
        count = 1 if variant.shared else 2
        self.correlations = nn.ModuleList(Correlation(channels, cells, not variant.shared) for _ in range(count))
        self.score = tower(cells, variant.score)
        self.box = tower(cells, variant.box)
        self.logits = nn.Conv2d(variant.score.channels, 2, 1)
        self.sides = nn.Conv2d(variant.box.channels, 4, 1)
        initialize(self)
        self.register_load_state_dict_pre_hook(_take_published)  # type: ignore[no-untyped-call]  # torch's own

    def template(self, image: Tensor) -> Tensor:
        features: Tensor = self.backbone(image)
        return features

    def search(self, features: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        """``score`` ``[batch, 2, rows, columns]``, logits of background and target, and ``box``
        ``[batch, 4, rows, columns]``, the distances in pixels from a cell's point to the left, top, right and bottom.
        """
        return self.compare(features, self.backbone(image))

    def compare(self, features: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        """The head: the backbone's answers to the exemplar and to the search crop."""
        found = [correlation(features, image) for correlation in self.correlations]
        return self.logits(self.score(found[0])), self.sides(self.box(found[-1])).exp()


class Backbone(nn.Module):
    """The first blocks of MobileNetV3-small, as in the published weights: they squeeze before the activation."""

    def __init__(self, width: float) -> None:
        super().__init__()
        check_width(width)
        channels = divisible(16 * width)
        layers: list[nn.Module] = [
            nn.Sequential(conv(3, channels, 3, 2, pad=PAD), nn.BatchNorm2d(channels), hardswish())
        ]
        for row in (row.scaled(width) for row in SMALL[:STAGES]):
            layers.append(Block(channels, row))
            channels = row.channels
        self.features = nn.Sequential(*layers)

    def forward(self, image: Tensor) -> Tensor:
        features: Tensor = self.features(image)
        return features


class Block(nn.Module):
    """Expand, filter each channel, weigh the channels, project; with the input added where the shape stays."""

    def __init__(self, inputs: int, row: Row) -> None:
        super().__init__()
        activation = hardswish if row.swish else relu
        squeeze = SqueezeExcite(row.hidden) if row.squeeze else nn.Identity()
        filters = [
            conv(row.hidden, row.hidden, row.kernel, row.stride, row.hidden, pad=PAD),
            nn.BatchNorm2d(row.hidden),
        ]
        project = [conv(row.hidden, row.channels, 1, pad=PAD), nn.BatchNorm2d(row.channels)]
        self.residual = row.stride == 1 and inputs == row.channels
        if row.hidden == inputs:
            self.conv = nn.Sequential(*filters, activation(), squeeze, *project)
        else:
            expand = [conv(inputs, row.hidden, 1, pad=PAD), nn.BatchNorm2d(row.hidden), activation()]
            self.conv = nn.Sequential(*expand, *filters, squeeze, activation(), *project)

    def forward(self, image: Tensor) -> Tensor:
        out: Tensor = self.conv(image)
        return image + out if self.residual else out


class SqueezeExcite(nn.Module):
    """Weigh each channel by what all channels hold, with linear layers and a hard sigmoid."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = divisible(channels // 4)
        self.fc = nn.Sequential(nn.Linear(channels, hidden), nn.ReLU(), nn.Linear(hidden, channels), nn.Hardsigmoid())

    def forward(self, image: Tensor) -> Tensor:
        weights: Tensor = self.fc(image.mean((2, 3)))
        return image * weights[:, :, None, None]


class Correlation(nn.Module):
    """Pixelwise correlation: one channel for each cell of the exemplar, then weighed against each other."""

    def __init__(self, channels: int, cells: int, project: bool) -> None:
        super().__init__()
        self.kernel = projection(channels) if project else nn.Identity()
        self.search = projection(channels) if project else nn.Identity()
        self.attention = Attention(cells)

    def forward(self, exemplar: Tensor, image: Tensor) -> Tensor:
        kernel, search = self.kernel(exemplar).flatten(2), self.search(image)
        found = torch.matmul(kernel.transpose(1, 2), search.flatten(2))
        weighed: Tensor = self.attention(found.reshape(found.shape[0], found.shape[1], *search.shape[2:]))
        return weighed


class Attention(nn.Module):
    """Weigh each channel by what all channels hold, with a sigmoid and no bottleneck."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, channels, 1)
        self.fc2 = nn.Conv2d(channels, channels, 1)

    def forward(self, image: Tensor) -> Tensor:
        pooled = image.mean((2, 3), keepdim=True)
        return image * torch.sigmoid(self.fc2(torch.relu(self.fc1(pooled))))


def projection(channels: int) -> nn.Sequential:
    """A 1x1 convolution and its batch norm."""
    return nn.Sequential(nn.Conv2d(channels, channels, 1), nn.BatchNorm2d(channels))


def tower(inputs: int, shape: Tower) -> nn.Sequential:
    """Depthwise-separable layers with one batch norm each."""
    layers: list[nn.Module] = []
    for kernel in shape.kernels:
        layers += [
            conv(inputs, inputs, kernel, 1, inputs, pad=PAD),
            conv(inputs, shape.channels, 1, pad=PAD),
            nn.BatchNorm2d(shape.channels),
            nn.ReLU6(inplace=True),
        ]
        inputs = shape.channels
    return nn.Sequential(*layers)


def _take_published(network: NanoTrack, state: MutableMapping[str, Any], prefix: str, *_: Any) -> None:
    """Rename what comes under published names, and drop the unused neck that comes with them."""
    published = network.variant.published or {}
    if not any(key.startswith(f"{prefix}ban_head.") for key in state):
        return
    for key in list(state):
        bare = key.removeprefix(prefix)
        if bare.startswith("neck."):
            del state[key]
        for theirs, ours in published.items():
            if bare.startswith(theirs):
                state[f"{prefix}{ours}{bare.removeprefix(theirs)}"] = state.pop(key)

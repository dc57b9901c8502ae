"""ResNet-18: residual learning with basic blocks (He et al., 2015, arXiv:1512.03385)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edgecv.models.mobilenet_v2 import initialize
from edgecv.models.recipe import check_options

__all__ = ["ResNet", "resnet18"]


def resnet18(num_classes: int = 1000, stem: str = "imagenet") -> ResNet:
    """ResNet-18; ``stem="small"`` starts with a 3x3 convolution of stride 1, no pooling (section 4.2 of the paper)."""
    return ResNet((2, 2, 2, 2), num_classes, stem)


class ResNet(nn.Module):
    """A ResNet of basic blocks with torchvision's state-dict keys; ``depths`` counts the blocks of the four stages."""

    def __init__(self, depths: tuple[int, int, int, int], num_classes: int = 1000, stem: str = "imagenet") -> None:
        super().__init__()
        check_options(num_classes, stem)
        small = stem == "small"
        self.conv1 = nn.Conv2d(3, 64, 3 if small else 7, 1 if small else 2, 1 if small else 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.maxpool = nn.Identity() if small else nn.MaxPool2d(3, 2, 1)
        self.layer1 = _stage(64, 64, depths[0], stride=1)
        self.layer2 = _stage(64, 128, depths[1], stride=2)
        self.layer3 = _stage(128, 256, depths[2], stride=2)
        self.layer4 = _stage(256, 512, depths[3], stride=2)
        self.fc = nn.Linear(512, num_classes)
        initialize(self)

    def forward(self, image: Tensor) -> Tensor:
        x = self.maxpool(torch.relu(self.bn1(self.conv1(image))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        logits: Tensor = self.fc(x.mean((2, 3)))
        return logits


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with the input added; a 1x1 projection fits the input where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample: nn.Module | None = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, image: Tensor) -> Tensor:
        out = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(image)))))
        return torch.relu(out + (image if self.downsample is None else self.downsample(image)))


def _stage(inputs: int, outputs: int, depth: int, stride: int) -> nn.Sequential:
    blocks = [BasicBlock(inputs, outputs, stride)]
    return nn.Sequential(*blocks, *(BasicBlock(outputs, outputs, 1) for _ in range(depth - 1)))

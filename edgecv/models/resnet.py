"""ResNet for photographs and for CIFAR: residual learning (He et al., 2015, arXiv:1512.03385)."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgecv.models.layers import initialize
from edgecv.models.recipe import check_options

__all__ = [
    "CifarResNet",
    "ResNet",
    "resnet18",
    "resnet20",
    "resnet32",
    "resnet34",
    "resnet44",
    "resnet50",
    "resnet56",
    "resnet110",
]


class ResNet(nn.Module):
    """A ResNet with torchvision's state-dict keys; ``depths`` counts the blocks of the four stages.

    ``stem="small"`` starts with a 3x3 convolution of stride 1 and no pooling, for images of about 32 pixels.
    """

    def __init__(
        self,
        block: type[BasicBlock | Bottleneck],
        depths: tuple[int, int, int, int],
        num_classes: int = 1000,
        stem: str = "imagenet",
    ) -> None:
        super().__init__()
        check_options(num_classes, stem)
        small = stem == "small"
        self.conv1 = nn.Conv2d(3, 64, 3 if small else 7, 1 if small else 2, 1 if small else 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.maxpool = nn.Identity() if small else nn.MaxPool2d(3, 2, 1)
        grow = block.EXPANSION
        self.layer1 = _stage(block, 64, 64, depths[0], stride=1)
        self.layer2 = _stage(block, 64 * grow, 128, depths[1], stride=2)
        self.layer3 = _stage(block, 128 * grow, 256, depths[2], stride=2)
        self.layer4 = _stage(block, 256 * grow, 512, depths[3], stride=2)
        self.fc = nn.Linear(512 * grow, num_classes)
        initialize(self)

    def forward(self, image: Tensor) -> Tensor:
        x = self.maxpool(torch.relu(self.bn1(self.conv1(image))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        logits: Tensor = self.fc(x.mean((2, 3)))
        return logits


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with the input added; a 1x1 projection fits the input where the shape changes."""

    EXPANSION = 1

    def __init__(self, inputs: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample = _projection(inputs, channels, stride)

    def forward(self, image: Tensor) -> Tensor:
        out = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(image)))))
        return torch.relu(out + (image if self.downsample is None else self.downsample(image)))


class Bottleneck(nn.Module):
    """1x1 down, 3x3, 1x1 up, with the input added; the stride is in the 3x3, where torchvision has it."""

    EXPANSION = 4

    def __init__(self, inputs: int, channels: int, stride: int) -> None:
        super().__init__()
        outputs = channels * self.EXPANSION
        self.conv1 = nn.Conv2d(inputs, channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = nn.Conv2d(channels, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.downsample = _projection(inputs, outputs, stride)

    def forward(self, image: Tensor) -> Tensor:
        out = torch.relu(self.bn1(self.conv1(image)))
        out = self.bn3(self.conv3(torch.relu(self.bn2(self.conv2(out)))))
        return torch.relu(out + (image if self.downsample is None else self.downsample(image)))


class CifarResNet(nn.Module):
    """The ResNets of the paper's section 4.2 for 32x32 images: three stages of ``blocks`` blocks, 16 to 64 channels.

    The input is added without parameters: every second pixel, new channels zero (option A). The state-dict keys are
    those of the most used published weights (akamaster/pytorch_resnet_cifar10). ``stem`` is always the small one.
    """

    def __init__(self, blocks: int, num_classes: int = 10, stem: str = "small") -> None:
        super().__init__()
        check_options(num_classes, stem)
        self.conv1 = nn.Conv2d(3, 16, 3, 2 if stem == "imagenet" else 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = nn.Sequential(*(PlainBlock(16, 16) for _ in range(blocks)))
        self.layer2 = nn.Sequential(*(PlainBlock(16 if i == 0 else 32, 32) for i in range(blocks)))
        self.layer3 = nn.Sequential(*(PlainBlock(32 if i == 0 else 64, 64) for i in range(blocks)))
        self.linear = nn.Linear(64, num_classes)
        initialize(self)

    def forward(self, image: Tensor) -> Tensor:
        x = torch.relu(self.bn1(self.conv1(image)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.linear(x.mean((2, 3)))
        return logits


class PlainBlock(nn.Module):
    """Two 3x3 convolutions with the input added; where channels double, every second pixel of it."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.grow = outputs - inputs
        self.conv1 = nn.Conv2d(inputs, outputs, 3, 2 if self.grow else 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)

    def forward(self, image: Tensor) -> Tensor:
        out = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(image)))))
        if self.grow:
            image = functional.pad(image[:, :, ::2, ::2], (0, 0, 0, 0, self.grow // 2, self.grow // 2))
        return torch.relu(out + image)


def _projection(inputs: int, outputs: int, stride: int) -> nn.Sequential | None:
    if stride == 1 and inputs == outputs:
        return None
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))


def _stage(
    block: type[BasicBlock | Bottleneck], inputs: int, channels: int, depth: int, *, stride: int
) -> nn.Sequential:
    rest = (block(channels * block.EXPANSION, channels, 1) for _ in range(depth - 1))
    return nn.Sequential(block(inputs, channels, stride), *rest)


resnet18 = partial(ResNet, BasicBlock, (2, 2, 2, 2))
resnet34 = partial(ResNet, BasicBlock, (3, 4, 6, 3))
resnet50 = partial(ResNet, Bottleneck, (3, 4, 6, 3))
resnet20, resnet32, resnet44, resnet56, resnet110 = (partial(CifarResNet, n) for n in (3, 5, 7, 9, 18))

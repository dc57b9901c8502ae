"""What several architectures are built of."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional

from edgecv.errors import InputError
from edgecv.plugins import unknown

__all__ = ["Padding", "SameConv2d", "conv", "conv_bn", "divisible", "initialize"]

PADDINGS = ("symmetric", "same_tf")
Activation = Callable[[], nn.Module] | None


class Padding:
    """How an architecture pads its convolutions, by name.

    ``"symmetric"`` is PyTorch's. ``"same_tf"`` is TensorFlow's SAME, which pads a stride of 2 at the right and bottom
    only: weights that come from TensorFlow lose 9 to 24 points of top-1 without it.
    """

    def __init__(self, name: str) -> None:
        if name not in PADDINGS:
            raise InputError(unknown("padding", name, PADDINGS))
        self.kind: type[nn.Conv2d] = SameConv2d if name == "same_tf" else nn.Conv2d


class SameConv2d(nn.Conv2d):
    """A convolution padded as TensorFlow's SAME: ``ceil(size / stride)`` out, the odd pixel at the right and bottom.

    Its state-dict keys are those of ``nn.Conv2d``. (TensorFlow documentation, "Notes on padding".)
    """

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  (nn.Conv2d's own name)
        top, bottom = self._sides(input.shape[2], 0)
        left, right = self._sides(input.shape[3], 1)
        padded = functional.pad(input, (left, right, top, bottom))
        return functional.conv2d(padded, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)

    def _sides(self, size: int, axis: int) -> tuple[int, int]:
        stride, reach = self.stride[axis], self.dilation[axis] * (self.kernel_size[axis] - 1) + 1
        total = max(0, (-(-size // stride) - 1) * stride + reach - size)
        return total // 2, total - total // 2


def conv(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1, *, pad: Padding) -> nn.Conv2d:
    """A convolution without bias, padded so that stride 1 keeps the size."""
    return pad.kind(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)


def conv_bn(
    convolution: nn.Conv2d, activation: Activation, norm: Callable[[int], nn.Module] = nn.BatchNorm2d
) -> nn.Sequential:
    """A convolution, its batch norm, and an activation where there is one."""
    after = [activation()] if activation else []
    return nn.Sequential(convolution, norm(convolution.out_channels), *after)


def divisible(channels: float, by: int = 8) -> int:
    """Round to a multiple of ``by``, never losing more than a tenth (the rule of the MobileNet authors' code)."""
    rounded = max(by, int(channels + by / 2) // by * by)
    return rounded + by if rounded < 0.9 * channels else rounded


def check_width(width: float) -> None:
    """Refuse a width multiplier that no architecture can be built with."""
    if not isinstance(width, (int, float)) or not 0 < width <= 10:
        raise InputError(f"width is above 0 and at most 10, got {width!r}")


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

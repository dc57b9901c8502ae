"""Cross-correlation of a search crop's features with an exemplar's, without a convolution whose kernel is an input.

A convolution with a run-time kernel exports with a fixed batch only, and TensorRT and int8 tools refuse or slow it. The
forms below are matrix products and sums, the same numbers to float rounding, and export with a free batch.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["correlate", "correlate_channels"]


def correlate(kernel: Tensor, image: Tensor) -> Tensor:
    """Correlate each image of a batch with its own kernel, all channels together.

    Args:
        kernel: ``[batch, channels, height, width]``.
        image: ``[batch, channels, rows, columns]``, at least as large.

    Returns:
        ``[batch, 1, rows - height + 1, columns - width + 1]``, as ``conv2d`` of every image alone gives it.
    """
    height, width = kernel.shape[2:]
    rows, columns = image.shape[2] - height + 1, image.shape[3] - width + 1
    across = image.shape[3]
    # One product for all cells of the kernel: [batch, height, width, pixels]. Each cell's pixels must then be read from
    # the cell's own place on: along the width a pixel further for every cell, along the height a row further.
    products = torch.matmul(kernel.flatten(2).transpose(1, 2), image.flatten(2))
    products = products.reshape(products.shape[0], height, width, products.shape[2])
    strips = _shifted_sum(products, 1)
    found = _shifted_sum(strips, across)[..., : rows * across - width + 1]
    padded = functional.pad(found, (0, width - 1))
    return padded.reshape(padded.shape[0], 1, rows, across)[..., :columns]


def correlate_channels(kernel: Tensor, image: Tensor) -> Tensor:
    """Correlate every channel of an image with the same channel of its kernel: SiamRPN++'s depthwise correlation.

    Shapes are those of ``correlate``, but the answer keeps its channels: ``[batch, channels, rows, columns]``.
    """
    height, width = kernel.shape[2:]
    rows, columns = image.shape[2] - height + 1, image.shape[3] - width + 1
    wide = torch.stack([image[..., column : column + columns] for column in range(width)], 2)
    windows = torch.stack([wide[..., row : row + rows, :] for row in range(height)], 2)
    windows = windows.flatten(2, 3).flatten(3)  # [batch, channels, cells of the kernel, places]
    found = torch.matmul(kernel.flatten(2).unsqueeze(2), windows)
    return found.reshape(found.shape[0], found.shape[1], rows, columns)


def _shifted_sum(values: Tensor, step: int) -> Tensor:
    """Sum ``[…, parts, length]`` over its parts, part ``i`` from place ``i * step`` on, as far as all of them reach.

    Read as rows that are ``step`` longer, the same numbers in the same order are shifted by just that.
    """
    parts, length = values.shape[-2:]
    padded = functional.pad(values.flatten(-2), (0, parts * step))
    sheared = padded.reshape(*values.shape[:-2], parts, length + step)
    return sheared[..., : length - (parts - 1) * step].sum(-2)

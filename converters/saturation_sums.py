"""Integer arithmetic of one layer: exact sums, what saturating pairs leave out of them, and the way back to bytes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgecv.converters.saturation_cells import Cell
from edgecv.tensors import Array

__all__ = ["Sums", "add_up", "give", "risky_pairs"]

LOW, HIGH = -(2**15), 2**15 - 1
RISKY = 129  # |w0 + w1|: 255 x 129 leaves 16 bits, 255 x 128 does not; of opposite signs no pair leaves them


@dataclass(frozen=True, slots=True)
class Sums:
    """A layer's accumulators ``[groups, outputs, places]`` without saturation, and what saturation takes from them.

    ``pairs`` counts the sums of two products, ``saturated`` those of them that 16 bits cut off.
    """

    exact: Array
    excess: Array
    pairs: int
    saturated: int
    shape: tuple[int, ...]  # of the batch and the places; the outputs come behind the batch


def risky_pairs(cell: Cell) -> Array:
    """Which pairs of weights can saturate: bool ``[groups, outputs, pairs]``."""
    weight = cell.weight.astype(np.int16)
    result: Array = np.abs(weight[:, :, 0::2] + weight[:, :, 1::2]) >= RISKY
    return result


def add_up(cell: Cell, values: Array) -> Sums:
    """The sums of one layer on ``values``, the bytes it reads."""
    columns, shape = _columns(cell, values)
    point = int(cell.input.zero_point.ravel()[0])
    weight = cell.weight.astype(np.float64)  # holds every sum exactly
    exact = (weight @ columns.astype(np.float64)).astype(np.int64)
    offset = cell.bias.reshape(*cell.weight.shape[:2], 1) - point * cell.weight.sum(2, np.int64, keepdims=True)
    excess = np.zeros(exact.shape, np.int64)
    risky = risky_pairs(cell)
    groups = range(len(cell.weight))
    saturated = sum(_cut_off(cell.weight[group], columns[group], risky[group], excess[group]) for group in groups)
    return Sums(exact + offset, excess, exact.size * (cell.weight.shape[2] // 2), saturated, shape)


def give(cell: Cell, sums: Array, shape: tuple[int, ...]) -> Array:
    """What the layer gives for accumulators ``[groups, outputs, places]``: bytes, or floats."""
    flat = sums.reshape(cell.step.size, -1).astype(np.float32)
    if cell.output is None:
        result = flat * cell.step[:, np.newaxis]
    else:
        point, scale = (numbers.ravel()[0] for numbers in (cell.output.zero_point, cell.output.scale))
        low, high = (np.float32(limit - int(point)) for limit in cell.output.limits)
        steps = np.rint(np.clip(flat * (cell.step / scale)[:, np.newaxis], low, high))
        result = (steps + np.float32(point)).astype(cell.output.dtype)
    if cell.window is None:
        return np.ascontiguousarray(result.T).reshape(*shape, -1)
    return np.ascontiguousarray(result.reshape(-1, *shape).swapaxes(0, 1))


def _columns(cell: Cell, values: Array) -> tuple[Array, tuple[int, ...]]:
    """The bytes that each product multiplies: ``[groups, products, places]``; and the shape of the places."""
    groups, _, products = cell.weight.shape
    if cell.window is None:
        flat = values.reshape(-1, values.shape[-1]).T[np.newaxis]
        return np.pad(flat, ((0, 0), (0, products - flat.shape[1]), (0, 0))), values.shape[:-1]
    around = cell.window.padding(values.shape[2:])
    point = cell.input.zero_point.ravel()[0]
    views = cell.window.views(np.pad(values, ((0, 0), (0, 0), *around), constant_values=point))
    batch, channels, *sizes = views[0].shape
    stacked = np.stack(views).reshape(len(views), batch, groups, channels // groups, -1).transpose(2, 0, 3, 1, 4)
    stacked = np.pad(stacked, ((0, 0), (0, 0), (0, cell.padded - channels // groups), (0, 0), (0, 0)))
    flat = stacked.reshape(groups, len(views) * cell.padded, -1)
    return np.pad(flat, ((0, 0), (0, products - flat.shape[1]), (0, 0))), (batch, *sizes)


def _cut_off(weight: Array, columns: Array, risky: Array, excess: Array) -> int:
    """Add to ``excess`` ``[outputs, places]`` what the pairs of one group lose; return how many of them do."""
    saturated, weight = 0, weight.astype(np.int32)
    for pair in np.flatnonzero(risky.any(0)):
        rows = np.flatnonzero(risky[:, pair])
        left, right = weight[rows, 2 * pair], weight[rows, 2 * pair + 1]
        a, b = columns[2 * pair].astype(np.int32), columns[2 * pair + 1].astype(np.int32)
        places = np.flatnonzero(a * np.abs(left).max() + b * np.abs(right).max() > HIGH)
        sums = np.multiply.outer(left, a[places]) + np.multiply.outer(right, b[places])
        lost = sums - np.clip(sums, LOW, HIGH)
        saturated += int(np.count_nonzero(lost))
        excess[np.ix_(rows, places)] += lost
    return saturated

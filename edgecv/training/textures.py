"""Random textures, outlines and smooth ways: what synthetic sequences are made of."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgecv.pipelines.tracking.crops import opencv

__all__ = ["Path2D", "outline", "shape_mask", "texture"]

Frame = NDArray[np.uint8]
Floats = NDArray[np.float64]
OCTAVES = 4
FINER = 8
CORNERS = 40  # of the polygon that stands for a round outline


class Path2D:
    """A smooth random way around (0, 0): two values for each frame, never beyond ``reach``.

    Each is a sum of two sines, whose speed is about ``speed`` a frame where the reach allows it.
    """

    def __init__(self, random: np.random.Generator, speed: float, reach: tuple[float, float]) -> None:
        shares = random.uniform(0.35, 0.65, 2)
        self._heights = np.array([[share * far, (1 - share) * far] for share, far in zip(shares, reach, strict=True)])
        steps = random.uniform(0.4, 1.0, (2, 2)) * speed
        self._rates = np.minimum(steps / np.maximum(self._heights, 1e-9), 0.4) * (self._heights > 0)
        self._starts = random.uniform(0, 2 * np.pi, (2, 2))

    def __call__(self, index: int) -> Floats:
        return np.asarray((self._heights * np.sin(self._rates * index + self._starts)).sum(1), np.float64)


def texture(random: np.random.Generator, size: tuple[int, int], coarse: int) -> Frame:
    """Coloured noise of several octaves with stripes or spots, uint8 ``[height, width, 3]``.

    ``coarse`` cells of the first octave lie along the shorter side.
    """
    height, width = size
    total = np.zeros((height, width, 3), np.float32)
    shorter = min(size)
    for octave in range(OCTAVES):
        cells = coarse * 2**octave
        rows, columns = (max(2, min(side, round(side * cells / shorter))) for side in size)
        grain = random.normal(0, 0.6**octave, (rows, columns, 3)).astype(np.float32)
        total += opencv().resize(grain, (width, height), interpolation=opencv().INTER_CUBIC)
    base, marks = random.uniform(50, 205, 3), _marks(random, size, shorter / coarse)[..., None]
    return np.clip(base + 38 * total + marks * random.uniform(-70, 70, 3), 0, 255).astype(np.uint8)


def shape_mask(kind: int, side: int) -> NDArray[np.float32]:
    """How much of each pixel of a patch the shape covers, 0-1, ``[side, side]``: 0 an ellipse, 1 a box, 2 a kite."""
    # Finer, then averaged: fillPoly takes every pixel that an edge touches, half a pixel too many on each side.
    mask = np.zeros((FINER * side, FINER * side), np.uint8)
    opencv().fillPoly(mask, [np.rint(outline(kind, side) * FINER - 0.5).astype(np.int32)], 255)
    small: NDArray[np.uint8] = opencv().resize(mask, (side, side), interpolation=opencv().INTER_AREA)
    return np.asarray(small / 255, np.float32)


def outline(kind: int, side: int) -> Floats:
    """Corners ``[corners, 2]`` (x, y) of a shape that fills a patch but for one pixel around it."""
    if kind == 0:
        angles = np.arange(CORNERS) * (2 * np.pi / CORNERS)
        units = np.stack([np.cos(angles), np.sin(angles)], 1)
    elif kind == 1:
        units = np.array([(-1.0, -1.0), (1.0, -1.0), (1.0, 1.0), (-1.0, 1.0)])
    else:
        units = np.array([(-1.0, -0.2), (0.1, -1.0), (1.0, -0.3), (0.6, 1.0), (-0.7, 0.8)])
    return np.asarray(side / 2 + units * (side / 2 - 1), np.float64)


def _marks(random: np.random.Generator, size: tuple[int, int], period: float) -> NDArray[np.float64]:
    """Stripes, or spots in rows, -1 to 1."""
    y, x = np.mgrid[: size[0], : size[1]]
    angle, phase = random.uniform(0, np.pi), random.uniform(0, 2 * np.pi, 2)
    along, across = np.cos(angle) * x + np.sin(angle) * y, np.cos(angle) * y - np.sin(angle) * x
    first = np.sin(2 * np.pi * along / period + phase[0])
    if random.random() < 0.5:
        return np.asarray(np.clip(3 * first, -1, 1))
    return np.asarray(np.clip(3 * first * np.sin(2 * np.pi * across / period + phase[1]), -1, 1))

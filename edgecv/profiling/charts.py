"""Charts as SVG text, for pages that load nothing."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np
from numpy.typing import NDArray

__all__ = ["curve", "histogram", "run_by_run"]

WIDTH, LEFT, RIGHT = 720, 56, 16


def histogram(samples: NDArray[np.float64], limits: tuple[float, float], marks: dict[str, float], series: int) -> str:
    """How often each latency occurred, on a logarithmic axis over ``limits`` in ms, with ``marks`` (name to ms) on it.

    Equal distances are equal ratios, so that backends of very different speed show their shape on one axis. Samples
    above the upper limit are not drawn.
    """
    height, base = 130, 96
    edges = np.geomspace(*limits, 110)
    counts, _ = np.histogram(samples, bins=edges)
    peak = max(1, int(counts.max()))
    bars = []
    for count, left, right in zip(counts, _place(edges[:-1], limits), _place(edges[1:], limits), strict=True):
        if count:
            tall = max(1.0, 84 * count / peak)
            bars.append(
                f'<rect x="{left:.1f}" y="{base - tall:.1f}" width="{right - left - 0.6:.1f}" height="{tall:.1f}"/>'
            )
    return _svg(
        height,
        f'<g class="s{series}">{"".join(bars)}</g>',
        _axis(limits, base, "ms"),
        *_marks(marks, limits, base),
    )


def run_by_run(samples: NDArray[np.float64], series: int) -> str:
    """Latency in the order of the runs, so that drift and disturbances can be seen; at most 1500 runs are drawn."""
    height, base = 110, 84
    drawn = samples[:: max(1, len(samples) // 1500)]
    low, high = float(drawn.min()), float(np.percentile(drawn, 99.5))
    high = max(high, low * 1.05)
    across = (WIDTH - LEFT - RIGHT) / max(1, len(drawn) - 1)
    dots = []
    for index, value in enumerate(np.minimum(drawn, high)):
        y = base - 72 * (value - low) / (high - low)
        dots.append(f"M{LEFT + index * across:.1f} {y:.1f}h.01")
    return _svg(
        height,
        f'<path class="dots s{series}" d="{"".join(dots)}"/>',
        _side(low, base),
        _side(high, base - 72),
        f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{base}" y2="{base}"/>',
        f'<text x="{LEFT}" y="{base + 16}">first run</text>',
        f'<text x="{WIDTH - RIGHT}" y="{base + 16}" text-anchor="end">run {len(samples):,}</text>',
    )


def curve(values: Sequence[float], name: str, series: int) -> str:
    """One value per epoch, from 0 to 1."""
    height, base = 130, 100
    across = (WIDTH - LEFT - RIGHT) / max(1, len(values) - 1)
    points = [(LEFT + i * across, base - 84 * value) for i, value in enumerate(values)]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    dots = "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.6"/>' for x, y in points)
    rules = "".join(
        f'<line class="rule" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{base - 84 * share}" y2="{base - 84 * share}"/>'
        f'<text x="{LEFT - 8}" y="{base - 84 * share + 4}" text-anchor="end">{share:.1f}</text>'
        for share in (0, 0.5, 1)
    )
    return _svg(
        height,
        rules,
        f'<g class="s{series}"><polyline points="{path}"/>{dots}</g>',
        f'<text x="{LEFT}" y="{base + 18}">epoch 1</text>',
        f'<text x="{WIDTH - RIGHT}" y="{base + 18}" text-anchor="end">epoch {len(values)}: {escape(name)}</text>',
    )


def _svg(height: int, *parts: str) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {height}" role="img">{"".join(parts)}</svg>'


def _place(values: NDArray[np.float64] | float, limits: tuple[float, float]) -> NDArray[np.float64]:
    """Where values lie across the chart, on a logarithmic axis."""
    low, high = np.log(limits)
    return np.asarray(LEFT + (np.log(values) - low) / (high - low) * (WIDTH - LEFT - RIGHT))


def _axis(limits: tuple[float, float], y: int, unit: str) -> str:
    ticks = "".join(
        f'<text x="{float(_place(value, limits)):.1f}" y="{y + 16}" text-anchor="middle">{value:.4g}</text>'
        for value in _ticks(*limits)
    )
    line = f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}"/>'
    return f'{line}{ticks}<text x="{LEFT - 8}" y="{y + 16}" text-anchor="end">{unit}</text>'


def _marks(marks: dict[str, float], limits: tuple[float, float], y: int) -> list[str]:
    """Dashed lines with a name below; one that would be written over another is left out."""
    drawn: list[str] = []
    places: list[float] = []
    for name, value in marks.items():
        x = float(_place(value, limits))
        if limits[0] <= value <= limits[1] and all(abs(x - other) > 26 for other in places):
            places.append(x)
            drawn.append(
                f'<line class="mark" x1="{x:.1f}" x2="{x:.1f}" y1="6" y2="{y}"/>'
                f'<text class="mark" x="{x:.1f}" y="{y + 30}" text-anchor="middle">{escape(name)}</text>'
            )
    return drawn


def _side(value: float, y: float) -> str:
    return f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{value:.3g}</text>'


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers between ``low`` and ``high``: 1, 2, 5 times powers of ten, or more of them where those are few."""
    powers = 10.0 ** np.arange(np.floor(np.log10(low)), np.ceil(np.log10(high)) + 1)
    for steps in ((1, 2, 5), (1, 1.5, 2, 3, 4, 5, 7), tuple(np.arange(10, 100) / 10)):
        ticks = [float(p * step) for p in powers for step in steps if low <= p * step <= high]
        if len(ticks) >= 4:
            break
    return ticks[:: max(1, len(ticks) // 12)]

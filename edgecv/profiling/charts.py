"""Charts as SVG text, for pages that load nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from numpy.typing import NDArray

__all__ = ["Point", "bars", "curve", "histogram", "overlay", "run_by_run", "scatter"]

WIDTH, LEFT, RIGHT = 720, 56, 16


@dataclass(frozen=True, slots=True)
class Point:
    """A point of a scatter: a latency in ms, a share with its interval, a few letters beside it."""

    latency_ms: float
    share: float
    interval: tuple[float, float]
    label: str
    series: int
    hollow: bool = False


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


def scatter(points: Sequence[Point], name: str) -> str:
    """Shares against latencies, on a logarithmic axis, each with its interval; up and to the left is better."""
    height, base, top = 300, 262, 14
    times = [point.latency_ms for point in points]
    limits = (min(times) / 1.15, max(times) * 1.15)
    low, high = (pick(end for point in points for end in point.interval) for pick in (min, max))
    low, high = max(0.0, low - 0.02), min(1.0, high + 0.02)
    rules, drawn, taken = [], [], list[tuple[float, float]]()

    def place(share: float) -> float:
        return base - (base - top) * (share - low) / (high - low)

    for share in np.linspace(low, high, 5):
        y = place(share)
        rules.append(f'<line class="rule" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        rules.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{share:.1%}</text>')
    middles = [(float(_place(point.latency_ms, limits)), place(point.share)) for point in points]
    for point, (x, y) in zip(points, middles, strict=True):
        ends = [place(end) for end in point.interval]
        ring = " hollow" if point.hollow else ""
        text = _beside(x, y, [*taken, *middles])
        taken.append(text)
        drawn.append(
            f'<g class="point s{point.series}{ring}"><line x1="{x:.1f}" x2="{x:.1f}" y1="{ends[0]:.1f}" '
            f'y2="{ends[1]:.1f}"/><circle cx="{x:.1f}" cy="{y:.1f}" r="4.5"/></g>'
            f'<text class="mark" x="{text[0]:.1f}" y="{text[1] + 4:.1f}" text-anchor="middle">'
            f"{escape(point.label)}</text>"
        )
    title = f'<text x="{LEFT}" y="{base + 32}">{escape(name)}</text>'
    return _svg(height, *rules, *drawn, _axis(limits, base, "ms"), title)


def bars(names: Sequence[str], columns: Mapping[str, Sequence[float | None]], form: Mapping[str, str]) -> str:
    """A row for each name, and in each column a bar from 0, to the left where it is negative, with its figure.

    ``form`` formats a column's figures; the longest bar of each column is as wide as there is room. ``None`` has none.
    """
    text, row, top = 190, 15, 24
    wide = (WIDTH - text) / len(columns)
    parts = []
    for y, name in enumerate(names):
        shown = name if len(name) <= 28 else f"…{name[-27:]}"
        parts.append(f'<text x="0" y="{top + row * y + 11}">{escape(shown)}</text>')
    for index, (title, values) in enumerate(columns.items()):
        left = text + index * wide
        known = [value for value in values if value is not None]
        reach = (max([*known, 0.0]), -min([*known, 0.0]))
        scale = (wide - 62) / (sum(reach) or 1.0)
        zero = left + reach[1] * scale
        parts.append(f'<text class="mark" x="{left:.1f}" y="12">{escape(title)}</text>')
        parts.append(f'<line class="axis" x1="{zero:.1f}" x2="{zero:.1f}" y1="{top}" y2="{top + row * len(names)}"/>')
        for y, value in enumerate(values):
            if value is None:
                continue
            start, end = sorted((zero, zero + value * scale))
            middle = top + row * y
            parts.append(
                f'<rect class="s{index}" x="{start:.1f}" y="{middle + 2}" width="{end - start:.1f}" '
                f'height="{row - 4}"/>'
                f'<text x="{end + 4:.1f}" y="{middle + 11}">{form[title].format(value)}</text>'
            )
    return _svg(top + row * len(names) + 6, *parts)


def overlay(edges: NDArray[np.float64], before: NDArray[np.int64], after: NDArray[np.int64]) -> str:
    """Two counts over the same bins, on a logarithmic scale of their own: the first filled, the second a line."""
    height, base, tall = 130, 104, 92
    across = LEFT + (edges - edges[0]) / (edges[-1] - edges[0]) * (WIDTH - LEFT - RIGHT)
    most = np.log1p(max(int(before.max()), int(after.max()), 1))
    filled, line = (base - tall * np.log1p(counts) / most for counts in (before, after))
    area = "".join(
        f'<rect x="{left:.1f}" y="{y:.1f}" width="{right - left + 0.3:.1f}" height="{base - y:.1f}"/>'
        for left, right, y in zip(across, across[1:], filled, strict=False)
        if y < base
    )
    steps = " ".join(f"{x:.1f},{y:.1f}" for i, y in enumerate(line) for x in (across[i], across[i + 1]))
    ticks = "".join(
        f'<text x="{LEFT + share * (WIDTH - LEFT - RIGHT):.1f}" y="{base + 16}" text-anchor="{anchor}">'
        f"{edges[0] + share * (edges[-1] - edges[0]):.3g}</text>"
        for share, anchor in ((0, "start"), (0.25, "middle"), (0.5, "middle"), (0.75, "middle"), (1, "end"))
    )
    axis = f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{base}" y2="{base}"/>'
    return _svg(height, f'<g class="s0 pale">{area}</g><polyline points="{steps}"/>', axis, ticks)


def _beside(x: float, y: float, taken: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Where a few letters fit next to a point without lying on others; to its right where nothing fits."""
    places = [(x + dx, y + dy) for reach in (14, 26) for dx, dy in ((reach, 0), (-reach, 0), (12, -reach), (12, reach))]
    others = [place for place in taken if place != (x, y)]
    free = [spot for spot in places if all(abs(spot[0] - a) > 13 or abs(spot[1] - b) > 11 for a, b in others)]
    inside = [spot for spot in free if LEFT < spot[0] < WIDTH - 6]
    return (inside or places)[0]


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

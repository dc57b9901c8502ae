"""A chain's report: one HTML page that says what each step cost and what it gained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape

from edgecv.chain.layers import LayerMap, LayerValues
from edgecv.chain.measuring import Latency, Row
from edgecv.manifest import Accuracy
from edgecv.profiling.charts import Point, bars, overlay, scatter
from edgecv.profiling.page import facts, page, section, table

__all__ = ["ChainReport", "render"]

CEILING = 60.0  # dB: rounding that nobody can measure in the answers


@dataclass(frozen=True, slots=True)
class ChainReport:
    """What a chain's page shows. ``settings`` are those of each step; ``layers`` are there where it quantizes."""

    title: str
    rows: Sequence[Row]
    facts: Mapping[str, str]
    settings: Mapping[str, str]
    seconds: float
    layers: LayerMap | None = None
    values: Sequence[LayerValues] = field(default_factory=tuple)


def render(report: ChainReport) -> str:
    """Return the page as HTML text."""
    backends = list(dict.fromkeys(name for row in report.rows for name in row.latencies))
    sections = [
        f"<header><h1>{escape(report.title)}</h1><p class=lead>{escape(_summary(report))}</p></header>",
        section("Steps", _steps(report, backends)),
        section("Accuracy against latency", _scatter(report.rows, backends)),
    ]
    if report.layers:
        sections.append(section("What int8 does to each layer", _layers(report.layers)))
    if report.values:
        sections.append(section("The worst layers before and after rounding", _values(report.values)))
    sections.append(section("What was done", facts({**report.facts, **report.settings})))
    sections.append(section("Conditions", _conditions(report, backends)))
    return page(report.title, sections)


def _summary(report: ChainReport) -> str:
    first = report.rows[0]
    last = next((row for row in report.rows if not row.counts), report.rows[-1])  # the variant that a backend picks
    ends = [f"{_share(row):.1%}" for row in (first, last)]
    ratios = [(item.ratio, name) for name, item in last.latencies.items() if item.ratio]
    faster = ", ".join(f"{ratio:.2f} times as fast on {name}" for ratio, name in ratios)
    smaller = f"{first.size_bytes / last.size_bytes:.1f} times smaller"
    measure = "top-1" if isinstance(first.scores, Accuracy) else "ROC-AUC"
    text = f"{last.name}: {measure} {ends[1]}, {ends[0]} at the start; {smaller}"
    return f"{text}; {faster}." if faster else f"{text}."


def _share(row: Row) -> float:
    return row.scores.top1 if isinstance(row.scores, Accuracy) else row.scores.roc_auc


def _interval(row: Row) -> tuple[float, float]:
    return row.scores.interval if isinstance(row.scores, Accuracy) else (row.scores.roc_auc,) * 2


def _steps(report: ChainReport, backends: Sequence[str]) -> str:
    accuracy = isinstance(report.rows[0].scores, Accuracy)
    measure = "top-1, 95 % interval" if accuracy else "ROC-AUC"
    cells = [
        [
            f"{number}. <b>{escape(row.name)}</b>",
            f"{row.counts.parameters:,}" if row.counts else "",
            f"{row.counts.macs / 1e6:,.2f}" if row.counts else "",
            f"{row.size_bytes / 1e6:.3f}",
            f"{_share(row):.2%}" + ("<br><small>{:.1%} to {:.1%}</small>".format(*_interval(row)) if accuracy else ""),
            *(_latency(row.latencies.get(name)) for name in backends),
        ]
        for number, row in enumerate(report.rows)
    ]
    header = ("step", "parameters", "million MACs", "MB", measure, *(f"{name}, ms" for name in backends))
    note = (
        f"<p>Scored on {report.rows[0].scores.samples} test images: networks in PyTorch, the bundle's variants on "
        "their backend. MB are of the ONNX file, or of what the variant stores. Latency: median of one image at a time "
        f"on one thread, {report.seconds:g} s each; below it how many times as fast as the start, in turns with it.</p>"
    )
    return table(header, cells) + note


def _latency(latency: Latency | None) -> str:
    if latency is None:
        return ""
    ratio = f"<br><small>{latency.ratio:.2f} x</small>" if latency.ratio else ""
    return f"{latency.profile.p50_ms:.3f}{ratio}"


def _scatter(rows: Sequence[Row], backends: Sequence[str]) -> str:
    points = [
        Point(
            latency.profile.p50_ms,
            _share(row),
            _interval(row),
            str(number),
            1 + backends.index(name) % 2,
            not row.counts,
        )
        for number, row in enumerate(rows)
        for name, latency in row.latencies.items()
    ]
    if not points:
        return "<p>No backend was there to measure on.</p>"
    keys = "".join(f'<span class="key s{1 + i % 2}"></span>{escape(name)}' for i, name in enumerate(backends))
    note = "Up and to the left is better. Numbers are the table's rows; rings are the bundle's variants; lines are"
    return f"{scatter(points, 'latency, one thread')}<p>{keys}</p><p>{note} 95 % intervals.</p>"


def _layers(layers: LayerMap) -> str:
    rows = layers.layers
    harm = [None if row.snr_db is None else max(0.0, CEILING - row.snr_db) for row in rows]
    columns: dict[str, Sequence[float | None]] = {"harm, dB": harm}
    columns |= {
        f"{name}, ms gained": [round(row.gain_ms[name], 3) + 0.0 for row in rows] for name in layers.speed_ratio
    }
    form = dict.fromkeys(columns, "{:.3f}") | {"harm, dB": "{:.1f}"}
    verdicts = "; ".join(f"{name}: {ratio:.2f} times as fast as float" for name, ratio in layers.speed_ratio.items())
    note = (
        f"Each layer quantized alone, the worst first. Harm is {CEILING:g} dB less the answers' signal-to-noise ratio: "
        "6 dB more are twice the error. Milliseconds are those lost if that layer alone were float; a bar to the left "
        "is a layer that int8 makes slower."
    )
    return f"{bars([row.layer for row in rows], columns, form)}<p>{note}</p><p>{escape(verdicts)}</p>"


def _values(values: Sequence[LayerValues]) -> str:
    figures = [
        f"<figure><figcaption>{escape(item.layer)}: {name}</figcaption>"
        f"{overlay(spread.edges, spread.before, spread.after)}</figure>"
        for item in values
        for name, spread in (("weights", item.weights), ("activations that it reads", item.activations))
    ]
    note = "<p>Filled: float. Line: after quantization. Heights are logarithms of counts.</p>"
    return "".join(figures) + note


def _conditions(report: ChainReport, backends: Sequence[str]) -> str:
    profiles = [(row.name, name, item.profile) for row in report.rows for name, item in row.latencies.items()]
    if not profiles:
        return "<p>Nothing was timed.</p>"
    conditions = [profile.conditions for _, _, profile in profiles]
    machine = conditions[0].machine
    versions = {name: version for item in conditions for name, version in item.versions.items()}
    loads = [item.load_average for item in conditions if item.load_average is not None]
    doubts = [
        f"<li><b>{escape(row)}, {escape(name)}</b>: {escape(doubt)}</li>"
        for row, name, p in profiles
        for doubt in p.doubts
    ]
    shown = facts(
        {
            "processor": f"{machine.cpu}, {machine.cores} cores, {machine.architecture}",
            "instructions": ", ".join(machine.instructions) or "none of those that matter here",
            "governor": machine.governor or "not readable",
            "load average before": f"{min(loads):.2f} to {max(loads):.2f}" if loads else "not readable",
            "system": f"{machine.system}, Python {machine.python}",
            "threads": "1",
            "time": f"{report.seconds:g} s for each network on each backend, after warming up",
            "versions": ", ".join(f"{name} {version.partition('-')[0]}" for name, version in versions.items()),
        }
    )
    if not doubts:
        return shown
    return f'{shown}<div class="doubts"><p>Reasons to doubt these latencies</p><ul>{"".join(doubts)}</ul></div>'

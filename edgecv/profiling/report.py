"""The report: one HTML file that loads nothing and says what was built, how right and how fast it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape

import numpy as np

from edgecv.manifest import Accuracy, Parity
from edgecv.profiling.charts import curve, histogram, run_by_run
from edgecv.profiling.measure import Profile
from edgecv.profiling.page import facts, page, section, table

__all__ = ["Report", "Row", "render"]


@dataclass(frozen=True, slots=True)
class Row:
    """One backend: what it answered and how fast. ``parity`` is ``None`` for the reference itself."""

    backend: str
    variant: str
    accuracy: Accuracy
    parity: Parity | None
    profile: Profile
    size_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Report:
    """What a page shows. ``facts`` say what was built, ``limits`` what the figures do not show."""

    title: str
    summary: str
    facts: Mapping[str, str]
    rows: Sequence[Row]
    epochs: Sequence[float] = ()
    limits: Sequence[str] = field(default_factory=tuple)


def render(report: Report) -> str:
    """Return the page as HTML text."""
    sections = [
        f"<header><h1>{escape(report.title)}</h1><p class=lead>{escape(report.summary)}</p></header>",
        section("What was built", facts(report.facts)),
        section("The same answers everywhere", _accuracy(report.rows)),
        section("Latency", _latency(report.rows) + _doubts(report.rows)),
        section("Distribution of latency", _distributions(report.rows)),
        section("Run by run", "".join(_chart(row, run_by_run(_samples(row), i)) for i, row in enumerate(report.rows))),
    ]
    if report.epochs:
        sections.append(section("Training", curve(report.epochs, "validation top-1", 0)))
    sections.append(section("Conditions", _conditions(report.rows)))
    if report.limits:
        items = "".join(f"<li>{escape(limit)}</li>" for limit in report.limits)
        sections.append(section("What this does not show", f"<ul>{items}</ul>"))
    return page(report.title, sections)


def _name(row: Row) -> str:
    return f"<b>{escape(row.backend)}</b><br><small>{escape(row.variant)}</small>"


def _accuracy(rows: Sequence[Row]) -> str:
    cells = []
    for row in rows:
        low, high = row.accuracy.interval
        parity = row.parity
        cells.append(
            [
                _name(row),
                f"{row.accuracy.top1:.2%}<br><small>{low:.1%} to {high:.1%}</small>",
                f"{parity.top1_agreement:.1%}" if parity and parity.top1_agreement is not None else "reference",
                f"{parity.max_abs:.2g}" if parity else "",
                f"{parity.mean_abs:.2g}" if parity else "",
                f"{parity.cosine:.7f}" if parity else "",
                f"{row.size_bytes / 1e6:.2f}" if row.size_bytes else "",
            ]
        )
    header = ("backend", "top-1, 95 % interval", "same top-1", "largest difference", "mean difference", "cosine", "MB")
    images = {row.accuracy.samples for row in rows}, {row.parity.samples for row in rows if row.parity}
    counts = [" / ".join(map(str, sorted(group))) for group in images]
    note = f"<p>Top-1 on {counts[0]} test images; differences of the logits from PyTorch's on {counts[1]} of them.</p>"
    return table(header, cells) + note


def _latency(rows: Sequence[Row]) -> str:
    reference = rows[0].profile.p50_ms
    cells = [
        [
            _name(row),
            *(
                f"{value:.3f}"
                for value in (row.profile.p50_ms, row.profile.p90_ms, row.profile.p99_ms, row.profile.mean_ms)
            ),
            f"{row.profile.throughput_per_s:,.0f}",
            f"{reference / row.profile.p50_ms:.2f} x",
            f"{row.profile.load_ms:.0f}" if row.profile.load_ms is not None else "",
            f"{row.profile.first_ms:.2f}" if row.profile.first_ms is not None else "",
            f"{len(row.profile.samples_ms):,}",
        ]
        for row in rows
    ]
    against = f"speed-up over {rows[0].backend}"
    return table(
        ("backend", "p50 ms", "p90 ms", "p99 ms", "mean ms", "images/s", against, "load ms", "first ms", "runs"), cells
    )


def _doubts(rows: Sequence[Row]) -> str:
    items = [f"<li><b>{escape(row.backend)}</b>: {escape(doubt)}</li>" for row in rows for doubt in row.profile.doubts]
    if not items:
        return "<p>The measurements found no reason to doubt themselves: steady, no drift, little spread.</p>"
    return f'<div class="doubts"><p>Reasons to doubt these figures</p><ul>{"".join(items)}</ul></div>'


def _distributions(rows: Sequence[Row]) -> str:
    low = min(float(_samples(row).min()) for row in rows)
    high = max(row.profile.percentile(99) for row in rows)
    limits = (0.95 * low, max(1.05 * high, 1.1 * low))
    charts = []
    for index, row in enumerate(rows):
        marks = {"p50": row.profile.p50_ms, "p90": row.profile.p90_ms, "p99": row.profile.p99_ms}
        beyond = int((_samples(row) > limits[1]).sum())
        note = (
            f"; {beyond:,} of {len(row.profile.samples_ms):,} runs above {limits[1]:.3g} ms are not drawn"
            if beyond
            else ""
        )
        charts.append(_chart(row, histogram(_samples(row), limits, marks, index), note))
    return "".join(charts) + "<p>One logarithmic axis for all; each is scaled to its own highest bar.</p>"


def _chart(row: Row, svg: str, note: str = "") -> str:
    return f"<figure><figcaption>{escape(row.backend)}, {escape(row.variant)}{escape(note)}</figcaption>{svg}</figure>"


def _conditions(rows: Sequence[Row]) -> str:
    first = rows[0].profile.conditions
    versions = {name: version for row in rows for name, version in row.profile.conditions.versions.items()}
    machine = first.machine
    clock = f", {machine.clock_mhz:.0f} MHz when read" if machine.clock_mhz else ""
    threads = sorted({str(row.profile.conditions.threads or "the runtime's choice") for row in rows})
    return facts(
        {
            "processor": f"{machine.cpu}, {machine.cores} cores, {machine.architecture}{clock}",
            "instructions": ", ".join(machine.instructions) or "none of those that matter here",
            "governor": machine.governor or "not readable",
            "load average before": ", ".join(
                f"{row.profile.conditions.load_average:.2f}"
                for row in rows
                if row.profile.conditions.load_average is not None
            ),
            "system": f"{machine.system}, Python {machine.python}",
            "threads": ", ".join(threads),
            "input": ", ".join(f"{name} {dtype}{list(shape)}" for name, (dtype, shape) in first.inputs.items()),
            "versions": ", ".join(f"{name} {version.partition('-')[0]}" for name, version in versions.items()),
            "bundle": next((r.profile.conditions.bundle_sha256 for r in rows if r.profile.conditions.bundle_sha256), "")
            or "none",
        }
    )


def _samples(row: Row) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    return np.array(row.profile.samples_ms, np.float64)

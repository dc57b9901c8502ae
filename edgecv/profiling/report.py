"""The report: one HTML file that loads nothing and says what was built, how right and how fast it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape

import numpy as np

from edgecv.manifest import Accuracy, Parity
from edgecv.profiling.charts import curve, histogram, run_by_run
from edgecv.profiling.measure import Profile

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
        _section("What was built", _facts(report.facts)),
        _section("The same answers everywhere", _accuracy(report.rows)),
        _section("Latency", _latency(report.rows) + _doubts(report.rows)),
        _section("Distribution of latency", _distributions(report.rows)),
        _section("Run by run", "".join(_chart(row, run_by_run(_samples(row), i)) for i, row in enumerate(report.rows))),
    ]
    if report.epochs:
        sections.append(_section("Training", curve(report.epochs, "validation top-1", 0)))
    sections.append(_section("Conditions", _conditions(report.rows)))
    if report.limits:
        items = "".join(f"<li>{escape(limit)}</li>" for limit in report.limits)
        sections.append(_section("What this does not show", f"<ul>{items}</ul>"))
    body = "".join(sections)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(report.title)}</title><style>{STYLE}</style></head><body><main>{body}</main></body></html>\n"
    )


def _section(title: str, content: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{content}</section>"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _facts(facts: Mapping[str, str]) -> str:
    return "<dl>" + "".join(f"<dt>{escape(key)}</dt><dd>{escape(value)}</dd>" for key, value in facts.items()) + "</dl>"


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
    return _table(header, cells) + note


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
    return _table(
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
    return _facts(
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


STYLE = """
:root{--ink:#1b2430;--soft:#5a6675;--line:#dfe4ea;--page:#f6f7f9;--card:#fff;--warn:#8a5a00;--warn-bg:#fff6e0;
--c0:#7a8594;--c1:#1f6fd6;--c2:#0f9d76}
@media (prefers-color-scheme:dark){:root{--ink:#e6eaf0;--soft:#9aa6b5;--line:#2f3844;--page:#12161c;--card:#1a2029;
--warn:#f0c36a;--warn-bg:#2c2514;--c0:#8e9aab;--c1:#5b9df2;--c2:#36c498}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);font:15px/1.5 system-ui,sans-serif}
main{max-width:880px;margin:0 auto;padding:32px 20px 64px}
h1{font-size:28px;margin:0 0 6px;letter-spacing:-.01em}h2{font-size:17px;margin:0 0 12px}
.lead{font-size:17px;color:var(--soft);margin:0 0 20px}
section{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:18px 20px;margin:0 0 16px}
p{margin:10px 0 0;color:var(--soft)}ul{margin:8px 0 0;padding-left:20px}small{color:var(--soft);white-space:nowrap}
.scroll{overflow-x:auto}table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th{font-weight:500;color:var(--soft);font-size:13px;text-align:right;padding:4px 8px;vertical-align:bottom}
td{text-align:right;padding:8px;border-top:1px solid var(--line);vertical-align:top}
th:first-child,td:first-child{text-align:left;padding-left:0}
dl{display:grid;grid-template-columns:max-content 1fr;gap:4px 20px;margin:0}
dt{color:var(--soft)}dd{margin:0;overflow-wrap:anywhere}
.doubts{background:var(--warn-bg);border-radius:8px;padding:10px 14px;margin-top:14px}
.doubts p{margin:0;color:var(--warn)}
figure{margin:0 0 10px}figcaption{font-size:13px;color:var(--soft)}svg{display:block;width:100%;height:auto}
svg text{font:11px system-ui,sans-serif;fill:var(--soft)}.axis{stroke:var(--soft)}.rule{stroke:var(--line)}
.mark{stroke:var(--ink);stroke-dasharray:3 3;opacity:.7}text.mark{stroke:none;fill:var(--ink)}
.s0{fill:var(--c0);stroke:none}.s1{fill:var(--c1)}.s2{fill:var(--c2)}
.dots{fill:none;stroke-width:2;stroke-linecap:round;opacity:.55}
.dots.s0{stroke:var(--c0)}.dots.s1{stroke:var(--c1)}.dots.s2{stroke:var(--c2)}
polyline{fill:none;stroke:var(--c1);stroke-width:2}g.s0 circle{fill:var(--c1)}
"""

"""What report pages are made of: one HTML file that loads nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

__all__ = ["facts", "page", "section", "table"]


def page(title: str, sections: Sequence[str]) -> str:
    """The whole page as HTML text."""
    body = "".join(sections)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body><main>{body}</main></body></html>\n"
    )


def section(title: str, content: str) -> str:
    """One card of the page; ``content`` is HTML."""
    return f"<section><h2>{escape(title)}</h2>{content}</section>"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table; its cells are HTML, its header is text."""
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def facts(items: Mapping[str, str]) -> str:
    """Names and what they are."""
    return "<dl>" + "".join(f"<dt>{escape(key)}</dt><dd>{escape(value)}</dd>" for key, value in items.items()) + "</dl>"


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
.point line{stroke-width:1.5;opacity:.45}.point.s1 line{stroke:var(--c1)}.point.s2 line{stroke:var(--c2)}
.point.s0 line{stroke:var(--c0)}.point.s0 circle{fill:var(--c0)}.point circle{stroke-width:2}
.point.s0 circle{stroke:var(--c0)}.point.s1 circle{stroke:var(--c1)}.point.s2 circle{stroke:var(--c2)}
.point.hollow circle{fill:var(--card)}.pale{opacity:.45}
.key{display:inline-block;width:10px;height:10px;border-radius:5px;margin:0 5px 0 12px}
.key.s0{background:var(--c0)}.key.s1{background:var(--c1)}.key.s2{background:var(--c2)}
"""

"""The parts of a page that needs nothing else: its style, its tables, its sections."""

import base64
from typing import Any

COLOURS = (
    "#4269d0", "#efb118", "#ff725c", "#6cc5b0", "#3ca951", "#ff8ab7", "#a463f2", "#97bbf5",
    "#9c6b4e", "#9498a0",
)  # fmt: skip
STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.55 system-ui, sans-serif; color: #1d232b; background: #f6f7f9; margin: 0; }
main { max-width: 980px; margin: 0 auto; padding: 36px 24px 80px; }
h1 { font-size: 27px; margin: 0 0 2px; letter-spacing: -.01em; }
h2 { font-size: 18px; margin: 0 0 12px; }
p.lead { color: #5a6472; margin: 0 0 26px; overflow-wrap: anywhere; }
section { background: #fff; border: 1px solid #e3e6ea; border-radius: 10px; padding: 20px 22px;
  margin: 0 0 20px; overflow-x: auto; }
section.warning { border-color: #efb118; background: #fffaf0; }
section.warning p { margin: 4px 0; overflow-wrap: anywhere; }
.cards { display: flex; flex-wrap: wrap; gap: 12px; margin: 0 0 20px; }
.card { background: #fff; border: 1px solid #e3e6ea; border-radius: 10px; padding: 12px 18px;
  min-width: 130px; }
.card b { display: block; font-size: 25px; font-variant-numeric: tabular-nums; }
.card span { color: #5a6472; font-size: 13px; }
table { border-collapse: collapse; font-size: 14px; }
th { text-align: left; color: #5a6472; font-weight: 600; }
th, td { padding: 4px 18px 4px 0; border-bottom: 1px solid #eef0f2; vertical-align: top; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; }
td.best { font-weight: 700; }
img, svg { max-width: 100%; height: auto; }
svg text { font: 12px system-ui, sans-serif; fill: #3c4652; }
details summary { cursor: pointer; color: #3c4652; }
pre { font-size: 12px; white-space: pre-wrap; overflow-wrap: anywhere; }
"""


def escape(text: str) -> str:
    """Text as part of a page."""
    return (
        str(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
        .replace('"', "&quot;")
    )  # fmt: skip


def data_url(png: bytes) -> str:
    """A PNG as part of a page."""
    return "data:image/png;base64," + base64.b64encode(png).decode()


def number(value: Any) -> str:
    """A value of a table."""
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1 else f"{value:.2f}"
    return f"{value:,}" if isinstance(value, int) else escape(value)


def table(rows: list[dict[str, Any]]) -> str:
    """Rows as a table; numbers to the right."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    numeric = {n: all(isinstance(row.get(n, 0), int | float) for row in rows) for n in names}

    def cell(tag: str, name: str, text: str) -> str:
        return f"<{tag}{' class=n' if numeric[name] else ''}>{text}</{tag}>"

    head = "".join(cell("th", name, escape(name)) for name in names)
    body = "".join(
        "<tr>" + "".join(cell("td", n, number(row.get(n, ""))) for n in names) + "</tr>"
        for row in rows
    )
    return f"<table><tr>{head}</tr>{body}</table>"


def section(title: str, content: str, folded: bool = False) -> str:
    """A part of the page."""
    if folded:
        return f"<section><details><summary>{escape(title)}</summary>{content}</details></section>"
    return f"<section><h2>{escape(title)}</h2>{content}</section>"


def page(title: str, lead: str, sections: list[str]) -> str:
    """The whole file."""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<link rel='icon' href='data:,'><title>{escape(title)}</title>"
        f"<style>{STYLE}</style></head>"
        f"<body><main><h1>{escape(title)}</h1><p class=lead>{lead}</p>{''.join(sections)}"
        "</main></body></html>\n"
    )

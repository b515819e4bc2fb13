"""Self-contained HTML pages: style, tables and sections.

Values of a page come from files that anybody may have written. `fill` inserts them into a template
and escapes every value that is not `Html`. Only this module creates `Html`, so a value that nobody
thought of appears as text.
"""

import base64
import html
from collections.abc import Iterable
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


class Html(str):
    """A string that is already escaped HTML, made by `fill` or `join`."""


def escape(value: Any) -> Html:
    """Return a value as escaped HTML; `Html` is returned unchanged."""
    if isinstance(value, Html):
        return value
    text = str(value).encode(errors="backslashreplace").decode()  # File names need not be UTF-8.
    return Html(html.escape(text))


def fill(template: str, **values: Any) -> Html:
    """Return a template whose names in braces are replaced by the escaped values.

    Args:
        template: Literal HTML. Every attribute that holds a value must be quoted.
        values: The values by name; `Html` is inserted unchanged.
    """
    return Html(template.format_map({name: escape(value) for name, value in values.items()}))


def join(parts: Iterable[Any]) -> Html:
    """Return the concatenation of several parts of a page, each escaped unless it is `Html`."""
    return Html("".join(map(escape, parts)))


def picture(png: bytes, title: str) -> Html:
    """Return a PNG as an `<img>` element with the image inlined and ``title`` as its alt text."""
    url = "data:image/png;base64," + base64.b64encode(png).decode()
    return fill('<img alt="{title}" src="{url}">', title=title, url=url)


def number(value: Any) -> str:
    """Format a value for a table cell: rounded floats, and integers with separators."""
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1 else f"{value:.2f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def table(rows: list[dict[str, Any]]) -> Html:
    """Return rows as an HTML table, with numeric columns aligned to the right."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    numeric = {n: all(isinstance(row.get(n, 0), int | float) for row in rows) for n in names}

    def cells(template: str, texts: dict[str, str]) -> Html:
        plain, right = template.format(kind=""), template.format(kind=" class=n")
        filled = (fill(right if numeric[n] else plain, text=text) for n, text in texts.items())
        return fill("<tr>{cells}</tr>", cells=join(filled))

    head = cells("<th{kind}>{{text}}</th>", {name: name for name in names})
    body = (
        cells("<td{kind}>{{text}}</td>", {name: number(row.get(name, "")) for name in names})
        for row in rows
    )
    return fill("<table>{head}{body}</table>", head=head, body=join(body))


def section(title: str, content: Any, folded: bool = False) -> Html:
    """Return a titled section of the page; a ``folded`` one starts collapsed."""
    if folded:
        return fill(
            "<section><details><summary>{title}</summary>{content}</details></section>",
            title=title, content=content,
        )  # fmt: skip
    return fill("<section><h2>{title}</h2>{content}</section>", title=title, content=content)


def page(title: str, lead: Any, sections: list[Html]) -> Html:
    """Return the complete HTML file. It loads no resources and runs no scripts."""
    return fill(
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; style-src 'unsafe-inline'; img-src data:\">"
        "<link rel='icon' href='data:,'><title>{title}</title><style>{style}</style></head>"
        "<body><main><h1>{title}</h1><p class=lead>{lead}</p>{sections}</main></body></html>\n",
        title=title, lead=lead, sections=join(sections), style=Html(STYLE),
    )  # fmt: skip

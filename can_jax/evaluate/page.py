"""Functions that render self-contained HTML pages from templates, with inlined pictures and charts.

Some values on a page come from untrusted files. Jinja escapes every value that is not `Html`. Only
this module creates `Html` objects, and it escapes all values in them. A browser therefore shows
values from files as plain text.
"""

import base64
import functools
from collections.abc import Sequence
from typing import Any
from xml.dom import minidom

import jinja2
from markupsafe import Markup as Html

MARKED = "marked"
# Table cells break words longer than WORD characters, and wrap texts longer than SHORT characters.
WORD, SHORT = 26, 16
# The chart colors that differ between the light and the dark scheme, and their names in style.css.
INK, EDGE, GRID = "#3c4652", "#c8ced5", "#eef0f2"
SCHEME = {INK: "var(--ink)", EDGE: "var(--edge)", GRID: "var(--grid)"}


@functools.cache
def _templates() -> jinja2.Environment:
    """Return the Jinja environment that loads `templates/` and escapes values."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("can_jax.evaluate"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters = {"number": number, "columns": columns, "coded": coded}
    environment.filters |= filters | {"wrapping": wrapping, "classes": classes}
    return environment


def render(template: str, **values: Any) -> str:
    """Render a template to an HTML page without scripts and without external resources.

    Args:
        template: The name of the template file in the folder `templates/`.
        values: The variables of the template. Strings are escaped unless they are `Html`.
    """
    text = _templates().get_template(template).render(values)
    return text.encode(errors="backslashreplace").decode()  # File names need not be UTF-8.


def number(value: Any) -> str:
    """Format a value for a table cell: round floats, and add thousands separators to integers."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1 else f"{value:.2f}"
    if value is None:
        return ""
    return f"{value:,}" if isinstance(value, int) else str(value)


def coded(text: str) -> Html:
    """Escape text for HTML, and convert the parts between backticks to `<code>` elements."""
    parts = text.split("`")
    code = Html("<code>{}</code>")
    return Html("").join(code.format(p) if i % 2 else p for i, p in enumerate(parts))


def wrapping(text: str) -> str:
    """Return the CSS class that sets how the text of a table cell is wrapped.

    The class is ``long`` if words may be broken to fit the page, and ``text`` if lines are broken
    only between words. Short values, such as dates, stay on one line and have no class.
    """
    if max(map(len, text.split()), default=0) > WORD:
        return "long"
    return "text" if len(text) > SHORT and " " in text else ""


def classes(names: Sequence[str | None]) -> Html:
    """Return the ``class`` attribute of an element; without names, return an empty string."""
    present = " ".join(filter(None, names))
    return Html(' class="{}"').format(present) if present else Html("")


def legend(colors: dict[str, str]) -> Html:
    """Return the legend of a chart as HTML.

    Args:
        colors: A dict from the name of each entry to a hexadecimal color, such as ``#4269d0``.
    """
    entry = Html('<span><i style="background: {}"></i>{}</span>')
    entries = Html("").join(entry.format(color, name) for name, color in colors.items())
    return Html('<p class="legend">{}</p>').format(entries)


def columns(rows: list[dict[str, Any]]) -> list[tuple[str, bool]]:
    """Return the column names of table rows, and whether each column holds only numbers."""
    names = dict.fromkeys(name for row in rows for name in row)

    def is_number(value: Any) -> bool:
        return isinstance(value, int | float | None) and not isinstance(value, bool)

    # None is an empty cell.
    return [(name, all(is_number(row.get(name)) for row in rows)) for name in names]


def picture(png: bytes, title: str) -> Html:
    """Return a PNG as an `<img>` element with the image inlined and ``title`` as its alt text."""
    url = "data:image/png;base64," + base64.b64encode(png).decode()
    return Html('<img alt="{title}" src="{url}">').format(title=title, url=url)


def inline_svg(svg: bytes, label: str, titles: Sequence[str] = ()) -> Html:
    """Return a matplotlib SVG file as an `<svg>` element that fills the width of its section.

    Args:
        svg: The bytes of the SVG file.
        label: The description of the chart for screen readers.
        titles: The tooltips of the markers in the SVG group with the id `MARKED`, in the order of
            the markers.
    """
    for color, variable in SCHEME.items():
        svg = svg.replace(color.encode(), variable.encode())
    document = minidom.parseString(svg)
    root = document.documentElement
    assert root is not None
    for name in ("width", "height"):
        root.removeAttribute(name)
    root.setAttribute("role", "img")
    root.setAttribute("aria-label", label)
    for node in root.getElementsByTagName("metadata"):
        root.removeChild(node)
    for group in root.getElementsByTagName("g"):
        if group.getAttribute("id") == MARKED:
            for marker, text in zip(group.getElementsByTagName("use"), titles, strict=True):
                title = document.createElement("title")
                title.appendChild(document.createTextNode(text))
                marker.appendChild(title)
    return Html(root.toxml())

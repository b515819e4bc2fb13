"""Self-contained HTML pages: templates, inlined pictures and inlined charts.

Values of a page come from files that anybody may have written. Jinja escapes every value that is
not `Html`, and `Html.format` does so for the elements that are made here. Only this module creates
`Html`, so a value that nobody thought of appears as text.
"""

import base64
import contextlib
import functools
import io
import warnings
from collections.abc import Iterator, Sequence
from typing import Any
from xml.dom import minidom

import jinja2
import matplotlib
from markupsafe import Markup as Html
from matplotlib.artist import Artist
from matplotlib.figure import Figure

COLOURS = (
    "#4269d0", "#efb118", "#ff725c", "#6cc5b0", "#3ca951", "#ff8ab7", "#a463f2", "#97bbf5",
    "#9c6b4e", "#9498a0",
)  # fmt: skip
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text, in the font of the page
    "svg.hashsalt": "can_jax",  # equal charts are equal text
    "text.parse_math": False,  # a name may have dollar signs
    "text.color": "#3c4652",
    "font.size": 9.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#c8ced5",
    "axes.labelcolor": "#3c4652",
    "xtick.color": "#3c4652",
    "ytick.color": "#3c4652",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#eef0f2",
    "legend.frameon": False,
}


@functools.cache
def _templates() -> jinja2.Environment:
    """Return the templates of this package."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("can_jax.evaluate"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "columns": columns}
    return environment


def render(template: str, **values: Any) -> str:
    """Return a page that loads no resources and runs no scripts.

    Args:
        template: The name of a file in `templates/`.
        values: The template's variables. Every text is escaped unless it is `Html`.
    """
    text = _templates().get_template(template).render(values)
    return text.encode(errors="backslashreplace").decode()  # File names need not be UTF-8.


def number(value: Any) -> str:
    """Format a value for a table cell: rounded floats, and integers with separators."""
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1 else f"{value:.2f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def columns(rows: list[dict[str, Any]]) -> list[tuple[str, bool]]:
    """Return the names of the columns of some rows, and whether each holds only numbers."""
    names = dict.fromkeys(name for row in rows for name in row)
    return [(n, all(isinstance(row.get(n, 0), int | float) for row in rows)) for n in names]


def picture(png: bytes, title: str) -> Html:
    """Return a PNG as an `<img>` element with the image inlined and ``title`` as its alt text."""
    url = "data:image/png;base64," + base64.b64encode(png).decode()
    return Html('<img alt="{title}" src="{url}">').format(title=title, url=url)


@contextlib.contextmanager
def chart_style() -> Iterator[None]:
    """Draw charts in the style of the pages, within a ``with`` statement."""
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # The browser has the font.
        yield


def chart(
    figure: Figure, label: str, marked: Artist | None = None, titles: Sequence[str] = ()
) -> Html:
    """Return a figure as an `<svg>` element that is as wide as its section.

    Args:
        figure: The figure, made and passed within `chart_style`.
        label: The description for screen readers.
        marked: An artist whose markers get titles, which browsers show under the pointer.
        titles: The title of each marker.
    """
    if marked is not None:
        marked.set_gid("marked")
    buffer = io.BytesIO()
    figure.savefig(
        buffer, format="svg", bbox_inches="tight", transparent=True, metadata={"Date": None}
    )
    document = minidom.parseString(buffer.getvalue())
    root = document.documentElement
    assert root is not None
    for name in ("width", "height"):
        root.removeAttribute(name)
    root.setAttribute("role", "img")
    root.setAttribute("aria-label", label)
    for node in root.getElementsByTagName("metadata"):
        root.removeChild(node)
    for group in root.getElementsByTagName("g"):
        if group.getAttribute("id") == "marked":
            for marker, text in zip(group.getElementsByTagName("use"), titles, strict=True):
                title = document.createElement("title")
                title.appendChild(document.createTextNode(text))
                marker.appendChild(title)
    return Html(root.toxml())

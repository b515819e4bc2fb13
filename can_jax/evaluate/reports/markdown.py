"""Functions that write Markdown pages with escaped values.

Each value that is not `Markdown` is escaped when it is inserted. A value therefore cannot add
lines, table cells, links, images or HTML. `can_jax.evaluate.page` escapes values in HTML.
"""

import re
from collections.abc import Iterable, Sequence
from typing import Any
from urllib.parse import quote

SPECIAL = re.compile(r"([\\`*\[\]<>|&#!~])")
NUMBER = re.compile(r"[-+]?\d")  # the start of a cell such as `5` or `5.1 ± 0.2`


class Markdown(str):
    """A string that the functions of this module have already escaped."""


def escape(value: Any) -> Markdown:
    """Return a value as escaped Markdown on one line; `Markdown` is returned unchanged."""
    if isinstance(value, Markdown):
        return value
    text = " ".join(str(value).encode(errors="backslashreplace").decode().split())
    return Markdown(SPECIAL.sub(r"\\\1", text))


def fill(template: str, **values: Any) -> Markdown:
    """Replace each ``{name}`` in a trusted template by the escaped value of that name."""
    return Markdown(template.format_map({name: escape(value) for name, value in values.items()}))


def code(value: Any) -> Markdown:
    """Return a value as inline Markdown code."""
    text = " ".join(str(value).encode(errors="backslashreplace").decode().split())
    return Markdown("`" + text.replace("`", "'").replace("|", r"\|") + "`")


def link(text: Any, target: str) -> Markdown:
    """Return a Markdown link to a path relative to the page."""
    return fill("[{text}]({target})", text=text, target=Markdown(quote(target)))


def table(rows: Iterable[Sequence[Any]], head: Sequence[Any], right: bool = False) -> Markdown:
    """Return a Markdown table.

    Args:
        rows: The cells of each row, escaped on insertion.
        head: The cells of the header row, escaped on insertion.
        right: Whether to right-align columns of numbers, except the first column.
    """
    cells = [[escape(value) for value in row] for row in rows]
    columns = list(zip(*cells, strict=True)) or [()] * len(head)
    numbers = [all(NUMBER.match(cell) for cell in column if cell) for column in columns]
    rule = ["---", *("--:" if right and column else "---" for column in numbers[1:])]
    first, *others = (" | ".join(row) for row in [map(escape, head), *cells])
    line = "|".join(rule) if right else f" {' | '.join(rule)} "
    return Markdown("\n".join([f"| {first} |", f"|{line}|", *(f"| {row} |" for row in others)]))

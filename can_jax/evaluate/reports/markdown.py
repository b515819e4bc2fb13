"""Text of pages in Markdown, with values that may be anybody's.

As in `can_jax.evaluate.page`, each value that is not `Markdown` is escaped where it is inserted. It
then adds no line, cell, link, picture or HTML.
"""

import re
from collections.abc import Iterable, Sequence
from typing import Any
from urllib.parse import quote

SPECIAL = re.compile(r"([\\`*\[\]<>|&#!~])")


class Markdown(str):
    """Text that is Markdown already, made by the functions below."""


def escape(value: Any) -> Markdown:
    """Return a value as Markdown: its text on one line, unless it is Markdown already."""
    if isinstance(value, Markdown):
        return value
    text = " ".join(str(value).encode(errors="backslashreplace").decode().split())
    return Markdown(SPECIAL.sub(r"\\\1", text))


def fill(template: str, **values: Any) -> Markdown:
    """Return a literal template with values in place of their names in braces, each escaped."""
    return Markdown(template.format_map({name: escape(value) for name, value in values.items()}))


def code(value: Any) -> Markdown:
    """Return a value in the type of code, within a line."""
    text = " ".join(str(value).encode(errors="backslashreplace").decode().split())
    return Markdown("`" + text.replace("`", "'").replace("|", r"\|") + "`")


def link(text: Any, target: str) -> Markdown:
    """Return a link to a file beside the page."""
    return fill("[{text}]({target})", text=text, target=Markdown(quote(target)))


def table(rows: Iterable[Sequence[Any]], head: Sequence[Any], right: bool = False) -> Markdown:
    """Return a table.

    Args:
        rows: Of its cells.
        head: Its first row.
        right: Align all columns but the first to the right.
    """
    rule = ["---", *(["--:" if right else "---"] * (len(head) - 1))]
    first, *others = (" | ".join(map(escape, row)) for row in [head, *rows])
    line = "|".join(rule) if right else f" {' | '.join(rule)} "
    return Markdown("\n".join([f"| {first} |", f"|{line}|", *(f"| {row} |" for row in others)]))

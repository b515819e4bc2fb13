"""Make the pages of the documentation's site in build/docs, from which `zensical build` makes HTML.

    python docs/site/build.py

Pages of docs/ are copied. The references of settings, commands, metrics and recipes are made from
the package, so they cannot differ from it. Files outside of docs/ that a page links to become pages
of the site, because the site has no repository to link to.
"""

import ast
import contextlib
import html
import io
import json
import os
import posixpath
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
DOCS, TARGET = ROOT / "docs", ROOT / "build" / "docs"
LINK = re.compile(r"(\]\()([^)\s#]+)((?:#[^)\s]*)?\))")
FENCE = re.compile(r"^( *)(```+).*?^\1\2 *$", re.MULTILINE | re.DOTALL)
MARKS = re.compile(
    r"\]\[(?=[A-Z]{1,2}\])"
)  # of two sources, such as [M][O], which are no reference
NOT_SEARCHED = "---\nsearch:\n  exclude: true\n---\n\n"
TABLE = re.compile(r"^(\|.*\|)\n(\|[-:| ]+\|)\n((?:\|.*\|(?:\n|$))+)", re.MULTILINE)
CELL = re.compile(r"(?<!\\)\|")
MARKUP = re.compile(r"\]\([^)]*\)|[`*\[]")  # what a page does not show
TEXT = 48  # characters; the style sheet keeps columns with longer cells from becoming narrow
LANGUAGES = {".py": "python", ".json": "json", ".toml": "toml", ".sh": "bash", ".ipynb": "json"}
PAGES_OF_ROOT = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "benchmarks/NOTES.md")
# Commands whose help repeats the keys of a recipe, which have a reference of their own.
KEYS_IN_HELP = re.compile(r"\n\n(?:recipes \(|keys of a recipe).*", re.DOTALL)


def main() -> None:
    """Write all pages anew."""
    shutil.rmtree(TARGET, ignore_errors=True)
    for path in tracked(DOCS):
        if path.suffix == ".md":
            write(path.relative_to(DOCS).as_posix(), path.read_text(), path)
        elif "site" not in path.relative_to(DOCS).parts[:1]:
            copy(path, path.relative_to(DOCS).as_posix())
    copy(DOCS / "site" / "theme" / "extra.css", "extra.css")
    for name in PAGES_OF_ROOT:
        # The changelog has every word of the other pages.
        front = NOT_SEARCHED if name == "CHANGELOG.md" else ""
        write(f"source/{name}", front + (ROOT / name).read_text(), ROOT / name)
    write("reference/settings.md", settings_page())
    write("reference/evaluation_settings.md", evaluation_page())
    write("reference/commands.md", commands_page())
    write("reference/metrics.md", metrics_page())
    write("reference/recipes.md", recipes_page())
    print(f"{len(list(TARGET.rglob('*.md')))} pages in {TARGET.relative_to(ROOT)}")


def tracked(folder: Path) -> Iterator[Path]:
    """Yield the files of a folder, at any depth."""
    yield from sorted(path for path in folder.rglob("*") if path.is_file())


def copy(path: Path, name: str) -> None:
    """Copy a file to the site."""
    (TARGET / name).parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(path, TARGET / name)


def write(name: str, text: str, origin: Path | None = None) -> None:
    """Write a page of the site.

    Args:
        name: The path of the page in the site.
        text: The page in Markdown.
        origin: The file that the page is a copy of; its links are adapted.
    """
    if origin is not None:
        text = adapt(text, origin, name)
    path = TARGET / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(outside_code(text, lambda part: TABLE.sub(mark_text_columns, part)))


def mark_text_columns(table: re.Match[str]) -> str:
    """Return a table whose columns of long cells have the class `text` in their header."""
    rows = [CELL.split(row)[1:-1] for row in (table[1], *table[3].splitlines())]
    lengths = [
        max(len(MARKUP.sub("", part.strip())) for part in column)
        for column in zip(*rows, strict=True)
    ]
    heads = [
        f" {head.strip()} {{ .text }} " if head.strip() and length > TEXT else head
        for head, length in zip(rows[0], lengths, strict=True)
    ]
    return f"|{'|'.join(heads)}|\n{table[2]}\n{table[3]}"


def outside_code(text: str, change: Callable[[str], str]) -> str:
    """Return a page whose parts outside of code blocks are changed."""
    parts, end = [], 0
    for fence in FENCE.finditer(text):
        parts += [change(text[end : fence.start()]), fence[0]]
        end = fence.end()
    return "".join([*parts, change(text[end:])])


def adapt(text: str, origin: Path, name: str) -> str:
    """Return a page with links to places in the site, code blocks excepted."""

    def link(match: re.Match[str]) -> str:
        target = match[2]
        if re.match(r"[a-z]+:", target):
            return match[0]
        path = Path(os.path.normpath(origin.parent / target))
        if path.parent == DOCS / "reference":  # made by this script; `check.py` checks the link
            return match[0]
        if not path.exists():
            raise SystemExit(f"{origin.relative_to(ROOT)}: the link to {target} is broken")
        place = place_of(path)
        relative = posixpath.relpath(place, posixpath.dirname(name) or ".")
        anchor = match[3] if path.suffix == ".md" else ")"  # pages of sources have no headings
        return f"{match[1]}{relative}{anchor}"

    return outside_code(text, lambda part: MARKS.sub(r"]\\[", LINK.sub(link, part)))


def place_of(path: Path) -> str:
    """Return the path in the site of a file or folder of the repository, which gets a page."""
    if path.is_relative_to(DOCS):
        return path.relative_to(DOCS).as_posix()
    name = path.relative_to(ROOT).as_posix()
    if name in PAGES_OF_ROOT:
        return f"source/{name}"
    page = f"source/{name}.md"
    if not (TARGET / page).exists():
        write(page, NOT_SEARCHED + source_page(path, name))
    return page


def source_page(path: Path, name: str) -> str:
    """Return a page with the text of a file, or the list of the files of a folder."""
    if path.is_dir():
        files = "\n".join(f"- `{file.name}`" for file in sorted(path.iterdir()))
        return f"# `{name}`\n\n{files}\n"
    text = path.read_text()
    if path.suffix == ".ipynb":
        return f"# `{name}`\n\n{notebook_as_markdown(json.loads(text))}\n"
    fence = "`" * (2 + max(map(len, re.findall("`+", text)), default=1))
    return f"# `{name}`\n\n{fence}{LANGUAGES.get(path.suffix, 'text')}\n{text}{fence}\n"


def notebook_as_markdown(notebook: dict[str, Any]) -> str:
    """Return the cells of a notebook and the pictures and texts that they printed."""
    parts = []
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(
                re.sub(r"\]\((?!http)[^)]*\)", "]", re.sub("^#", "##", source, flags=re.M))
            )
            continue
        parts.append(f"```python\n{source}\n```")
        for output in cell.get("outputs", []):
            if text := "".join(output.get("text", [])):
                parts.append(f"```text\n{text.rstrip()}\n```")
            if png := output.get("data", {}).get("image/png"):
                url = "".join(png).replace("\n", "")
                parts.append(f'<img alt="output of the cell" src="data:image/png;base64,{url}">')
    return "\n\n".join(parts)


def cell(text: Any) -> str:
    """Return a text for a cell of a Markdown table."""
    return html.escape(str(text), quote=False).replace("|", "\\|").replace("\n", " ")


def key_tables(table: Any) -> str:
    """Return a table of keys for each block of a configuration."""
    from can_jax.utils.settings import flat_keys

    blocks: dict[str, list[str]] = {}
    for name, key in flat_keys(table):
        block, _, _ = name.rpartition(".")
        default = f"`{key.default!r}`" if key.default is not None else "not set"
        row = [f"`{name}`", default, cell(key.describe()), key.unit or "", cell(key.meaning)]
        blocks.setdefault(block, []).append(f"| {' | '.join(row)} |")
    head = "| key | default | allowed | unit | meaning |\n|---|---|---|---|---|\n"
    parts = []
    for block in sorted(blocks, key=lambda b: (b != "", b)):
        title = f"`{block}`" if block else "The run"
        parts.append(f"## {title}\n\n{head}" + "\n".join(blocks[block]))
    return "\n\n".join(parts)


def settings_page() -> str:
    """Return the reference of the keys of a pretraining recipe."""
    from can_jax.config.defaults import RECIPE

    return f"""# Settings of training

All keys of a pretraining recipe, from the table of defaults in `can_jax/config/defaults.py`. The
command line sets a key by `--config.KEY=VALUE`, and a recipe by `config.KEY = VALUE`. `None` unsets
an optional key. [Recipes and runs](../runs.md) explains durations and recipes.

{key_tables(RECIPE)}
"""


def evaluation_page() -> str:
    """Return the reference of the keys of an evaluation."""
    from can_jax.evaluate.config import evaluation_table

    return f"""# Settings of evaluation

All keys of an evaluation recipe. The blocks are those of the protocols;
[Evaluation](../evaluation.md) describes them.

{key_tables(evaluation_table())}
"""


def commands_page() -> str:
    """Return the reference of all commands, each with its own help."""
    from can_jax.cli.start import COMMANDS, Entry

    parts = []
    for name, info in COMMANDS.items():
        output = io.StringIO()
        with contextlib.redirect_stdout(output):
            code = Entry(name)(["--help"])
        if code:
            raise SystemExit(f"can-jax {name} --help ended with code {code}")
        text = KEYS_IN_HELP.sub("", output.getvalue()).strip().replace(str(ROOT), "")
        parts.append(
            f"## `can-jax {name}`\n\nPurpose: {info.purpose}. The same as "
            f"`python -m {info.module}`.\n\n```text\n{text}\n```"
        )
    listed = "\n\n".join(parts)
    return f"""# Commands

Each command prints this text with `--help`. Its exit code is one of
[these](../failures.md#exit-codes). The keys of `--config` are in
[settings of training](settings.md) and [settings of evaluation](evaluation_settings.md).

{listed}
"""


def metrics_page() -> str:
    """Return the reference of metrics."""
    from can_jax.monitoring.glossary import METRICS

    rows = "\n".join(
        f"| `{name}` | {metric.unit} | {metric.meaning} | {metric.reading} |"
        for name, metric in METRICS.items()
    )
    return f"""# Metrics of a run

A run writes these to `metrics.jsonl` and TensorBoard, and `can-jax report` draws them. An
objective, callback or protocol of your own adds further ones. [Read the curves](../curves.md) shows
healthy runs and collapsed ones.

| metric | unit | meaning | how to read it |
|---|---|---|---|
{rows}
"""


def recipes_page() -> str:
    """Return the docstrings of the shipped recipes, protocols and studies."""
    from can_jax.config.shipped import KINDS, find_shipped, names_of

    parts = []
    for kind in ("recipe", "protocol", "study"):
        parts.append(f"## {KINDS[kind].title.capitalize()}: `--config=NAME`")
        for name in names_of(kind):
            path = find_shipped(name, kind)
            assert path is not None
            text = ast.get_docstring(ast.parse(path.read_text())) or ""
            parts.append(f"### `{name}`\n\n```text\n{text}\n```")
    listed = "\n\n".join(parts)
    return f"# Recipes\n\nThe description at the top of each shipped file.\n\n{listed}\n"


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    main()

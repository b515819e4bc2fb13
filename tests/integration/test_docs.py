"""The pages: every command in them is one that the package takes, and the tutorial runs."""

import importlib
import json
import re
import runpy
import shlex
import subprocess
import sys
import tomllib
from unittest.mock import patch

import numpy as np
import pytest
from PIL import Image

from can_jax.cli.start import COMMANDS, PACKAGE
from can_jax.data.sources.synthetic_shapes import open_shapes
from can_jax.monitoring.glossary import METRICS
from can_jax.utils.registry import Registry
from tests.helpers.runs import ROOT

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`((?:can-jax|python -m can_jax)[^`\n]* [^`]*)`")
MODULES = {place.module: name for name, place in COMMANDS.items()}
BUILD = runpy.run_path(str(ROOT / "docs/site/build.py"))
CHECK = runpy.run_path(str(ROOT / "docs/site/check.py"))


def lines_of(page):
    """The command lines of a page: those of blocks, and those between backticks."""
    text = page.read_text()
    for language, block in BLOCK.findall(text):
        if language in ("bash", ""):
            yield from block.replace("\\\n", " ").splitlines()
    for line in INLINE.findall(BLOCK.sub("", text)):
        yield " ".join(line.split()).partition(" repeats the latest step")[0]  # of a message


def commands():
    """All commands of this package on the pages, as (page, name, arguments)."""
    for page in PAGES:
        for line in lines_of(page):
            words = shlex.split(re.sub(r"[\[\]]|, on each machine", "", line), comments=True)
            if words[:1] == ["can-jax"] and len(words) > 1 and words[1] in COMMANDS:
                yield page.name, words[1], words[2:]
            elif words[:2] == ["python", "-m"] and words[2].startswith("can_jax"):
                yield page.name, MODULES[words[2]], words[3:]


COMMANDS = list(dict.fromkeys((name, tuple(words)) for _, name, words in commands()))


@pytest.fixture
def parts(tmp_path, monkeypatch):
    """A folder with the files of the page on extensions. What they register is forgotten."""
    before = {registry: registry.names() for registry in Registry.all}
    monkeypatch.chdir(tmp_path)
    examples = re.findall(r"```python\n(.*?)```", (ROOT / "docs/extend.md").read_text(), re.DOTALL)
    for name, example in zip(("my_parts.py", "my_recipe.py"), examples, strict=False):
        (tmp_path / name).write_text(example)
    protocol = next(text for text in examples if "PROTOCOLS.register" in text)
    (tmp_path / "my_protocol.py").write_text(protocol)
    yield
    for registry, names in before.items():
        for name in set(registry.names()) - set(names):
            registry.remove(name)


def test_commands_of_the_pages_are_accepted(parts, capsys):
    assert len(COMMANDS) > 30
    for name, words in COMMANDS:
        command = importlib.import_module(f"{PACKAGE}.{name.replace('-', '_')}").main
        # `…` stands for further options.
        argv = [word for word in words if "…" not in word and word != "--config.KEY=VALUE"]
        argv = [re.sub(r"^--config=[A-Z]+$", "--config=quickstart", word) for word in argv]
        argv = [re.sub("=[A-Z]$", "=1", word) for word in argv]
        with patch.object(command, "_function", lambda *_: None):
            code = command(argv)
        message = capsys.readouterr().err
        # Prose names commands without all arguments, and options without their values.
        incomplete = " is missing; see --help" in message or "has no value" in message
        assert code == 0 or incomplete, (name, words, message)


def test_other_commands_of_the_pages_exist():
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    for page in PAGES:
        for line in lines_of(page):
            words = shlex.split(line, comments=True)
            if words[:1] == ["make"]:
                assert words[1] in targets, (page, line)
            for extra in re.findall(r"(?:can_jax|\.)\[([\w,]+)\]", line):
                assert set(extra.split(",")) <= set(extras), (page, line)
            for file in re.findall(r"(?:constraints|launch)/[\w./-]+", line):
                assert (ROOT / file).exists(), (page, line)


def test_pages_say_which_commands_need_a_clone():
    """An installation has neither the tests nor the scripts beside the package."""
    for page in sorted((ROOT / "docs").glob("*.md")):
        text = page.read_text()
        if re.search(
            r"python -m tests\.|python (benchmarks|docs)/|\blaunch/\w+\.sh|tests\.\w+", text
        ):
            assert "clone" in text, page


def test_blocks_have_a_known_language():
    for page in PAGES:
        for language, text in BLOCK.findall(page.read_text()):
            assert language in ("bash", "console", "python", "text", ""), (page, text)
            if language == "python":
                compile(text, page.name, "exec")


def test_links_of_the_pages_lead_to_files(tmp_path):
    for page in PAGES:
        BUILD["adapt"].__globals__["TARGET"] = tmp_path  # where pages of linked files are written
        BUILD["adapt"](page.read_text(), page, page.name)


def test_pages_are_in_the_navigation():
    navigation = (ROOT / "mkdocs.yml").read_text()
    for page in (ROOT / "docs").glob("*.md"):
        assert f": {page.name}\n" in navigation + "\n", page


def test_references_hold_every_key_and_metric():
    from can_jax.config.defaults import RECIPE
    from can_jax.utils.settings import flat_keys

    page = BUILD["settings_page"]()
    for name, key in flat_keys(RECIPE):
        assert f"| `{name}` |" in page and BUILD["cell"](key.meaning) in page
    assert all(f"| `{name}` |" in BUILD["metrics_page"]() for name in METRICS)
    assert "`knn.k`" in BUILD["evaluation_page"]()


def test_columns_of_long_cells_are_marked(tmp_path):
    table = "| `a` | b | |\n|---|--:|---|\n| [{}](x) | {} | `{}` |\n"
    page = table.format("x" * 48, "y" * 49, "z" * 99)
    with patch.dict(BUILD["write"].__globals__, TARGET=tmp_path):
        BUILD["write"]("page.md", f"{page}\n```text\n{page}```\n")
    marked = page.replace("| b |", "| b { .text } |")  # an empty header cell cannot hold a class
    assert (tmp_path / "page.md").read_text() == f"{marked}\n```text\n{page}```\n"


def test_broken_links_of_the_site_are_found(tmp_path):
    (tmp_path / "a.html").write_text(
        '<h1 id="x"></h1><a href="b.html#y"><a href="#x"><img src="c">'
    )
    (tmp_path / "b.html").write_text('<a href="a.html#x">')
    assert CHECK["broken_links"](tmp_path) == ["a.html: b.html#y", "a.html: c"]


@pytest.mark.slow
def test_tutorial_runs_as_it_is_written(tmp_path):
    """With six images, and four steps in place of twenty minutes; nothing is installed."""
    folder = tmp_path / "my_images"
    shapes = open_shapes(24, (64, 64), 3, "train")
    for i, (image, label) in enumerate(zip(shapes.images, shapes.labels, strict=True)):
        path = folder / f"class_{label % 2}" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    page = (ROOT / "docs/tutorial.md").read_text()
    steps = [
        (language, text.replace("--for=20m", "--for=4steps --config.batch_size=8"))
        for language, text in BLOCK.findall(page)
        if language in ("bash", "python") and "pip install" not in text
    ]
    assert len(steps) == 8
    program = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
    start = "from can_jax.cli.start import console; console()"
    for language, text in steps:
        command = [sys.executable, "-c", program + text]
        if language == "bash":
            command = [sys.executable, "-c", program + start, *shlex.split(text)[1:]]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, (text, done.stderr)
    for name in ("run_report.html", "neighbors.png", "runs/my_images_knn/report.html"):
        assert (tmp_path / name).stat().st_size > 1000, name
    assert json.loads((tmp_path / "exports/my_images/manifest.json").read_text())
    assert np.load(tmp_path / "features.npz")["features"].shape[0] == len(list(folder.rglob("*.*")))

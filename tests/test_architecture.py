"""The layout of the project is kept by these checks."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = sorted((ROOT / "can_jax").rglob("*.py"))
RECIPES = sorted((ROOT / "configs").rglob("*.py"))


def test_import_contracts_hold():
    command = [Path(sys.executable).with_name("lint-imports"), "--no-cache"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_modules_and_recipes_stay_small():
    limits = dict.fromkeys(MODULES, 400) | dict.fromkeys(RECIPES, 80)
    long = [str(p) for p, most in limits.items() if len(p.read_text().splitlines()) > most]
    assert not long


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipe_says_what_it_is(path):
    text = ast.get_docstring(ast.parse(path.read_text()))
    command = f"--config={path.relative_to(ROOT)}"
    assert text and command in text and "Hardware:" in text and "Result:" in text


def test_only_trackers_write_metrics():
    writers = {path for path in MODULES if re.search(r"\.summary\b", path.read_text())}
    folder = ROOT / "can_jax" / "monitoring"
    assert writers == {folder / "tensorboard.py", folder / "wandb.py"}


def test_step_imports_on_a_machine_that_has_little_beside_jax():
    modules = "can_jax.train.step, can_jax.selfcheck.compare, can_jax.benchmark.device_study"
    unwanted = {"tensorflow", "PIL", "clu", "matplotlib", "jinja2"}
    program = f"import sys, {modules}; sys.exit(bool({unwanted} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT).returncode == 0


# What only one module may call, since it does so in the one way that is safe.
DOORS = {
    r"\bImage\.open\(": "data/decoding/open_image.py",
    r"\bnp\.load\(|\bnp\.lib\.format\.": "utils/archives.py export/usage.py",
    r"zipfile\.ZipFile\(": "utils/archives.py weights/torch_file.py",
    r"(?<!_)\bConsole\(": "monitoring/console.py",
    r"\bHtml\(": "evaluate/page.py",
    r"\bMarkdown\(": "evaluate/reports/markdown.py",
    r"\btfds\.builder\(": "data/sources/tfds.py",
    r"\bpickle\.": "weights/torch_file.py",
    r"\bmarkup=": "monitoring/console.py",
    r"\bMarkup\b": "evaluate/page.py",
    r"doctype html": "",
    r"\bos\.(replace|rename)\(": "utils/files.py",
}


@pytest.mark.parametrize("call", DOORS)
def test_files_of_others_go_through_one_door(call):
    callers = {
        str(p.relative_to(ROOT / "can_jax")) for p in MODULES if re.search(call, p.read_text())
    }
    assert callers <= set(DOORS[call].split())


def test_templates_of_pages_are_literal():
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                text = "".join(v.value for v in node.values if isinstance(v, ast.Constant))
                tags = re.search(r"</?(p|td|th|tr|div|span|svg|img|text|title|circle|pre)\b", text)
                assert not tags, f"{path}:{node.lineno}: write a template, which escapes values"
    for path in (ROOT / "can_jax").rglob("templates/*.html"):
        assert not re.search(r"\|\s*safe\b|autoescape", path.read_text()), path


def test_page_of_failures_names_tests_that_exist():
    page = (ROOT / "docs/failures.md").read_text()
    named = re.findall(r"\[`(\w+(?:\.py)?)`\]\(\.\./(tests/[\w/]+\.py)\)", page)
    assert len(named) > 25
    for name, file in named:
        text = (ROOT / file).read_text()
        assert name.endswith(".py") or f"def {name}(" in text, (name, file)

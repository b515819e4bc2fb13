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
    limits[ROOT / "can_jax" / "pretrain.py"] = 350
    long = [str(p) for p, most in limits.items() if len(p.read_text().splitlines()) > most]
    assert not long


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipe_says_what_it_is(path):
    text = ast.get_docstring(ast.parse(path.read_text()))
    command = f"--config={path.relative_to(ROOT)}"
    assert text and command in text and "Hardware:" in text and "Result:" in text


def test_only_one_module_writes_metrics():
    writers = [path for path in MODULES if re.search(r"\.summary\b", path.read_text())]
    assert writers == [ROOT / "can_jax" / "observe" / "metrics.py"]


def test_network_and_losses_import_without_tensorflow():
    program = "import sys, can_jax.step, can_jax.selfcheck; sys.exit('tensorflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT).returncode == 0

"""The notebook: it runs from top to bottom, and what is committed is from a real run."""

import ast
import importlib.util
import os
import shutil
import subprocess

import nbformat
import pytest
from nbclient import NotebookClient

from can_jax.config import load_recipe, resolve
from tests.helpers.runs import ROOT

NOTEBOOK = ROOT / "notebooks" / "reproduce_can.ipynb"


def pictures(cell):
    outputs = [output.get("data", {}) for output in cell.get("outputs", [])]
    return sum("image/png" in data for data in outputs)


def printed(notebook):
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return "".join(output.text for output in outputs if output.output_type == "stream")


@pytest.mark.slow
def test_it_runs_from_top_to_bottom(tmp_path, monkeypatch):
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    committed = [pictures(cell) for cell in notebook.cells]
    monkeypatch.setenv("NOTEBOOK_SIZE", "small")
    monkeypatch.setenv("NOTEBOOK_RUNS", str(tmp_path))
    resources = {"metadata": {"path": str(NOTEBOOK.parent)}}
    NotebookClient(notebook, timeout=900, resources=resources).execute()
    assert [pictures(cell) for cell in notebook.cells] == committed
    assert "Exported" in printed(notebook) and "of CAN" in printed(notebook)
    assert (tmp_path / "export/README.md").exists()
    for file in ("can/checkpoints", "run_report.html", "features.npz", "knn_can/results.json"):
        assert (tmp_path / file).exists(), file


def test_without_address_and_wheel_the_notebook_says_what_is_missing(tmp_path, monkeypatch):
    """The cell of the setup, in a folder outside of any checkout and without the package."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    setup = next(cell.source for cell in notebook.cells if "SOURCE = " in cell.source)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    calls = []
    monkeypatch.setattr(subprocess, "run", lambda command, **_: calls.append(command))
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(SystemExit, match="set SOURCE to the git address .* or upload its wheel"):
        exec(setup, {})
    assert not calls
    (tmp_path / "can_jax-0.1.0-py3-none-any.whl").touch()
    exec(setup, {})
    exec(setup.replace('SOURCE = ""', 'SOURCE = "https://host/can_jax"').replace("*.whl", "-"), {})
    wheel, address = calls
    assert f"can_jax[cpu] @ file://{tmp_path}/can_jax-0.1.0-py3-none-any.whl" in wheel
    assert "can_jax[cpu] @ git+https://host/can_jax" in address


def test_what_the_notebook_imports_exists():
    """Cheap, and what changes most; the whole notebook runs in the slow tests."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    code = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
    imports = [n for n in ast.walk(ast.parse(code)) if isinstance(n, ast.ImportFrom)]
    ours = [node for node in imports if (node.module or "").startswith("can_jax")]
    assert len(ours) > 5
    exec("\n".join(map(ast.unparse, ours)), {})


def test_committed_outputs_are_of_a_whole_run():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert sum(map(pictures, cells)) >= 6
    assert "800 steps of CAN" in printed(notebook)
    assert "features of transformers and of can_jax differ by at most" in printed(notebook)
    assert not any(output.output_type == "error" for cell in cells for output in cell.outputs)
    home = os.path.expanduser("~")
    assert home not in printed(notebook) and "/tmp" not in printed(notebook)


def test_comparison_trains_mae_and_simclr():
    """Other methods, for the same FLOPs, would take hours."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    cell = next(cell.source for cell in notebook.cells if "COMPARE = False" in cell.source)
    names = {"load_recipe": load_recipe, "resolve": resolve, "STEPS": 800}
    exec(cell.replace("COMPARE = False", "COMPARE = True"), names)
    assert list(names["steps"]) == ["can", "mae", "simclr"]

"""The notebook: it runs from top to bottom, and what is committed is from a real run."""

import os

import nbformat
import pytest
from nbclient import NotebookClient

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
    for method in ("can", "mae", "simclr"):
        assert (tmp_path / method / "checkpoints").exists()


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

"""The notebooks of the site: every cell runs, with shorter training; what is stored has no path of a machine."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
MOST_BYTES = 300_000  # of a file in git
SHORTER = {  # text of a notebook -> what runs here instead
    "first_run": {" --grid seed=0,1": "", "train.epochs=6": "train.epochs=2"},
    "methods": {"EPOCHS, SEEDS = 20, range(3)": "EPOCHS, SEEDS = 2, range(2)"},
    "own_features": {"EPOCHS = 200": "EPOCHS = 20"},
    "own_loop": {"epochs=150": "epochs=20"},
}


@pytest.mark.slow
@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_every_cell_of_a_notebook_runs(file, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # other tests use the other CPUs
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    text = file.read_text(encoding="utf-8")
    for long, short in SHORTER.get(file.stem, {}).items():
        assert long in text
        text = text.replace(long, short)
    book = nbformat.reads(text, as_version=4)
    NotebookClient(book, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}).execute()
    warnings = [output for output in outputs(book) if output.get("name") == "stderr"]
    assert not warnings


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_a_stored_notebook_is_executed_small_and_without_paths(file):
    book = nbformat.read(file, as_version=4)
    nbformat.validate(book)
    cells = [cell for cell in book.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == [*range(1, len(cells) + 1)]
    assert file.stat().st_size < MOST_BYTES
    stored = "".join(str(output) for output in outputs(book))
    assert not re.findall(r"(?<![\w/:.<-])/[a-z]+/[\w./-]+", stored)  # absolute paths
    assert not [output for output in outputs(book) if output.output_type == "error" or output.get("name") == "stderr"]


def outputs(book: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [output for cell in book.cells if cell.cell_type == "code" for output in cell.outputs]

"""Every notebook runs from top to bottom on a lab of a tiny model, in a kernel of its own."""

import json
import os
import re
from pathlib import Path

import pytest

from tests.conftest import random_gemma
from tests.labs import make_lab

NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))


@pytest.fixture(scope="module")
def place(tmp_path_factory, tiny_config, toy_tokenizer, toy_text) -> Path:
    """A working folder in which `scope demo` might have been run."""
    folder = tmp_path_factory.mktemp("notebooks")
    make_lab(folder / "runs" / "demo", random_gemma(tiny_config, toy_tokenizer), toy_text)
    return folder


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda f: f.stem)
def test_a_notebook_runs_and_its_outputs_stay_small(file, place, monkeypatch):
    import nbformat
    from nbclient import NotebookClient

    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    notebook = nbformat.read(file, as_version=4)
    NotebookClient(notebook, timeout=120, kernel_name="python3", resources={"metadata": {"path": str(place)}}).execute()
    outputs = [out for cell in notebook.cells if cell.cell_type == "code" for out in cell.outputs]
    assert outputs
    assert not any(out.output_type == "error" for out in outputs)
    assert len(json.dumps(outputs)) < 100_000


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda f: f.stem)
def test_a_notebook_in_the_repository_is_small_and_names_no_machine(file):
    text = file.read_text(encoding="utf-8")
    assert len(text) < 200_000
    assert not re.search(r'[\s"\']/[a-z]+/', text), "an absolute path"

"""Every notebook runs from top to bottom on a lab of a tiny model, in a kernel of its own."""

import json
import os
import re
from pathlib import Path

import pytest

from scope.steering.run import SteeringRun
from tests.conftest import random_gemma
from tests.labs import make_bundled_lab, make_lab

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.fixture(scope="module")
def place(tmp_path_factory, tiny_config, toy_tokenizer, toy_text) -> Path:
    """A working folder in which `scope demo` might have been run."""
    folder = tmp_path_factory.mktemp("notebooks")
    make_lab(folder / "runs" / "demo", random_gemma(tiny_config, toy_tokenizer), toy_text)
    return folder


def execute(file: Path, place: Path, monkeypatch) -> list:
    """The outputs of a notebook that is run in a folder."""
    import nbformat
    from nbclient import NotebookClient

    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    notebook = nbformat.read(file, as_version=4)
    NotebookClient(notebook, timeout=120, kernel_name="python3", resources={"metadata": {"path": str(place)}}).execute()
    return [out for cell in notebook.cells if cell.cell_type == "code" for out in cell.outputs]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda f: f.stem)
def test_a_notebook_runs_and_its_outputs_stay_small(file, place, monkeypatch):
    outputs = execute(file, place, monkeypatch)
    assert outputs
    assert not any(out.output_type == "error" for out in outputs)
    assert len(json.dumps(outputs)) < 100_000


@pytest.mark.filterwarnings("ignore")
def test_the_steering_notebook_steers_the_bundled_model(tmp_path, monkeypatch):
    make_bundled_lab(tmp_path / "runs" / "demo")
    outputs = execute(ROOT / "notebooks" / "steer.ipynb", tmp_path, monkeypatch)
    assert not any(out.output_type == "error" for out in outputs)
    assert outputs[-1].data["text/plain"] == "True"  # the run replayed to the same text
    run = SteeringRun.from_json(tmp_path / "run.json")
    assert run.model["model"] == "bundled"
    texts = run.texts()
    assert texts["steered"] not in (texts["plain"], texts["random"])


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda f: f.stem)
def test_a_notebook_in_the_repository_is_small_and_names_no_machine(file):
    text = file.read_text(encoding="utf-8")
    assert len(text) < 200_000
    assert not re.search(r'[\s"\']/[a-z]+/', text), "an absolute path"

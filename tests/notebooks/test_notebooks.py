"""Every notebook runs from top to bottom on the bundled model and a small lab of it; one kernel serves all and forgets each."""

import json
import os
import re
import shutil
from pathlib import Path

import pytest

from scope.steering.compare.steer import SteeringRun
from tests.help.labs import make_bundled_lab

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A working folder in which `scope demo` might have been run, in seconds."""
    folder = tmp_path_factory.mktemp("notebooks")
    make_bundled_lab(folder / "runs" / "demo")
    for result in (ROOT / "notebooks").glob("*.json"):  # of longer runs, beside the notebook that shows it
        shutil.copy(result, folder)
    return folder


@pytest.fixture(scope="module")
def kernel(place):
    """One kernel for all: torch is imported once."""
    from jupyter_client.manager import KernelManager

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
        patch.setenv("OMP_NUM_THREADS", "1")
        manager = KernelManager(kernel_name="python3")
        yield manager
        if manager.has_kernel:
            manager.shutdown_kernel(now=True)


def execute(file: Path, place: Path, kernel) -> list:
    """The outputs of a notebook that is run in a folder."""
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(file, as_version=4)
    notebook.cells.insert(0, nbformat.v4.new_code_cell("%reset -f"))
    client = NotebookClient(notebook, km=kernel, timeout=120, resources={"metadata": {"path": str(place)}})
    client.execute()
    client.kc.stop_channels()
    return [out for cell in notebook.cells if cell.cell_type == "code" for out in cell.outputs]


def printed(outputs: list) -> str:
    return "\n".join(out.get("text") or out.get("data", {}).get("text/plain", "") for out in outputs)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda f: f.stem)
def test_a_notebook_runs_on_the_bundled_model_and_says_what_it_promises(file, place, kernel):
    outputs = execute(file, place, kernel)
    assert not any(out.output_type == "error" for out in outputs)
    assert len(json.dumps(outputs)) < 150_000
    said = printed(outputs)
    if file.stem == "steer":
        assert outputs[-1].data["text/plain"] == "True"  # the run replayed to the same text
        texts = SteeringRun.from_json(place / "run.json").texts()
        assert texts["steered"] not in (texts["plain"], texts["random"])
    elif file.stem == "coming_from_transformer_lens_and_sae_lens":
        assert "tokens equal: True" in said
        assert "the same text: True" in said
        assert float(re.search(r"largest difference of a latent: (\S+),", said)[1]) < 1e-3
    elif file.stem == "read_features":
        rows, difference = map(float, re.search(r"rows (\S+), logit difference (\S+),", said).groups())
        assert rows == pytest.approx(difference, abs=0.02)
    elif file.stem == "infilling":
        assert "'control'" in said
        assert said.count("another in its place                    0          0") == 2
        confirmed = re.search(r"400 middles (?:.*\n)+?own suffix +\d+ +(\d+)", said)[1]
        assert int(confirmed) > 10
        assert f"Of the {confirmed} found" in said
        assert re.search(r"^random +'", said, re.M)
    elif file.stem == "data_commons":
        assert "(2682462 [1]" in said
        assert "No number of this text was retrieved" in said
    elif file.stem == "what_did_fine_tuning_move":
        before, after = map(
            float, re.search(r"Arabic \(\S+ tokens\) \S+ apart, loss (\S+) -> (\S+) on \S+ of them;", said).groups()
        )
        assert after < 0.6 * before
        assert re.search(r"bundled -> bundled\nWeights: none differs.\n.*\nLatents: 0 of", said)
    elif file.stem == "moderation":
        sums = re.findall(r": rows (\S+), log-odds (\S+)", said)
        assert [float(rows) for rows, _ in sums] == pytest.approx([float(odds) for _, odds in sums], abs=1e-3)
        assert "strength" in said
    elif file.stem == "which_patch_made_this_word":
        rows, difference = map(float, re.search(r"rows (\S+), logit difference (\S+)", said).groups())
        assert rows == pytest.approx(difference, abs=0.02)
        shares = re.findall(r"on the object (\d+)% \(all patches (\d+)%\); beats (\d+)%", said)
        assert all(int(on) > 3 * int(chance) and int(beaten) > 60 for on, chance, beaten in shares)
        assert len(shares) == 3
        assert "'plain': [' blue'], 'steered': [' red'], 'random': [' blue']" in said
    elif file.stem == "explain_a_hit":
        rows, score = map(float, re.search(r"rows (\S+), score (\S+)", said).groups())
        assert rows == pytest.approx(score, abs=2e-6)
        assert "'horse and blue diamond': [True, False, " in said
        found = re.search(r"moves by (\S+) ranks on average; with random latents of equal rate by (\S+) ", said)
        moved, null = map(float, found.groups())
        assert moved > null
    elif file.stem == "what_the_state_remembers":
        sums = re.search(r"shares of the last state add up to \{(.*)\}", said)[1]
        assert [float(part.split(":")[1]) for part in sums.split(",")] == pytest.approx([1, 1, 1], abs=1e-4)
        assert "neighbouring tokens of about equal share" in said
        assert "chance" in said
    else:
        assert "FVU" in said
        assert "random" in said


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda f: f.stem)
def test_a_notebook_in_the_repository_is_small_and_names_no_machine(file):
    text = file.read_text(encoding="utf-8")
    assert len(text) < 200_000
    assert not re.search(r'[\s"\']/[a-z]+/', text), "an absolute path"

"""score.py of a monitor's folder: the same numbers without this project, in a process of its own."""

import ast
import json
import shutil
import subprocess
import sys

import pytest

import scope
from scope.monitor.scorer import Scorer
from tests.models.griffin_twins import random_recurrent
from tests.monitor.conftest import rows

TEXTS = [r["text"] for r in rows(6)] + ["the river " * 90]


def test_the_scorer_gives_the_same_numbers_where_scope_cannot_be_imported(folder, checkpoint):
    program = (
        "import sys, json, runpy\n"
        "for name in ('scope', 'app', 'activations'): sys.modules[name] = None\n"
        f"Scorer = runpy.run_path({str(folder / 'score.py')!r})['Scorer']\n"
        f"scorer = Scorer({str(folder)!r})\n"
        f"print(json.dumps([scorer.score(text) for text in {TEXTS!r}]))\n"
    )
    process = subprocess.run([sys.executable, "-P", "-W", "ignore", "-c", program], capture_output=True, text=True, cwd=folder)
    assert process.returncode == 0, process.stderr[-2000:]
    theirs = json.loads(process.stdout.splitlines()[-1])
    ours = scope.run_monitor(folder, texts=TEXTS).rows
    scale = max(abs(row.score) for row in ours)
    for one, two in zip(theirs, ours, strict=True):
        assert one["score"] == pytest.approx(two.score, rel=1e-5, abs=1e-5 * scale)
        assert one["alarm"] == two.alarm
        values = [v for v in two.values if v is not None]
        assert [v for _, v in one["tokens"]] == pytest.approx(values, rel=1e-5, abs=2e-5 * max(map(abs, values)))


def test_a_recurrent_model_is_scored_with_the_window_that_it_was_trained_with(tmp_path, toy_tokenizer):
    model = str(random_recurrent(tmp_path / "model", toy_tokenizer))
    settings = {"model": model, "site": "blocks.2.hook_resid_mid", "nulls": 1, "fpr": 0.1, "aggregation": "mean"}
    monitor = scope.fit_monitor(rows(100), difference=True, out=tmp_path / "monitor", **settings)
    assert monitor.sliding_window == scope.load_model(model).cfg.window + 1
    theirs = Scorer(tmp_path / "monitor").score(TEXTS[-1])
    ours = scope.run_monitor(tmp_path / "monitor", text=TEXTS[-1]).rows[0]
    assert theirs["score"] == pytest.approx(ours.score, rel=1e-5)


def test_the_scorer_imports_nothing_but_torch_transformers_and_safetensors(folder):
    modules = set()
    for node in ast.walk(ast.parse((folder / "score.py").read_text())):
        modules |= {alias.name for alias in node.names} if isinstance(node, ast.Import) else set()
        modules |= {str(node.module).split(".")[0]} if isinstance(node, ast.ImportFrom) else set()
    assert modules - set(sys.stdlib_module_names) == {"torch", "transformers", "safetensors"}


@pytest.mark.parametrize(
    ("name", "says"), [("bundled", "comes with scope, in its folder scope/models/bundled"), ("/none", "cannot be read")]
)
def test_a_model_that_transformers_does_not_find_is_refused_with_the_way_out(folder, tmp_path, name, says):
    moved = shutil.copytree(folder, tmp_path / "monitor")
    known = json.loads((moved / "monitor.json").read_text())
    known["model"]["model"] = name
    (moved / "monitor.json").write_text(json.dumps(known))
    with pytest.raises(SystemExit, match=rf"{says}(.|\n)*--model FOLDER_OR_HUB_ID"):
        Scorer(moved)

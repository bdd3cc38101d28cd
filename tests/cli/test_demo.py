"""`scope demo` as a person gives it, on a tiny model: it leaves everything, goes on after any end, and does nothing twice."""

import hashlib
import json
import os
import shutil
import signal
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from scope.cli.main import run
from scope.features.face import Pack
from scope.sae.files import read_sae
from scope.training.trainer import CHECKPOINT
from tests.conftest import random_gemma
from tests.help.labs import save_checkpoint

SMALL = ["--tokens", "4000", "--d-sae", "48", "--target-l0", "6", "--steps", "40"]


@pytest.fixture(autouse=True)
def listening_to_ctrl_c():
    """A shell starts what runs in its background with Ctrl-C ignored; the tests press it themselves."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Tensors here are tiny: threads would wait for one another longer than they work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def given(tmp_path_factory, tiny_config, toy_tokenizer, toy_text) -> list[str]:
    """The flags that name a tiny checkpoint and a small corpus on disk."""
    folder = tmp_path_factory.mktemp("given")
    save_checkpoint(random_gemma(tiny_config, toy_tokenizer), folder / "checkpoint")
    (folder / "toy.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in toy_text))
    return ["--model", str(folder / "checkpoint"), "--corpus", str(folder / "toy.jsonl"), *SMALL]


@pytest.fixture(scope="module")
def whole(given, tmp_path_factory) -> Path:
    """What a run that nobody stopped leaves."""
    out = tmp_path_factory.mktemp("demo") / "whole"
    assert demo(given, out) == 0
    return out


def demo(given: list[str], out: Path) -> int:
    return run(["demo", "--no-app", "--out", str(out), *given])


def files(out: Path) -> dict[str, tuple[int, str]]:
    """When each file of the three folders was written, and what is in it."""
    found = [file for name in ("recording", "dictionary", "pack") for file in sorted((out / name).rglob("*"))]
    return {
        str(file.relative_to(out)): (file.stat().st_mtime_ns, hashlib.sha256(file.read_bytes()).hexdigest())
        for file in found
        if file.is_file() and not file.name.endswith(".lock")  # a lock is taken by whoever looks
    }


def same_dictionary(a: Path, b: Path) -> bool:
    pairs = zip(read_sae(a / "dictionary").state_dict().items(), read_sae(b / "dictionary").state_dict().items(), strict=True)
    return all(one == other and torch.equal(x, y) for (one, x), (other, y) in pairs)


def same_pack(a: Path, b: Path) -> bool:
    return Pack.open(a / "pack").table.equals(Pack.open(b / "pack").table)


def press_at(stage: str, step: int):
    """A progress bar that presses Ctrl-C once a stage has come this far, as the terminal would: by the signal."""

    @contextmanager
    def bar(title: str, unit: str = "steps"):
        pressed = False

        def on_progress(done: int, total: int, numbers: dict | None = None) -> None:
            nonlocal pressed
            if title == stage and done >= step and not pressed:
                pressed = True
                os.kill(os.getpid(), signal.SIGINT)

        yield on_progress

    return bar


def test_the_whole_way_leaves_everything_that_the_app_and_a_reader_need(whole):
    assert {"recording", "dictionary", "pack", "report.json", "steering.json"} <= {file.name for file in whole.iterdir()}
    report = json.loads((whole / "report.json").read_text())
    assert set(report["seconds"]) == {"harvest", "train", "evaluate", "features", "steer", "total"}
    assert report["evaluation"]["arms"]["sae"]["fvu"] > 0
    assert Pack.open(whole / "pack").site == read_sae(whole / "dictionary").site == "blocks.2.hook_resid_post"
    assert json.loads((whole / "steering.json").read_text())


def test_p36_the_same_command_again_redoes_nothing(given, whole):
    before = files(whole)
    assert len(before) > 6
    assert demo(given, whole) == 0
    assert files(whole) == before


def test_p36_ctrl_c_in_every_stage_is_told_and_the_last_run_ends_in_the_same_dictionary_and_pack(
    given, whole, tmp_path, monkeypatch, capsys
):
    finished = {}
    for stage, step in [("Harvesting", 1), ("Training", 20), ("Scoring", 1), ("Collecting", 1)]:
        with monkeypatch.context() as patched:
            patched.setattr("scope.cli.progress.progress_bar", press_at(stage, step))
            assert demo(given, tmp_path) == 130, stage
        assert "the same command continues" in capsys.readouterr().err
        assert (tmp_path / "dictionary" / CHECKPOINT).exists() == (stage == "Training")
        assert not (tmp_path / "pack").exists()
        assert finished.items() <= files(tmp_path).items(), f"what was finished before {stage} was done again"
        kept = {"Training": "recording", "Scoring": ("recording", "dictionary")}.get(stage, ())
        finished |= {name: file for name, file in files(tmp_path).items() if kept and name.startswith(kept)}
    assert demo(given, tmp_path) == 0
    assert finished.items() <= files(tmp_path).items()
    assert same_dictionary(whole, tmp_path)
    assert same_pack(whole, tmp_path)


def test_a_pack_of_another_seed_is_collected_anew(given, whole, tmp_path):
    """As after `scope features --seed 3` into the demo's folder: its examples are not those that the demo shows."""
    out = shutil.copytree(whole, tmp_path / "demo")
    flags = ["--recording", str(out / "recording"), "--out", str(out / "pack"), "--seed", "3", "--score-prompts", "1"]
    assert run(["features", str(out / "dictionary"), *flags]) == 0
    assert Pack.open(out / "pack").manifest.config["seed"] == 3
    assert demo(given, out) == 0
    assert Pack.open(out / "pack").manifest.config["seed"] == 0
    assert same_pack(whole, out)


def test_a_report_of_an_older_form_is_made_anew_and_nothing_else_is(given, whole, tmp_path):
    out = shutil.copytree(whole, tmp_path / "demo")
    report, before = out / "dictionary" / "evaluation.json", files(out)
    made = report.read_text()
    old = {k: v for k, v in json.loads(made).items() if k not in ("form", "positions", "training")}
    old["arms"]["sae"] = {k: v for k, v in old["arms"]["sae"].items() if k != "norm_ratio"}
    report.write_text(json.dumps(old))
    assert demo(given, out) == 0
    assert report.read_text() == made
    after = files(out)
    assert [name for name in before if after[name][0] != before[name][0]] == ["dictionary/evaluation.json"]


def test_a_corpus_that_ends_early_is_said_and_the_demo_goes_on(given, tmp_path, capsys):
    (tmp_path / "text.txt").write_text("the dog runs to the river and my sister sees it. " * 400)
    small = ["--tokens", "500k", "--d-sae", "48", "--target-l0", "6", "--steps", "10"]
    corpus = ["--model", given[1], "--corpus", str(tmp_path / "text.txt"), *small]
    assert demo(corpus, tmp_path / "lab") == 0
    output = " ".join(capsys.readouterr().out.split())
    assert "of 500,000 tokens; the demo goes on with these" in output
    report = json.loads((tmp_path / "lab" / "dictionary" / "evaluation.json").read_text())
    assert any("not held out" in note for note in report["notes"])


def test_a_quick_look_does_not_replace_a_fuller_report_and_a_new_report_reaches_the_pack(given, whole, tmp_path, capsys):
    out = shutil.copytree(whole, tmp_path / "demo")
    report, model = out / "dictionary" / "evaluation.json", given[1]
    before = report.read_bytes()
    look = ["evaluate", str(out / "dictionary"), "--model", model, "--recording", str(out / "recording"), "--contexts", "2"]
    assert run([*look, "--no-nulls"]) == 0
    assert "is kept" in " ".join(capsys.readouterr().out.split())
    assert report.read_bytes() == before
    assert run([*look, "--json", str(report)]) == 0
    assert demo(given, out) == 0
    assert Pack.open(out / "pack").health["evaluation"] == json.loads(report.read_text())


@pytest.mark.filterwarnings("ignore")  # transformers'
def test_the_demo_of_a_model_that_reads_pictures_ends_in_heat_maps(tmp_path):
    from tests.models.vision_twins import siglip

    folder = siglip(tmp_path / "siglip")
    small = ["--tokens", "1500", "--d-sae", "24", "--target-l0", "4", "--steps", "10"]
    given = ["--model", str(folder), "--corpus", "scenes:120", *small]
    assert demo(given, tmp_path / "demo") == 0
    pack = Pack.open(tmp_path / "demo" / "pack")
    feature = next(f for f in pack if f.pictures())
    assert feature.pictures()[0].acts.max() > 0
    report = json.loads((tmp_path / "demo" / "report.json").read_text())
    assert "output_change" in report["evaluation"]["arms"]["sae"]
    before = {f.name: f.stat().st_mtime_ns for f in (tmp_path / "demo" / "pack").iterdir()}
    assert demo(given, tmp_path / "demo") == 0
    assert before == {f.name: f.stat().st_mtime_ns for f in (tmp_path / "demo" / "pack").iterdir()}

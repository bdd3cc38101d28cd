"""The whole way in Python, as the README's block has it, on a tiny model: the same artefacts as the commands make."""

import json

import numpy as np
import pytest
import torch
from scope.activations.read.store import ActivationStore

import scope
from scope.cli.main import run
from scope.evaluation.result import Evaluation
from tests.conftest import random_gemma

SITE = "blocks.1.hook_resid_post"


@pytest.fixture(scope="module")
def made(tmp_path_factory, tiny_config, toy_tokenizer, toy_text):
    """A folder with what five calls made, and what they returned."""
    from tests.help.labs import save_checkpoint

    folder = tmp_path_factory.mktemp("python")
    model = str(save_checkpoint(random_gemma(tiny_config, toy_tokenizer), folder / "checkpoint"))
    corpus = folder / "toy.jsonl"
    corpus.write_text("\n".join(json.dumps({"text": text}) for text in toy_text))
    results, notes = {}, []
    harvested = {"corpus": str(corpus), "sites": SITE, "tokens": 3000, "context": 32, "out": folder / "recording"}
    results["recording"] = scope.harvest(model, **harvested)
    results["sae"] = scope.train(
        folder / "recording", d_sae=48, target_l0=6.0, steps=30, out=folder / "sae", on_note=notes.append
    )
    scored = {"recording": folder / "recording", "contexts": 8, "random_model": False}
    results["evaluation"] = scope.evaluate(folder / "sae", model=model, certificate=False, on_note=notes.append, **scored)
    collected = {"recording": folder / "recording", "out": folder / "pack", "certificate": False, "score_prompts": 2}
    results["pack"] = scope.collect_features(folder / "sae", model=model, **collected)
    latent = int(results["pack"].table["count"].idxmax())
    steered = {"prompt": "the dog", "max_new_tokens": 4, "certificate": False}
    results["run"] = scope.steer(folder / "sae", model=model, latent=latent, strength=0.3, **steered)
    return folder, results, notes


def test_each_call_returns_what_lies_on_disk(made):
    folder, results, _ = made
    assert isinstance(results["recording"], ActivationStore)
    assert isinstance(results["evaluation"], Evaluation)
    assert results["pack"].d_sae == results["sae"].d_sae == 48
    assert torch.equal(scope.load_sae(folder / "sae").W_dec, results["sae"].W_dec)
    assert "steered" in [condition.name for condition in results["run"].conditions]


def test_what_was_not_checked_is_noted(made):
    assert any("was not checked" in note for note in made[2])


def test_the_command_finds_the_work_of_the_call_done(made, capsys):
    folder, _, _ = made
    before = (folder / "sae" / "sae_weights.safetensors").stat().st_mtime_ns
    flags = ["--d-sae", "48", "--target-l0", "6", "--steps", "30", "--out", str(folder / "sae")]
    assert run(["train", str(folder / "recording"), *flags]) == 0
    assert (folder / "sae" / "sae_weights.safetensors").stat().st_mtime_ns == before


def test_a_sweep_returns_the_dictionaries_by_name(made):
    folder, _, _ = made
    several = scope.train(folder / "recording", d_sae=16, target_l0=[3, 4], steps=5, out=folder / "sweep")
    assert sorted(several) == sorted(f.name for f in (folder / "sweep").iterdir() if f.is_dir())
    assert {sae.config.target_l0 for sae in several.values()} == {3.0, 4.0}


def test_a_plan_that_is_not_confirmed_does_nothing(made, tmp_path):
    folder, _, _ = made
    corpus, model = str(folder / "toy.jsonl"), str(folder / "checkpoint")
    plans = []

    def confirm(planned):
        plans.append(planned)
        return False

    out = tmp_path / "recording"
    assert scope.harvest(model, corpus=corpus, tokens=64, context=32, out=out, confirm=confirm) is None
    assert plans[0].tokens == 64
    assert not out.exists() or not np.any([f.suffix == ".h5" for f in out.iterdir()])

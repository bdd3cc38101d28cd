"""Workflows on infilling examples: trained live, collected by role, scored on held-out examples; what cannot be is refused."""

import json

import pytest

import scope
from scope.errors import ConfigError
from scope.sae.files import save_sae
from tests.features.test_collect import toy_sae
from tests.help.labs import save_checkpoint

SITE = "blocks.1.hook_resid_post"


@pytest.fixture(scope="module")
def coder_folder(coding_gemma, tmp_path_factory):
    return str(save_checkpoint(coding_gemma, tmp_path_factory.mktemp("coder") / "checkpoint"))


@pytest.fixture(scope="module")
def text(toy_text, tmp_path_factory):
    file = tmp_path_factory.mktemp("text") / "text.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in toy_text))
    return str(file)


def test_a_dictionary_is_trained_live_on_infilling_examples_and_its_pack_shows_roles(coder_folder, text, tmp_path):
    live = {"model": coder_folder, "corpus": text, "context": 48, "fim": "psm:0.5,spm:0.5"}
    short = {"d_sae": 64, "steps": 20, "batch_size": 128, "target_l0": 8}
    sae = scope.train(site=SITE, out=tmp_path / "sae", **live, **short)
    recorded = sae.provenance["recording"]
    assert (recorded["fim"], recorded["fim_seed"], recorded["stored"]) == ("psm:0.5,spm:0.5", 0, False)
    few = {"tokens": 2000, "score_prompts": 1, "score_null": 2}
    pack = scope.collect_features(tmp_path / "sae", out=tmp_path / "pack", certificate=False, **live, **few)
    assert list(pack.manifest.roles) == ["prefix", "suffix", "middle", "control"]
    assert pack.manifest.text["corpus"]["fim"] == live["fim"]


def test_a_recording_of_examples_is_scored_on_held_out_examples(coder_folder, text, tmp_path):
    from scope.activations.corpus.sources import open_corpus
    from scope.activations.read.store import ActivationStore

    from scope.models.load import load_model
    from scope.workflows.text import contexts_held_out

    scope.harvest(coder_folder, corpus=text, fim="psm", out=str(tmp_path / "rec"), site=SITE, tokens=2000, context=48)
    tokenizer = load_model(coder_folder).tokenizer
    tokens, _, _ = contexts_held_out(ActivationStore.open(tmp_path / "rec"), open_corpus(text), tokenizer, 10)
    assert (tokens[:, 1] == tokenizer.encode("<|fim_prefix|>", bos=False)[0]).all()


@pytest.mark.parametrize("workflow", [scope.train, scope.collect_features])
def test_the_form_of_a_recording_is_its_own(workflow, tmp_path):
    with pytest.raises(ConfigError, match="a recording has the form in which `scope harvest --fim` made it"):
        workflow(tmp_path / "x", fim="psm", **({"recording": tmp_path} if workflow is scope.collect_features else {}))


def test_an_infill_is_steered_with_other_files_in_its_context(coder_folder, coding_gemma, tmp_path):
    save_sae(toy_sae(coding_gemma), tmp_path / "sae")
    (tmp_path / "other.py").write_text("the dog runs")
    run = scope.steer(
        tmp_path / "sae",
        model=coder_folder,
        latent=3,
        infill=("the cat ", " the river"),
        infill_form="spm",
        infill_files=tmp_path / "other.py",
        max_new_tokens=3,
        certificate=False,
        any_model=True,
    )
    order = "<|fim_suffix|> the river<|fim_prefix|>the cat <|fim_middle|>"
    assert list(run.prompts) == ["the dog runs<|file_separator|>" + order]

"""`scope train` and `scope evaluate` as a person gives them, on a tiny model."""

import json

import pytest

from scope.cli.main import run
from scope.sae.files import load_sae

SITE = "blocks.1.hook_resid_post"
SMALL = ["--d-sae", "64", "--target-l0", "6", "--steps", "30", "--batch-size", "64"]


@pytest.fixture
def folder(tmp_path, toy_text, tiny_model, monkeypatch):
    """A folder with a recording of two sites in it, and a tiny model in the place of every model that is asked for."""
    monkeypatch.setattr("scope.models.load.load_model", lambda *args, **kwargs: tiny_model)
    (tmp_path / "toy.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in toy_text))
    sites = ["--site", SITE, "--site", "blocks.2.hook_mlp_out"]
    harvest = ["harvest", "--corpus", str(tmp_path / "toy.jsonl"), "--out", str(tmp_path / "recording"), *sites]
    assert run([*harvest, "--context", "32", "--tokens", "3000"]) == 0
    return tmp_path


def scope(command: str, path, *flags: str) -> int:
    return run([command, str(path), *map(str, flags)])


def test_a_recording_becomes_a_dictionary_and_the_dictionary_a_table(folder, capsys):
    assert scope("train", folder / "recording", "--site", SITE, "--out", folder / "dictionary", *SMALL) == 0
    assert "64 latents over blocks.1.hook_resid_post" in " ".join(capsys.readouterr().out.split())
    sae = load_sae(folder / "dictionary")
    assert (sae.site, sae.d_in, sae.d_sae) == (SITE, 32, 64)
    assert sae.provenance["model"]["weights_sha256"] == "random-0"
    assert sae.provenance["recording"]["corpus"]["sha256"]
    assert scope("evaluate", folder / "dictionary", "--recording", folder / "recording", "--contexts", "8") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "random dictionary" in said
    assert "not held out" in said
    scores = json.loads((folder / "dictionary" / "evaluation.json").read_text())
    assert 0 < scores["arms"]["sae"]["fvu"] < 1
    assert set(scores["arms"]) == {"sae", "random", "pca", "mean", "zero"}


def test_text_can_come_from_a_corpus(folder):
    assert scope("train", folder / "recording", "--site", SITE, "--out", folder / "dictionary", *SMALL) == 0
    flags = ["--corpus", folder / "toy.jsonl", "--context", "32", "--contexts", "6", "--json", folder / "scores.json"]
    assert scope("evaluate", folder / "dictionary", *flags) == 0
    assert json.loads((folder / "scores.json").read_text())["counted"]["contexts"] == 6


def test_given_both_the_text_is_that_of_the_corpus_which_the_recording_does_not_hold(folder, capsys):
    assert scope("train", folder / "recording", "--site", SITE, "--out", folder / "dictionary", *SMALL) == 0
    flags = ["--recording", folder / "recording", "--corpus", folder / "toy.jsonl", "--contexts", "6"]
    capsys.readouterr()
    assert scope("evaluate", folder / "dictionary", *flags) == 0
    assert "not held out" not in capsys.readouterr().out
    assert "held_out" in json.loads((folder / "dictionary" / "evaluation.json").read_text())["provenance"]["text"]


def test_a_site_that_was_not_recorded_or_not_named_is_said_with_those_that_were(folder, capsys):
    for flags in (["--site", "blocks.3.hook_resid_post"], []):
        assert scope("train", folder / "recording", *flags, "--out", folder / "d", *SMALL) == 2
        assert "It holds: blocks.1.hook_resid_post, blocks.2.hook_mlp_out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--target-l0", "100"], "target_l0 is 100"),
        (["--d-in", "31"], "32 wide"),
        (["--batch-size", "0"], "batch_size is 0"),
        (["--batch-size", "1000000"], "rows"),
    ],
)
def test_settings_that_cannot_be_end_with_a_message_and_exit_code_2(folder, capsys, flags, said):
    assert scope("train", folder / "recording", "--site", SITE, "--out", folder / "d", *SMALL, *flags) == 2
    assert said in capsys.readouterr().err


def test_an_evaluation_must_be_told_its_text_once(folder, capsys):
    assert scope("train", folder / "recording", "--site", SITE, "--out", folder / "dictionary", *SMALL) == 0
    assert scope("evaluate", folder / "dictionary") == 2
    assert "where the text comes from" in capsys.readouterr().err


def test_there_is_no_dictionary_where_there_is_none(folder, capsys):
    assert scope("evaluate", folder / "nothing", "--corpus", "docs") == 2
    assert "There is no folder" in capsys.readouterr().err
    assert scope("train", folder / "nothing", "--out", folder / "d") == 2

"""`scope train` and `scope evaluate` as a person gives them, on a tiny model."""

import json

import pytest
import torch

from scope.cli.main import run
from scope.sae.files import read_sae

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
    sae = read_sae(folder / "dictionary")
    assert (sae.site, sae.d_in, sae.d_sae) == (SITE, 32, 64)
    assert sae.provenance["model"]["weights_sha256"] == "random-0"
    assert sae.provenance["recording"]["corpus"]["sha256"]
    assert json.loads((folder / "dictionary" / "cfg.json").read_text())["metadata"]["context_size"] == 32  # for SAELens
    assert scope("evaluate", folder / "dictionary", "--recording", folder / "recording", "--contexts", "8") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "random dictionary" in said
    assert "not held out" in said
    scores = json.loads((folder / "dictionary" / "evaluation.json").read_text())
    assert 0 < scores["arms"]["sae"]["fvu"] < 1
    assert set(scores["arms"]) == {"sae", "random", "pca", "random_model", "mean", "zero"}


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


def test_p07_text_held_out_of_another_recording_is_not_called_unseen(folder, capsys):
    """The dictionary has read more of the corpus than the recording that is given."""
    assert scope("train", folder / "recording", "--site", SITE, "--out", folder / "dictionary", *SMALL) == 0
    harvest = ["harvest", "--corpus", str(folder / "toy.jsonl"), "--out", str(folder / "less"), "--site", SITE]
    assert run([*harvest, "--context", "32", "--tokens", "600"]) == 0
    for recording, told in (("less", True), ("recording", False)):
        capsys.readouterr()
        flags = ["--recording", folder / recording, "--corpus", folder / "toy.jsonl", "--contexts", "6"]
        assert scope("evaluate", folder / "dictionary", *flags) == 0
        assert ("may have read this text" in " ".join(capsys.readouterr().out.split())) is told


def test_p07_text_that_was_read_under_another_name_is_told_beside_text_that_was_not(folder, capsys):
    assert scope("train", folder / "recording", "--site", SITE, "--out", folder / "dictionary", *SMALL) == 0
    (folder / "renamed.jsonl").write_text((folder / "toy.jsonl").read_text())
    fresh = [json.dumps({"text": f"{i * 7919} sheep and {i * 104729} goats went over the hill"}) for i in range(60)]
    (folder / "fresh.jsonl").write_text("\n".join(fresh))
    shares = {}
    for name in ("renamed", "fresh"):
        capsys.readouterr()
        flags = ["--corpus", folder / f"{name}.jsonl", "--context", "32", "--contexts", "6", "--no-random-model"]
        assert scope("evaluate", folder / "dictionary", *flags, "--json", folder / f"{name}.json") == 0
        said = " ".join(capsys.readouterr().out.split())
        assert ("are in the training text of the dictionary" in said) is (name == "renamed")
        found = json.loads((folder / f"{name}.json").read_text())["provenance"]["text"]["read_in_training"]
        shares[name] = found["shared"] / found["compared"]
    assert shares["renamed"] > 0.2  # packed anew, so that runs over the ends of contexts are not there
    assert shares["fresh"] == 0


def test_folders_with_brackets_are_said_as_they_are(folder, capsys):
    out = folder / "a [bold]" / "[" / "bold] b"  # as one path it also closes what it opened: [/bold]
    assert scope("train", folder / "recording", "--site", SITE, "--out", out, *SMALL) == 0
    assert scope("evaluate", out, "--recording", folder / "recording", "--contexts", "4", "--no-random-model") == 0
    assert capsys.readouterr().out.replace("\n", "").count("[bold]") >= 2


def test_every_combination_is_trained_in_one_pass_each_as_if_it_were_alone(folder, capsys):
    many = ["--site", "all", "--target-l0", "4,6", "--seed", "0,1"]
    small = ["--d-sae", "64", "--steps", "30", "--batch-size", "64"]
    assert scope("train", folder / "recording", "--out", folder / "many", *many, *small) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "8 dictionaries over 2 sites" in said
    assert "of gradients and Adam" in said
    assert len(list((folder / "many").glob("*/scope.json"))) == 8
    alone = ["--site", SITE, "--target-l0", "6", "--seed", "1", "--order-seed", "0"]
    assert scope("train", folder / "recording", "--out", folder / "one", *alone, *small) == 0
    one, same = read_sae(folder / "one"), read_sae(folder / "many" / f"{SITE}-d64-l0_6-seed1")
    assert all(torch.equal(p, q) for p, q in zip(one.parameters(), same.parameters(), strict=True))
    capsys.readouterr()
    assert scope("runs", folder) == 0
    table = " ".join(capsys.readouterr().out.split())
    assert table.count("finished") == 9
    assert scope("runs", folder, "--json") == 0
    assert {run["target"] for run in json.loads(capsys.readouterr().out)} == {4.0, 6.0}


def test_a_running_model_is_read_through_a_buffer_and_nothing_is_stored(folder, capsys):
    flags = ["--model", "tiny", "--corpus", folder / "toy.jsonl", "--site", "blocks.1.attn.hook_z", "--out", folder / "live"]
    small = ["--d-sae", "64", "--target-l0", "6", "--tokens", "2k", "--batch-size", "64", "--context", "32"]
    assert run(["train", *map(str, flags), *small]) == 0
    sae = read_sae(folder / "live")
    assert sae.d_in == 48  # 4 heads of 12, side by side: not the width of the stream
    assert sae.provenance["recording"]["config"]["exclude"] == ["bos", "special", "pad"]
    assert sae.provenance["model"]["weights_sha256"] == "random-0"
    assert sae.provenance["training"]["tokens"] == 2048
    assert not list((folder / "live").rglob("*.h5"))


@pytest.mark.parametrize("kind", [["topk", "--k", "6"], ["batch_topk", "--k", "6"], ["gated", "--target-l0", "6"]])
def test_every_kind_is_trained_by_its_own_flags(folder, kind):
    small = ["--d-sae", "64", "--steps", "30", "--batch-size", "64"]
    assert scope("train", folder / "recording", "--site", SITE, "--out", folder / "d", "--kind", *kind, *small) == 0
    assert read_sae(folder / "d").kind == kind[0]


def test_the_preset_and_every_value_that_it_decided_are_written_down(folder):
    flags = [
        "--preset",
        "gemma-scope",
        "--d-sae",
        "64",
        "--steps",
        "20",
        "--batch-size",
        "64",
        "--l0-weight",
        "0.001",
        "--lr",
        "0.01",
    ]
    assert scope("train", folder / "recording", "--site", SITE, "--out", folder / "d", *flags) == 0
    said = json.loads((folder / "d" / "training.json").read_text())
    assert said["preset"] == "gemma-scope"
    assert (said["training"]["lr"], said["training"]["warmup_shape"], said["training"]["pre_bias"]) == (0.01, "cosine", True)
    assert (said["dictionary"]["bandwidth"], said["dictionary"]["l0_weight"]) == (0.001, 0.001)


def test_p35_a_value_that_is_no_number_is_told_with_its_shard_and_row(folder, capsys):
    from scope.activations.read.store import ActivationStore

    from scope.workflows.training_source import RecordedBatches

    store = ActivationStore.open(folder / "recording")
    batches = RecordedBatches(store, [SITE], 64, 0, 1 << 20)
    batch = next(iter(batches))
    said = batches.where(5, 64)
    number = int(said.split(" of the recording")[0].removeprefix("row ").replace(",", ""))
    assert torch.equal(store[SITE][number], batch[5])
    assert "of its shard shard-00000" in said


def test_a_site_that_was_not_recorded_or_not_named_is_said_with_those_that_were(folder, capsys):
    for flags in (["--site", "blocks.3.hook_resid_post"], []):
        assert scope("train", folder / "recording", *flags, "--out", folder / "d", *SMALL) == 2
        assert "It has: blocks.1.hook_resid_post, blocks.2.hook_mlp_out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--target-l0", "100"], "target_l0 is 100"),
        (["--d-in", "31"], "32 wide"),
        (["--batch-size", "0"], "batch_size is 0"),
        (["--batch-size", "1000000"], "rows"),
        (["--tokens", "2k"], "Give one of them"),
        (["--k", "5"], "is a flag of topk"),
        (["--preset", "gemma-scope", "--kind", "topk"], "recipe for jumprelu"),
        (["--parallel", "width"], "torchrun --nproc-per-node 2"),
        (["--model", "tiny"], "Both a recording and --model"),
        (["--corpus", "docs"], "a recording brings its own"),
        (["--device", "cuda:99"], "cannot be used here"),
        (["--seed", "1,1"], "same value twice"),
        (["--shuffle-mb", "0"], "shuffle_mb is 0"),
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

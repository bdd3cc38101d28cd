"""`scope.diff` and `scope diff`: adapters and checkpoints, groups of text, a folder that goes on where it was stopped."""

import copy
import json

import pytest
import torch

import scope
from scope.cli.main import run
from scope.diffing import reading
from scope.diffing.result import Diff
from scope.errors import ConfigError, PackError
from scope.features.face import Pack
from scope.models.load import load_model
from scope.sae.files import save_sae
from scope.workflows.diff import PARTIAL
from tests.help.labs import make_lab, save_checkpoint
from tests.steering.conftest import random_sae

SMALL = {"contexts": 8, "context": 48, "redraws": 60, "loss_contexts": 2, "sites": "blocks.*.hook_resid_post"}


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """A folder with an SAE of random directions."""
    sae = random_sae(256, 96, "blocks.1.hook_resid_post")
    sae.provenance = {"model": dict(load_model("bundled").provenance)}
    save_sae(sae, (folder := tmp_path_factory.mktemp("lab")) / "dictionary")
    return folder


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Forty short documents of two domains, in two scripts."""
    file = tmp_path_factory.mktemp("text") / "some.jsonl"
    texts = ["The population of France in 1997 was", "كان عدد سكان فرنسا عام 1997"]
    rows = [{"text": f"{texts[i % 2]} {i * 1000}.", "domain": ("facts", "حقائق")[i % 2]} for i in range(40)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def test_an_adapter_is_compared_with_its_base_in_whatever_way_it_is_named(lab, corpus, tmp_path):
    found = scope.diff("bundled", "bundled+rig", sae=lab, corpus=str(corpus), out=tmp_path / "diff", **SMALL)
    assert {w.source for w in found.weights} == {"adapter"}
    assert max(w.rank for w in found.weights) <= 8
    assert [g.group for g in found.groups] == ["Arabic", "Latin"]
    assert found.transfer[1].fvu != found.transfer[0].fvu
    assert str(Diff.load(tmp_path / "diff")) == str(found)
    command = json.loads((tmp_path / "diff" / "manifest.json").read_text())["provenance"]["command"]
    again = scope.diff(
        command["base"],
        command["tuned"],
        sae=command["sae"],
        corpus=command["corpus"],
        by=command["by"],
        **SMALL,
    )
    assert again.to_frame("updates").equals(found.to_frame("updates"))
    assert str(again) == str(found)


def test_a_whole_checkpoint_is_compared_with_labels_of_the_pack_beside_its_latents(tiny_model, toy_text, tmp_path):
    lab = make_lab(tmp_path / "lab", tiny_model, toy_text)
    tuned = copy.deepcopy(tiny_model)
    with torch.no_grad():
        tuned.blocks[0].mlp.down_proj.weight[:, 3] += 0.5
    folder = save_checkpoint(tuned, tmp_path / "tuned")
    Pack.open(lab / "pack").notes.set_label(5, "the fifth", "a person")
    (tmp_path / "text.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in toy_text))
    found = scope.diff(str(lab / "checkpoint"), str(folder), pack=lab / "pack", corpus=str(tmp_path / "text.jsonl"), **SMALL)
    assert [(w.parameter, w.rank, w.source) for w in found.weights] == [("blocks.0.mlp.down_proj.weight", 1, "weights")]
    assert found.latents["label"][5] == "the fifth"


def test_text_is_grouped_by_a_field_of_the_corpus_and_by_corpus(corpus, tmp_path):
    found = scope.diff("bundled", "bundled", corpus=str(corpus), by="domain", **SMALL)
    assert {g.group for g in found.groups} == {"facts", "حقائق"}
    other = tmp_path / "other.txt"
    other.write_text("A second text that is not of the first corpus. " * 60)
    found = scope.diff("bundled", "bundled", corpus=(str(corpus), str(other)), by="corpus", **SMALL)
    assert {g.group for g in found.groups} == {"some", "other"}


def test_a_comparison_stopped_by_ctrl_c_goes_on_in_its_folder(lab, corpus, tmp_path, monkeypatch):
    whole = scope.diff("bundled", "bundled+rig", sae=lab, corpus=str(corpus), batch_contexts=2, **SMALL)
    monkeypatch.setattr("scope.workflows.diff._EVERY", 0.0)
    add, calls = reading.Reader._add, []

    def stopped(self, *args):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return add(self, *args)

    monkeypatch.setattr(reading.Reader, "_add", stopped)
    ways = {"sae": lab, "corpus": str(corpus), "out": tmp_path / "diff", "batch_contexts": 2, **SMALL}
    with pytest.raises(KeyboardInterrupt):
        scope.diff("bundled", "bundled+rig", **ways)
    assert (tmp_path / "diff" / PARTIAL).exists()
    found = scope.diff("bundled", "bundled+rig", **ways)
    assert len(calls) == 3 + 2  # two of four batches were kept
    assert str(found) == str(whole)
    assert not (tmp_path / "diff" / PARTIAL).exists()


def test_the_command_says_the_verdict_first_and_writes_folder_and_page(lab, corpus, tmp_path, capsys):
    flags = ["--contexts", "8", "--context", "48", "--redraws", "60", "--loss-contexts", "2"]
    flags += ["--sae", str(lab), "--corpus", str(corpus), "--out", str(tmp_path / "d"), "--html", str(tmp_path / "d.html")]
    assert run(["diff", "bundled", "bundled+fim", *flags]) == 0
    printed = capsys.readouterr().out
    assert printed.index("Weights: ") < printed.index("Latents: ") < printed.index("constant  rank")
    assert "tokenizer of its own" in printed
    assert (tmp_path / "d" / "manifest.json").exists()
    assert "<h2>Weights</h2>" in (tmp_path / "d.html").read_text()


def test_a_model_against_itself_is_said_to_be_the_same_by_the_command(corpus, capsys):
    flags = ["--contexts", "8", "--context", "48", "--loss-contexts", "0", "--sites", "blocks.0.hook_resid_post"]
    assert run(["diff", "bundled", "bundled", "--corpus", str(corpus), *flags]) == 0
    printed = capsys.readouterr().out
    assert "Weights: none differs." in printed
    assert "Activations: equal at 1 sites." in printed


def test_a_folder_of_something_else_or_of_other_models_is_left_as_it_is(corpus, tmp_path):
    (tmp_path / "recording").mkdir()
    (tmp_path / "recording" / "manifest.json").write_text('{"sites": {}}')
    with pytest.raises(ConfigError, match=r"something else than a comparison: manifest\.json"):
        scope.diff("bundled", "bundled+rig", corpus=str(corpus), out=tmp_path / "recording", **SMALL)
    assert (tmp_path / "recording" / "manifest.json").read_text() == '{"sites": {}}'
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"notes\.txt|recording"):
        scope.diff("bundled", "bundled+rig", corpus=str(corpus), out=tmp_path, **SMALL)
    few = SMALL | {"sites": "blocks.0.hook_resid_post", "loss_contexts": 0}
    for _ in range(2):  # the same two models may be compared again
        found = scope.diff("bundled", "bundled", corpus=str(corpus), out=tmp_path / "diff", **few)
    with pytest.raises(ConfigError, match="holds another comparison: bundled -> bundled"):
        scope.diff("bundled", "bundled+rig", corpus=str(corpus), out=tmp_path / "diff", **few)
    assert str(Diff.load(tmp_path / "diff")) == str(found)


def test_text_without_the_field_that_it_is_to_be_grouped_by_is_one_group_or_refused(corpus):
    few = SMALL | {"sites": "blocks.0.hook_resid_post", "loss_contexts": 0}
    found = scope.diff("bundled", "bundled", corpus=(str(corpus), "bundled"), by="domain", **few)
    assert {g.group for g in found.groups} == {"facts", "حقائق", "none"}
    with pytest.raises(ConfigError, match="no field 'domain' in bundled"):
        scope.diff("bundled", "bundled", by="domain", **few)


def test_corpora_of_one_name_are_groups_of_their_own(tmp_path):
    files = [tmp_path / folder / "train.txt" for folder in ("a", "b")]
    for file, word in zip(files, ("one", "another"), strict=True):
        file.parent.mkdir()
        file.write_text(f"This is {word} text of some words. " * 60)
    few = SMALL | {"sites": "blocks.0.hook_resid_post", "loss_contexts": 0}
    found = scope.diff("bundled", "bundled", corpus=tuple(map(str, files)), by="corpus", **few)
    assert {g.group for g in found.groups} == set(map(str, files))


def test_what_cannot_be_compared_is_refused(lab, tmp_path):
    with pytest.raises(ConfigError, match="tuned is missing"):
        scope.diff("bundled")
    with pytest.raises(ConfigError, match="contexts"):
        scope.diff("bundled", "bundled", contexts=1)
    with pytest.raises(PackError):
        scope.diff("bundled", "bundled", pack=tmp_path, **SMALL)
    with pytest.raises(ConfigError, match="revision is 'v2', but bundled is no hub id"):
        scope.diff("bundled", "bundled", tuned_revision="v2")
    assert run(["diff", "bundled", "nowhere"]) == 2

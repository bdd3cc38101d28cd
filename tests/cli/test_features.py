"""`scope features`, as a person types it."""

import json

import pytest
from scope.activations.read.store import ActivationStore

from scope.cli.main import run
from scope.features.face import Pack
from scope.sae.files import save_sae
from tests.conftest import random_gemma
from tests.features.test_collect import toy_sae


@pytest.fixture
def dictionary(tiny_config, toy_tokenizer, tmp_path, monkeypatch):
    """A dictionary on disk, and a model that any name loads."""
    import scope.models.load as load

    model = random_gemma(tiny_config, toy_tokenizer)
    monkeypatch.setattr(load, "load_model", lambda *args, **kwargs: model)
    save_sae(toy_sae(model), tmp_path / "dictionary")
    (tmp_path / "text.txt").write_text("the dog runs to the river. a cat looks at the moon.\n" * 40)
    return tmp_path / "dictionary"


def flags(dictionary, *more: str) -> list[str]:
    small = ["--score-prompts", "1", "--score-null", "4", "--out", str(dictionary.parent / "pack")]
    return ["features", str(dictionary), "--no-certificate", *small, *more]  # it is random


def test_a_corpus_becomes_a_pack(dictionary, capsys):
    (dictionary / "evaluation.json").write_text('{"arms": {}}')
    corpus = ["--corpus", str(dictionary.parent / "text.txt"), "--context", "32", "--tokens", "600"]
    assert run(flags(dictionary, *corpus)) == 0
    told = capsys.readouterr().out
    assert "latents on" in told
    assert "of memory beside model and dictionary" in " ".join(told.split())
    assert "random" in told
    pack = Pack.open(dictionary.parent / "pack")
    assert pack.health == {"evaluation": {"arms": {}}}
    assert pack.manifest.text["corpus"]["corpus"]["name"] == "text.txt"


def test_the_documents_of_a_corpus_are_mixed_by_the_seed(dictionary):
    from scope.activations.corpus.contexts import Packer
    from scope.activations.corpus.sources import open_corpus

    from scope.models.load import load_model

    text = dictionary.parent / "many.jsonl"
    text.write_text("".join(json.dumps({"text": f"the dog counts {i} apples"}) + "\n" for i in range(200)))
    assert run(flags(dictionary, "--corpus", str(text), "--context", "32", "--tokens", "320", "--seed", "3")) == 0
    pack = Pack.open(dictionary.parent / "pack")
    expected = Packer(open_corpus(str(text)).documents(3), load_model().tokenizer, 32).take(10).tokens
    assert pack.manifest.text["corpus"]["seed"] == 3
    assert pack.contexts[:].tolist() == expected.tolist()


def test_a_recording_becomes_the_same_pack_as_its_text(dictionary, toy_tokenizer, tiny_config):
    from scope.activations.config import HarvestConfig
    from scope.activations.corpus.sources import open_corpus
    from scope.activations.harvest.harvest import harvest

    model = random_gemma(tiny_config, toy_tokenizer)
    folder = dictionary.parent / "recording"
    config = HarvestConfig(sites=("blocks.1.hook_resid_post",), tokens=600, context=32, dtype="float32")
    corpus = open_corpus(str(dictionary.parent / "text.txt"))
    harvest(model, toy_tokenizer, corpus, config, folder, model.provenance)
    assert run(flags(dictionary, "--recording", str(folder))) == 0
    store, pack = ActivationStore.open(folder), Pack.open(dictionary.parent / "pack")
    assert pack.n_tokens == store.n_rows
    latents = toy_sae(model).encode(store["blocks.1.hook_resid_post"][:])
    assert (pack.table["count"].to_numpy() == (latents > 0).sum(0).numpy()).all()
    assert pack.norm_median == pytest.approx(float(store["blocks.1.hook_resid_post"][:].norm(dim=1).median()), rel=0.01)
    assert pack[5].examples("random", 1)[0].document == store.document_names[0]


def test_under_torchrun_each_process_does_its_share_and_the_first_writes(dictionary, monkeypatch):
    import threading

    from scope.features.collect import build_folder
    from scope.workflows.features import collect_features

    monkeypatch.setattr(build_folder, "_POLL", 0.01)
    corpus = {"corpus": str(dictionary.parent / "text.txt"), "context": 32, "certificate": False}
    settings = {"dictionary": str(dictionary), "out": dictionary.parent / "pack", **corpus}
    monkeypatch.setattr("scope.activations.harvest.ranks.ProcessRank.of_environment", lambda: next(ranks))
    from scope.activations.harvest.ranks import ProcessRank

    ranks = iter([ProcessRank(1, 2), ProcessRank(0, 2)])
    other = threading.Thread(target=collect_features, kwargs=settings)
    other.start()
    import time

    time.sleep(0.2)  # it waits for the first one to begin
    plans: list[str] = []
    assert collect_features(**settings, on_plan=plans.append) is not None
    other.join(20)
    assert not other.is_alive()
    assert "shared by 2 processes" in plans[0]


def test_neither_text_nor_recording_is_refused(dictionary, capsys):
    assert run(flags(dictionary)) == 2
    assert "--recording" in capsys.readouterr().err


def test_a_missing_dictionary_is_refused(dictionary, capsys):
    assert run(["features", str(dictionary / "none"), "--corpus", "docs"]) == 2
    assert "no folder" in capsys.readouterr().err.lower()


def test_a_missing_report_is_refused_before_the_work(dictionary, capsys):
    assert run(flags(dictionary, "--corpus", "docs", "--evaluation", "/nowhere.json")) == 2
    assert "scope evaluate" in capsys.readouterr().err

"""Batches from a running model: the rows that a recording would hold, well mixed, and the same again from any place."""

import json

import numpy as np
import pytest
import torch
from scope.activations.config import HarvestConfig, LiveConfig
from scope.activations.corpus.infill import FimMaker, FimShares
from scope.activations.corpus.sources import open_corpus
from scope.activations.errors import ActivationsError, CorpusError, RecordingError
from scope.activations.harvest.harvest import harvest
from scope.activations.read.live import LiveBatches

SITES = ("blocks.1.hook_resid_post", "blocks.2.attn.hook_z")
SMALL = LiveConfig(context=16, batch_contexts=4, outlier_times=0.0)


@pytest.fixture
def corpus(tmp_path, toy_text):
    (tmp_path / "toy.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in toy_text))
    return open_corpus(str(tmp_path / "toy.jsonl"))


def live(model, corpus, sites=SITES, size=64, config=SMALL, seed=0, memory=80 * 16 * 80 * 2):
    return LiveBatches(model, model.tokenizer, corpus, sites, size, config, seed, memory)


def take(batches, n):
    return [batch for _, batch in zip(range(n), batches, strict=False)]


def test_the_rows_are_those_of_a_recording_each_once_and_aligned(tmp_path, tiny_model, corpus):
    config = HarvestConfig(sites=SITES, tokens=3200, context=16, batch_contexts=4, outlier_times=0.0)
    store = harvest(tiny_model, tiny_model.tokenizer, corpus, config, tmp_path / "recording", tiny_model.provenance)
    n = store.n_rows // 64
    got = [torch.cat(part) for part in zip(*take(live(tiny_model, corpus), n), strict=True)]
    rows = {tuple(row): i for i, row in enumerate(store[SITES[0]][:].tolist())}
    found = [rows[tuple(row)] for row in got[0].tolist() if tuple(row) in rows]
    assert len(found) > 0.9 * n * 64  # the last pool reaches beyond the recording
    at = [i for i, row in enumerate(got[0].tolist()) if tuple(row) in rows]
    assert torch.equal(store[SITES[1]][torch.tensor(found)], got[1][at])


def test_p36_from_any_place_kept_the_next_batches_are_those_that_would_have_come(tiny_model, corpus):
    one = live(tiny_model, corpus)
    stream = iter(one)
    places, batches = [], []
    for _ in range(60):  # several pools, and beyond the end of some
        places.append(json.loads(json.dumps(one.state_dict())))
        batches.append(next(stream))
    assert places[-1]["pool"] > 1
    for at in (0, 7, 33, 59):
        other = live(tiny_model, corpus)
        other.load_state_dict(places[at])
        assert all(torch.equal(a, b) for a, b in zip(next(iter(other)), batches[at], strict=True))
    with pytest.raises(RecordingError, match="seed: 0 then, 1 now"):
        live(tiny_model, corpus, seed=1).load_state_dict(places[7])


def test_a_corpus_that_ends_is_read_again_in_another_order(tiny_model, tmp_path):
    (tmp_path / "short.txt").write_text("the dog runs to the river. a cat looks at the red house. " * 40)
    batches = live(tiny_model, open_corpus(str(tmp_path / "short.txt")), SITES[:1])
    take(batches, 100)
    assert batches.passes > 1


def test_a_corpus_that_fits_into_the_buffer_is_run_once_and_its_rows_come_again_in_another_order(tiny_model, tmp_path):
    (tmp_path / "short.txt").write_text("the dog runs to the river. a cat looks at the red house. " * 40)
    corpus = open_corpus(str(tmp_path / "short.txt"))
    batches, runs = live(tiny_model, corpus, SITES[:1], memory=1 << 22), []
    with tiny_model.hooks([(SITES[0], lambda x, hook: runs.append(len(x)))]):
        next(iter(batches))
        once = sum(runs)
        read = take(batches, 59)
        assert sum(runs) == once
    n = batches.whole_corpus
    assert batches.passes == -(-60 * 64 // n)
    rows = torch.cat(read)[n - 64 :]
    second, third = rows[:n], rows[n : 2 * n]
    assert not torch.equal(second, third)
    assert sorted(map(tuple, second.tolist())) == sorted(map(tuple, third.tolist()))
    resumed = live(tiny_model, corpus, SITES[:1], memory=1 << 22)
    resumed.load_state_dict(json.loads(json.dumps(batches.state_dict())))
    assert torch.equal(next(iter(resumed)), next(iter(batches)))


def test_a_corpus_none_of_whose_rows_is_usable_is_refused_and_not_read_for_ever(tiny_model, tmp_path, monkeypatch):
    (tmp_path / "short.txt").write_text("the dog runs to the river. " * 20)
    batches = live(tiny_model, open_corpus(str(tmp_path / "short.txt")), SITES[:1])
    monkeypatch.setattr(batches, "_outliers", lambda site, rows, roles: np.ones(len(rows), bool))
    with pytest.raises(CorpusError, match="no activation to train on"):
        next(iter(batches))


def test_p37_neighbours_do_not_come_together(tiny_model, corpus):
    batches = live(tiny_model, corpus, SITES[:1], memory=200 * 16 * 32 * 2)
    next(iter(batches))
    order = batches._pool()[1][:64]
    contexts = order // 15  # rows of a context follow one another before they are mixed
    alike = (contexts[:, None] == contexts[None]).sum() - 64
    assert alike < 3 * 64 * 63 * 15 / len(batches._pool()[1])
    with pytest.raises(ActivationsError, match="not mixed by fewer than"):
        live(tiny_model, corpus, memory=20_000)


def test_outliers_are_left_out_by_the_rule_of_harvesting(tiny_model, corpus):
    loose, strict = (
        live(tiny_model, corpus, SITES[:1], config=LiveConfig(context=16, batch_contexts=4, outlier_times=t)) for t in (0, 1.2)
    )
    n, kept = len(loose._pool()[0][0]), len(strict._pool()[0][0])
    assert 0 < kept < n
    norms = strict._pool()[0][0].float().norm(dim=1)
    assert norms.max() <= strict._rule.threshold[SITES[0]]


@pytest.mark.parametrize("wrong", [{"context": 0}, {"dtype": "int8"}, {"exclude": ("eos",)}, {"outlier_times": 0.5}])
def test_settings_that_cannot_be_are_refused(wrong):
    with pytest.raises(ActivationsError):
        LiveConfig(**wrong)


def test_infilling_examples_come_live_as_a_recording_holds_them_and_another_form_is_refused(tmp_path, coding_gemma, corpus):
    def batches(fim):
        return LiveBatches(coding_gemma, FimMaker(coding_gemma.tokenizer, FimShares.parse(fim)), corpus, SITES[:1], 64, long)

    long = LiveConfig(context=48, batch_contexts=4, dtype="float32", outlier_times=0.0)
    maker = FimMaker(coding_gemma.tokenizer, FimShares(psm=1))
    config = HarvestConfig(sites=SITES[:1], tokens=48 * 2000, context=48, dtype="float32", outlier_times=0.0)
    store = harvest(coding_gemma, maker, corpus, config, tmp_path / "recording", coding_gemma.provenance)
    [first] = take(batches("psm"), 1)
    rows = {tuple(row) for row in store[SITES[0]][:].tolist()}
    assert all(tuple(row) in rows for row in first.tolist())
    state = json.loads(json.dumps(batches("psm").state_dict()))
    batches("psm").load_state_dict(state)
    with pytest.raises(RecordingError, match="fim: psm:1 then, spm:1 now"):
        batches("spm").load_state_dict(state)
    with pytest.raises(RecordingError, match="fim: psm:1 then, None now"):
        LiveBatches(coding_gemma, coding_gemma.tokenizer, corpus, SITES[:1], 64, long).load_state_dict(state)

"""A tiny training run, stopped and resumed; its evaluation; its export."""

import json
import math
import random
from dataclasses import replace

import numpy as np
import pytest
import torch

from scope.errors import CheckpointError, ConfigError
from scope.models.load import load_model
from scope.pretrain.build import build_corpus
from scope.pretrain.card import model_card
from scope.pretrain.checkpoint import read_checkpoint
from scope.pretrain.config import PretrainConfig
from scope.pretrain.evaluate import DocumentBits, document_bits, evaluate_text, read_held_out, report, score, windows
from scope.pretrain.export import export
from scope.pretrain.trainer import _curve_until, pretrain
from scope.whole_files import FolderInUse, only_writer
from tests.conftest import random_gemma

TINY = PretrainConfig(
    d_model=16,
    n_layers=2,
    n_heads=2,
    n_kv_heads=1,
    d_head=6,
    d_mlp=24,
    d_vocab=340,
    n_ctx=24,
    window=8,
    steps=24,
    batch=2,
    save_every=8,
)


class Killed(Exception):
    """Stands for the plug being pulled: nothing is saved on the way out."""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory, toy_text):
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "toy.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in toy_text))
    build_corpus([str(folder / "toy.jsonl")], folder / "built", d_vocab=340, n_ctx=24)
    return folder / "built"


@pytest.fixture(scope="module")
def run(corpus, tmp_path_factory):
    out = tmp_path_factory.mktemp("run")
    return out, pretrain(TINY, corpus, out)


def test_a_killed_run_ends_in_the_same_weights_and_the_same_curve(run, corpus, tmp_path):
    def kill(row):
        if row["step"] == 20:
            raise Killed

    with pytest.raises(Killed):
        pretrain(TINY, corpus, tmp_path, kill)
    resumed = pretrain(TINY, corpus, tmp_path)
    out, whole = run
    assert all(torch.equal(a, b) for a, b in zip(resumed.parameters(), whole.parameters(), strict=True))
    steps = [json.loads(line)["step"] for line in (tmp_path / "curve.jsonl").read_text().splitlines()]
    assert steps == sorted(set(steps))
    assert steps[-1] == json.loads((out / "curve.jsonl").read_text().splitlines()[-1])["step"] == 24


def test_a_recurrent_model_is_trained_and_continued_to_the_same_bits_and_read_by_transformers(corpus, tmp_path):
    from transformers import AutoModelForCausalLM

    config = replace(TINY, model_type="recurrent_gemma", d_head=8, n_layers=3, steps=16)

    def kill(row):
        if row["step"] == 10:
            raise Killed

    with pytest.raises(Killed):
        pretrain(config, corpus, tmp_path / "killed", kill)
    losses = []
    model = pretrain(config, corpus, tmp_path / "whole", lambda row: losses.append(row["loss"]))
    resumed = pretrain(config, corpus, tmp_path / "killed")
    assert all(torch.equal(a, b) for a, b in zip(resumed.parameters(), model.parameters(), strict=True))
    assert losses[-1] < losses[0]
    folder = export(model, corpus / "tokenizer", tmp_path / "model", model_card(tmp_path / "whole", corpus))
    assert "2 of the layers are recurrent, with 16 channels; the window shows 9 keys" in (folder / "README.md").read_text()
    ours, tokens = load_model(str(folder), window_convention="hf"), torch.arange(2, 22)[None]
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    torch.testing.assert_close(ours(tokens), theirs(tokens, use_cache=False).logits, rtol=0, atol=1e-4)


def test_a_flipped_bit_of_a_checkpoint_is_refused_or_changes_nothing(run, tmp_path):
    """The bits between the records of the archive mean nothing."""
    whole, rng, refused = (run[0] / "checkpoint.pt").read_bytes(), random.Random(16), 0
    sound = read_checkpoint(run[0] / "checkpoint.pt")["model"]
    for _ in range(20):
        damaged = bytearray(whole)
        damaged[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
        (tmp_path / "checkpoint.pt").write_bytes(damaged)
        try:
            found = read_checkpoint(tmp_path / "checkpoint.pt")["model"]
        except CheckpointError:
            refused += 1
            continue
        assert all(torch.equal(found[name], sound[name]) for name in sound)
    assert refused > 15


def test_a_folder_that_another_process_trains_in_is_refused(corpus, tmp_path):
    with only_writer(tmp_path), pytest.raises(FolderInUse):
        pretrain(TINY, corpus, tmp_path)
    pretrain(replace(TINY, steps=1), corpus, tmp_path)


def test_a_line_of_the_curve_that_was_cut_short_does_not_stop_a_resume(tmp_path):
    file = tmp_path / "curve.jsonl"
    file.write_text('{"step": 10}\n{"step": 20}\n{"step": 30}\n{"st')
    assert _curve_until(file, 20) == ['{"step": 10}', '{"step": 20}']
    assert len(_curve_until(file, 40)) == 3
    assert _curve_until(tmp_path / "none", 40) == []


@pytest.mark.parametrize("setting", [{"d_vocab": 70_000}, {"warmup": -1}, {"save_every": 0}, {"steps": 0}])
def test_settings_that_cannot_be_are_refused(setting):
    with pytest.raises(ConfigError):
        replace(TINY, **setting)


def test_without_warm_up_the_first_rate_is_the_peak():
    assert replace(TINY, steps=1000, warmup=0, decay=0.3).rate(0) == 1.0


def test_training_lowers_the_loss(run):
    rows = [json.loads(line) for line in (run[0] / "curve.jsonl").read_text().splitlines()]
    assert rows[-1]["loss"] < rows[0]["loss"] < 1.3 * math.log(340)


def test_a_run_with_other_settings_is_refused(run, corpus):
    with pytest.raises(ConfigError, match=r"seed: 0 then, 1 now"):
        pretrain(replace(TINY, seed=1), corpus, run[0])


def test_fewer_steps_than_are_done_are_refused_and_the_run_stays_as_it_was(corpus, tmp_path):
    long = replace(TINY, steps=40, decay=0.5)

    def kill(row):
        if row["step"] == 20:
            raise Killed

    with pytest.raises(Killed):
        pretrain(long, corpus, tmp_path, kill)
    before = (tmp_path / "pretrain.json").read_bytes()
    with pytest.raises(ConfigError, match="a run of 16 steps, more than the 12 asked for"):
        pretrain(replace(long, steps=12), corpus, tmp_path)
    assert (tmp_path / "pretrain.json").read_bytes() == before


def test_the_rate_warms_up_stays_flat_and_falls_to_zero():
    config = replace(TINY, steps=1000, warmup=100, decay=0.3)
    assert [round(config.rate(s), 3) for s in (0, 49, 99, 500, 700, 850, 999)] == [0.01, 0.5, 1.0, 1.0, 1.0, 0.5, 0.003]


def test_windows_score_every_token_once_with_half_a_context_before_it():
    for n_tokens in (1, 8, 9, 12, 13, 100):
        found = windows(n_tokens, 8)
        scored = [i for _, first, stop in found for i in range(first, stop)]
        assert scored == list(range(n_tokens))
        assert all(stop - start <= 8 for start, _, stop in found)
        assert all(first - start >= 4 for start, first, _ in found[1:])


@torch.no_grad()
def test_bits_of_a_short_text_are_minus_log2_of_its_probability(tiny_model):
    text = "the dog runs to the river"
    tokens = tiny_model.to_tokens(text)
    logs = tiny_model(tokens).log_softmax(-1)[0]
    expected = -sum(float(logs[i, t]) for i, t in enumerate(tokens[0, 1:].tolist())) / math.log(2)
    (bits, n_tokens), (same, _) = document_bits(tiny_model, [text, text])
    assert bits == pytest.approx(expected, rel=1e-5)
    assert same == pytest.approx(bits, rel=1e-6)
    assert n_tokens == tokens.shape[1] - 1


def test_bits_do_not_depend_on_how_documents_are_batched(tiny_model, toy_text):
    texts = [" ".join(toy_text[i : i + n]) for i, n in ((0, 1), (3, 9), (20, 4))]
    alone = [document_bits(tiny_model, [text])[0][0] for text in texts]
    assert [b for b, _ in document_bits(tiny_model, texts, batch=3)] == pytest.approx(alone, rel=1e-4)


def test_a_model_that_knows_nothing_pays_log2_of_the_vocabulary_for_each_token(tiny_config, toy_tokenizer):
    model = random_gemma(tiny_config, toy_tokenizer)
    with torch.no_grad():
        model.embed.weight.zero_()
    ((bits, n_tokens),) = document_bits(model, ["the dog runs"])
    assert bits == pytest.approx(n_tokens * math.log2(tiny_config.d_vocab), rel=1e-5)


def test_a_score_is_total_bits_over_total_bytes_within_its_interval():
    rng = np.random.default_rng(0)
    costs = [DocumentBits("a", float(rng.normal(200, 20)), 100, 30) for _ in range(40)]
    found = score(costs)
    assert found.bits_per_byte == pytest.approx(sum(c.bits for c in costs) / 4000)
    assert 1.8 < found.low < found.bits_per_byte < found.high < 2.2


def test_held_out_documents_are_drawn_by_the_seed_and_capped(corpus):
    documents = read_held_out(corpus, per_domain=3)
    assert len(documents) == 3
    assert documents == read_held_out(corpus, per_domain=3)


@torch.no_grad()
def test_an_exported_model_is_the_same_in_transformers_and_here(run, corpus, tmp_path):
    from transformers import AutoTokenizer, Gemma2ForCausalLM

    out, model = run
    folder = export(model, corpus / "tokenizer", tmp_path / "model", model_card(out, corpus), shard_bytes=8000)
    assert len(list(folder.glob("*.safetensors"))) > 1
    ours = load_model(str(folder))
    theirs = Gemma2ForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    ids = AutoTokenizer.from_pretrained(folder)("the dog runs to the river", return_tensors="pt").input_ids
    assert torch.equal(ids, ours.to_tokens("the dog runs to the river"))
    torch.testing.assert_close(ours(ids), theirs(ids, use_cache=False).logits, rtol=0, atol=1e-5)
    assert torch.equal(ours.W_E, model.W_E.bfloat16().float())


@pytest.mark.parametrize("kind", ["gemma", "gemma3_text"])
def test_another_generation_is_trained_and_exported_as_what_it_is(kind, corpus, tmp_path):
    from transformers import AutoModelForCausalLM

    model = pretrain(replace(TINY, model_type=kind, steps=2), corpus, tmp_path)
    card = model_card(tmp_path, corpus)
    folder = export(model, corpus / "tokenizer", tmp_path / "model", card)
    ours, ids = load_model(str(folder)), torch.arange(3, 23)[None]
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    with torch.no_grad():
        torch.testing.assert_close(ours(ids), theirs(ids, use_cache=False).logits, rtol=0, atol=1e-5)
    assert f"architecture of {ours.cfg.family_name}" in card
    assert f"tags: [{kind}," in card
    assert ours.cfg.layer_types == {"gemma": ("global", "global"), "gemma3_text": ("local", "global")}[kind]


def test_the_card_states_the_figures_that_were_measured(run, corpus):
    out, model = run
    model.tokenizer = load_tokenizer(corpus)
    evaluation = report(evaluate_text(model, read_held_out(corpus)))
    card = model_card(out, corpus, evaluation)
    assert f"{evaluation['mean_bits_per_byte']:.3f} bits per byte" in card
    assert "24 steps of 2 x 24 tokens" in card
    assert "| toy |" in card


def load_tokenizer(corpus):
    from scope.models.text.tokenizer import Tokenizer

    return Tokenizer.from_folder(corpus / "tokenizer")


def test_a_broken_model_is_not_exported(tiny_model, corpus, tmp_path):
    with torch.no_grad():
        tiny_model.blocks[0].mlp.up_proj.weight[0, 0] = float("inf")
    with pytest.raises(CheckpointError, match=r"layers\.0\.mlp\.up_proj\.weight holds NaN or infinite"):
        export(tiny_model, corpus / "tokenizer", tmp_path / "model", "")
    assert not (tmp_path / "model").exists()


def test_the_command_goes_the_whole_way_and_finds_all_done_the_second_time(corpus, tmp_path, capsys):
    from scope.cli.pretrain import Command

    places = (str(corpus.parent / "toy.jsonl"),)
    command = Command(corpus=places, corpus_folder=tmp_path / "corpus", out=tmp_path / "run", config=TINY)
    command.run()
    first = (tmp_path / "run" / "model" / "model.safetensors").read_bytes()
    command.run()
    assert (tmp_path / "run" / "model" / "model.safetensors").read_bytes() == first
    assert json.loads((tmp_path / "run" / "evaluation.json").read_text())["domains"].keys() == {"toy"}

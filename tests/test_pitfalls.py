"""The silent failures of this field, numbered P1 to P50: each ends in a refusal, or in a number beside its null.

`HANDLED` says where, and by what; a test that proves it bears the number in its name (`test_p09_…`, `…_p09`). The first test
here holds that against the tree for every pitfall that touches training, evaluation and loading; those that had no test in a
room of their own follow.
"""

import ast
import re
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from scope.activations.corpus.contexts import Packer
from scope.activations.corpus.inputs import counted_tokens
from scope.activations.corpus.sources import Corpus, Document
from scope.activations.read.heldout import following

from scope.errors import DictionaryError
from scope.evaluation.evaluate import EvaluateConfig, evaluate
from scope.models.parts.layers import RMSNorm, soft_cap
from scope.models.parts.positions import rotary_tables
from scope.sae.formats.arrays import build
from scope.sae.jumprelu import JumpReLUConfig, JumpReLUSAE
from scope.sae.objectives.jumprelu import JumpReLUObjective
from tests.activations.toy import ByteTokenizer, record
from tests.conftest import random_gemma
from tests.evaluation.test_splice import perfect, tokens_of

TESTS = Path(__file__).parent

HANDLED = {
    1: "corpus.inputs.counted leaves <bos> out by a rule in the manifest; evaluate gives every score with and without it",
    2: "store.sinks and the recording's outlier rule; evaluate `without_outliers`; certificate counts what it leaves out",
    3: "counted_tokens goes by absolute positions; evaluate gives padding to nobody",
    4: "corpus.inputs.counted (bos, special, pad) by a recorded rule; evaluate `with_special`",
    5: "Packer drops <bos> within a text and counts it; features refuse contexts without one",
    6: "Packed.documents says whose text each token is; the manifest says that attention crosses",
    7: "heldout.following gives only documents that were never recorded; scope evaluate notes text that is not held out, and "
    "how many of its runs of tokens were read in training under whatever name (evaluation.overlap)",
    8: "evaluate `positions`, a curve with intervals, and a note where the first tokens are much worse",
    9: "certificate: a reading at each neighbouring site, with the norm that lies between",
    10: "certificate: neighbouring sites of the stream, told apart even when nothing is declared",
    11: "gemma_scope.read folds sqrt(d_in) into the embedding's dictionaries; certificate tries the factor",
    12: "RMSNorm multiplies with 1 + weight; weights are loaded as they lie, nothing folded or centred",
    13: "one soft cap on the scores of attention and one on the logits, none left out by a fast path",
    14: "Attention takes query_pre_attn_scalar from the config",
    15: "GemmaConfig.layer_types by name, the window's edge by distance < window",
    16: "check_fit by hash of the weights and by width; certificate by what it measures",
    23: "save folds mean and scale; sae_lens refuses a scale that is not there; certificate names the factor",
    24: "unit_decoder scales thresholds with the rows",
    25: "readers fold b_dec by each format's own convention; certificate tries both others",
    26: "log_threshold is read under its name, negative thresholds refused, logarithms found by the certificate",
    27: "topk, batch_topk and transcoders are kinds of their own; without k or threshold they are refused",
    28: "shapes against biases, square ones by the encoder's directions, both turned by the certificate",
    29: "everything is widened to float32 and what was coarse is kept in `stored`; the certificate counts firings left open; "
    "rotary angles are made in float32 from whole positions, whatever the model computes in",
    30: "certificate: declared beside measured; evaluate notes what differs from the end of training",
    31: "share of dead latents in every line of the log; revival; evaluate's share has Chao's interval",
    32: "Gate looks at the pre-activation, on both sides of the threshold",
    33: "drop_lengthening and unit_rows after each step",
    34: "the outcome of a training says when its target was not reached",
    35: "a row that is NaN or Inf is refused with its shard and row, before it touches the weights",
    36: "parameters, Adam, schedule, seeds and reader are one checkpoint, written at once; resumed runs end in the same bits",
    37: "shuffled reading over many shards; live batches from a buffer of contexts",
    38: "fvu, fvu_per_token, fvu_per_dimension: all three, in float64, by name",
    39: "delta loss and KL beside loss recovered, and that against mean-ablation beside zero-ablation",
    40: "intervals over documents",
    41: "random dictionary, PCA, ablations, the same dictionary on a model of random weights, and `beside` another seed's",
}
"""Pitfall -> where it is handled, and how. 17-22 and 42-50 are of steering, features, files and pages."""


@cache
def numbered() -> dict[int, list[str]]:
    """Pitfall -> tests that bear its number."""
    found: dict[int, list[str]] = {}
    for file in sorted(TESTS.rglob("test_*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                for number in re.findall(r"(?<=_)p(\d+)(?=_|$)", node.name):
                    found.setdefault(int(number), []).append(f"{file.relative_to(TESTS)}::{node.name}")
    return found


@pytest.mark.parametrize("number", HANDLED)
def test_each_pitfall_of_training_evaluation_and_loading_has_a_test_that_bears_its_number(number):
    assert numbered().get(number), f"No test bears P{number}: {HANDLED[number]}"


def test_the_list_has_every_number_that_touches_them():
    assert list(HANDLED) == [*range(1, 17), *range(23, 42)]


def test_p03_padding_changes_no_score(tiny_model):
    tokens, sae = tokens_of(tiny_model, 6), perfect()
    with torch.no_grad():
        sae.threshold.fill_(0.4)
    padded = torch.nn.functional.pad(tokens, (0, 9), value=tiny_model.cfg.pad)
    config = EvaluateConfig(contexts=6, resamples=20, random_model=False)
    plain, found = (evaluate(tiny_model, sae, t, config) for t in (tokens, padded))
    assert found.counted == pytest.approx(plain.counted)
    for score in ("fvu", "fvu_per_token", "fvu_per_dimension", "cosine", "l0", "loss", "kl"):
        assert found[score] == pytest.approx(plain[score], rel=1e-4, abs=1e-6), score
    assert found["with_bos"]["fvu"] == pytest.approx(plain["with_bos"]["fvu"], rel=1e-4)


def test_p03_on_the_left_padding_does_not_hide_where_position_0_is():
    tokens = torch.tensor([[0, 0, 2, 9, 9]])
    positions = torch.tensor([[0, 0, 0, 1, 2]])
    assert counted_tokens(tokens, {0, 2}, positions).tolist() == [[False, False, False, True, True]]


def test_p07_held_out_text_comes_from_documents_of_which_the_recording_holds_nothing(tmp_path):
    def source():
        for i in range(60):
            yield Document(f"text {i}", f"This is the text number {i} of them. " * 3)

    corpus = Corpus("toy", {"kind": "toy"}, source)
    store = record(tmp_path / "r", corpus=corpus, tokens=20 * 64)
    held = following(store, corpus, ByteTokenizer(), 100)
    tokens, documents = held.tokens, held.documents
    names = [document.name for document in corpus.documents(store.manifest.config.seed)]
    recorded = {store.document_names[i] for i in range(store.documents.max() + 1)}
    held_out = {names[i] for i in documents[documents >= 0].tolist()}
    assert recorded
    assert held_out
    assert not recorded & held_out
    assert tokens.shape == documents.shape


def test_p12_a_norms_gain_is_one_plus_what_is_stored():
    norm = RMSNorm(4, 0.0)
    x = torch.tensor([[3.0, -3.0, 3.0, 3.0]])
    assert norm(x).tolist() == [[1.0, -1.0, 1.0, 1.0]]  # stored zeros are gains of one
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([1.0, 0.0, -1.0, 0.5]))
    assert norm(x).tolist() == [[2.0, -1.0, 0.0, 1.5]]


def test_p12_nothing_is_folded_or_centred_on_loading(tiny_model, tmp_path):
    from scope.models.load import load_model
    from tests.help.labs import save_checkpoint

    loaded = load_model(str(save_checkpoint(tiny_model, tmp_path / "checkpoint")))
    there = dict(loaded.named_parameters())
    assert all(torch.equal(there[name], p) for name, p in tiny_model.named_parameters())


def test_p13_soft_caps_are_applied_once_to_the_logits_and_once_to_the_scores(tiny_config, toy_tokenizer):
    model = random_gemma(replace(tiny_config, attn_cap=2.0, final_cap=3.0), toy_tokenizer)
    tokens, raw = tokens_of(model), {}
    hook = ("unembed.hook_out", lambda x, point: raw.update(x=x.clone()))
    with torch.no_grad(), model.hooks([hook]):
        logits = model(tokens)
    torch.testing.assert_close(logits, 3.0 * torch.tanh(raw["x"] / 3.0))
    assert raw["x"].abs().max() > 3
    _, cache = model.run_with_cache(tokens)
    scores = cache["blocks.0.attn.hook_attn_scores"]
    q, k = cache["blocks.0.attn.hook_rot_q"], cache["blocks.0.attn.hook_rot_k"]
    k = k.repeat_interleave(q.shape[2] // k.shape[2], 2)
    by_hand = torch.einsum("bqhd,bkhd->bhqk", q, k) * model.cfg.query_scalar**-0.5
    seen = scores > -1e4  # what is masked is far below
    torch.testing.assert_close(scores[seen], soft_cap(by_hand, 2.0)[seen], atol=1e-5, rtol=1e-5)
    assert by_hand[seen].abs().max() > 2
    with torch.no_grad():  # nobody listens: the fast path is not another model
        torch.testing.assert_close(model(tokens), logits, atol=1e-5, rtol=1e-5)


def test_p14_the_scale_of_queries_is_the_configs_and_not_made_from_sizes(tiny_config, toy_tokenizer):
    four, other = (random_gemma(replace(tiny_config, query_scalar=s, attn_cap=None), toy_tokenizer) for s in (12.0, 48.0))
    tokens = tokens_of(four)
    scores = [m.run_with_cache(tokens)[1]["blocks.0.attn.hook_attn_scores"] for m in (four, other)]
    seen = scores[0] > -1e4
    torch.testing.assert_close(scores[0][seen], 2 * scores[1][seen], atol=1e-5, rtol=1e-5)


def test_p15_even_layers_are_local_and_see_exactly_their_window(tiny_config, toy_tokenizer):
    model = random_gemma(tiny_config, toy_tokenizer)
    _, cache = model.run_with_cache(tokens_of(model))
    window = tiny_config.window
    for layer in range(tiny_config.n_layers):
        last = cache[f"blocks.{layer}.attn.hook_pattern"][0, 0, 19]
        if layer % 2 == 0:
            assert (last[20 - window :] > 0).all()
            assert (last[: 20 - window] == 0).all()
        else:
            assert (last > 0).all()


@pytest.mark.parametrize(("dtype", "step"), [(torch.float32, 2.0**-24), (torch.bfloat16, 2.0**-8), (torch.float16, 2.0**-11)])
def test_p29_rotary_angles_are_rounded_last_and_not_their_frequencies(dtype, step):
    """In bfloat16 position 257 is 256, and a frequency that is 2^-9 off has turned by radians after 8191 tokens."""
    positions = torch.tensor([[1, 257, 8191]])
    frequencies = 10_000.0 ** -(torch.arange(0, 8, 2).double() / 8)
    exact = positions.double()[..., None] * frequencies
    cos, sin = (table[:, :, 0].double() for table in rotary_tables(positions, 8, 10_000.0, dtype))
    within = step + 8191 * 2.0**-23  # the result's own rounding, and float32's of the greatest angle
    assert (cos - torch.cat([exact.cos(), exact.cos()], -1)).abs().max() < within
    assert (sin - torch.cat([-exact.sin(), exact.sin()], -1)).abs().max() < within
    coarse = positions.to(torch.bfloat16).double()[..., None] * frequencies.to(torch.bfloat16).double()
    assert (coarse.cos() - exact.cos()).abs().max() > 0.5


def test_p29_a_model_in_bfloat16_keeps_no_rotary_table_that_could_be_cast(tiny_config, toy_tokenizer):
    model = random_gemma(tiny_config, toy_tokenizer).to(torch.bfloat16)
    assert not [name for name, _ in model.named_buffers()]
    _, cache = model.run_with_cache(tokens_of(model))
    q, turned = (cache[f"blocks.0.attn.{hook}"][0, 19].double() for hook in ("hook_q", "hook_rot_q"))
    half = q.shape[-1] // 2
    angle = 19 * model.cfg.rope_theta ** -(torch.arange(half).double() / half)
    first, second = q[:, :half], q[:, half:]
    by_hand = torch.cat([first * angle.cos() - second * angle.sin(), second * angle.cos() + first * angle.sin()], -1)
    assert (turned - by_hand).abs().max() < 2.0**-6 * q.abs().max()


@pytest.mark.parametrize("pre", [0.45, 0.55])
def test_p32_a_threshold_learns_from_both_halves_of_its_window(pre):
    """Where the step is taken of what passed the threshold, the half below it is lost."""
    sae = JumpReLUSAE(JumpReLUConfig(d_in=1, d_sae=1, target_l0=1.0, bandwidth=0.2, l0_weight=3.0, anneal=0.0))
    with torch.no_grad():
        sae.W_enc.fill_(1.0)
        sae.W_dec.fill_(1.0)
        sae.threshold.fill_(0.5)
    objective = JumpReLUObjective(sae)
    objective.after_step(1.0, 1.0)
    objective.losses(torch.tensor([[pre]]))["sparsity"].backward()
    assert sae.threshold.grad.item() == pytest.approx(-3.0 / 0.2)


def test_p28_a_matrix_that_is_turned_though_nearly_square_is_named(tmp_path):
    arrays = {"W_enc": torch.zeros(8, 9), "b_enc": torch.zeros(9), "W_dec": torch.zeros(8, 9), "b_dec": torch.zeros(8)}
    with pytest.raises(DictionaryError, match=r"W_dec.*transposed"):
        build("jumprelu", arrays | {"threshold": torch.zeros(9)}, "here")


def test_p06_tokens_of_packed_documents_are_told_apart():
    texts = iter([Document("a", "aaaa"), Document("b", "bb")])
    packed = Packer(texts, ByteTokenizer(), 10).take(1)
    assert packed.documents[0].tolist() == [0, 0, 0, 0, 0, 0, 1, 1, 1, -1]

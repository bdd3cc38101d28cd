"""The whole evaluation on cases whose answer is known, and each number beside its nulls."""

import json

import pytest
import torch

from scope.errors import ConfigError
from scope.evaluation.evaluate import EvaluateConfig, Evaluation, evaluate
from scope.evaluation.metrics import fvu
from scope.evaluation.nulls import PCA, Moments, RandomDictionary
from scope.evaluation.report import lines, table
from tests.evaluation.test_splice import SITE, perfect, tokens_of

CONFIG = EvaluateConfig(contexts=6, batch_contexts=4, resamples=50)


@pytest.fixture
def tokens(tiny_model):
    return tokens_of(tiny_model, 6)


def test_a_perfect_dictionary_scores_perfectly_and_beats_every_null(tiny_model, tokens):
    evaluation = evaluate(tiny_model, perfect(), tokens, CONFIG)
    assert evaluation["fvu"] < 1e-10
    assert evaluation["fvu_per_token"] < 1e-10
    assert evaluation["cosine"] == pytest.approx(1.0)
    assert evaluation["length_bias"] == pytest.approx(1.0)
    assert abs(evaluation["delta_loss"]) < 1e-5
    assert evaluation["kl"] < 1e-6
    assert evaluation["l0"] == pytest.approx(32.0)
    assert evaluation.arms["mean"]["fvu"] == pytest.approx(1.0)
    assert evaluation.arms["mean"]["kl"] > 1e-3
    assert evaluation.arms["mean"]["recovered_vs_mean"] in (0.0, None)
    assert evaluation.counted["tokens"] == 6 * 19
    assert evaluation.counted["predictions"] == 6 * 18


@pytest.mark.parametrize("site", [SITE, "blocks.3.hook_resid_post", "blocks.2.hook_mlp_out"])
def test_losses_are_those_of_the_model_run_by_hand(tiny_model, tokens, site):
    sae = perfect(site)
    with torch.no_grad():
        sae.threshold.fill_(0.4)
    evaluation = evaluate(tiny_model, sae, tokens, CONFIG)
    clean = tiny_model(tokens)

    def all_but_bos(x, hook):
        return torch.cat([x[:, :1], sae(x[:, 1:])], dim=1)

    spliced = tiny_model.run_with_hooks(tokens, fwd_hooks=[(site, all_but_bos)])
    picked = tokens[:, 2:, None]
    loss, other = (-torch.log_softmax(logits[:, 1:-1], -1).gather(2, picked).mean() for logits in (clean, spliced))
    assert evaluation.counted["loss"] == pytest.approx(loss.item(), abs=1e-5)
    assert evaluation["delta_loss"] == pytest.approx((other - loss).item(), abs=1e-5)
    x = tiny_model.record(tokens, [site])[site][:, 1:].flatten(0, 1)
    assert evaluation["fvu"] == pytest.approx(fvu(x, sae(x)).item(), rel=1e-5)
    assert evaluation["l0"] == pytest.approx((sae.encode(x) > 0).sum(1).float().mean().item())


def test_p2_a_token_of_huge_norm_in_the_middle_is_counted_and_the_fvu_without_it_stands_beside(tiny_model, tokens):
    with torch.no_grad():
        tokens[0, 7] = 300
        tokens[tokens == 300] = 301
        tokens[0, 7] = 300
        tiny_model.embed.weight[300] *= 200
    sae = perfect("blocks.0.hook_resid_pre")
    with torch.no_grad():
        sae.threshold.fill_(0.4)
    evaluation = evaluate(tiny_model, sae, tokens, CONFIG)
    x = tiny_model.record(tokens, ["blocks.0.hook_resid_pre"])["blocks.0.hook_resid_pre"][:, 1:].flatten(0, 1)
    usual = x[x.norm(dim=1) <= 10 * x.norm(dim=1).median()]
    assert len(usual) == len(x) - 1
    without = evaluation["without_outliers"]
    assert without["left_out"] == 1
    assert without["fvu"] == pytest.approx(fvu(usual, sae(usual)).item(), rel=1e-4)
    assert evaluation["fvu"] == pytest.approx(fvu(x, sae(x)).item(), rel=1e-4)
    assert evaluation["fvu"] < without["fvu"] / 2
    assert any("1 counted tokens have a norm > 10 x the median" in note for note in evaluation.notes)


def test_p41_a_dictionary_that_is_no_better_than_chance_is_said_to_be(tiny_model, tokens):
    sae = perfect()
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        rows = torch.randn(sae.W_dec.shape, generator=generator)
        sae.W_dec.copy_(rows)
        sae.W_enc.copy_(torch.randn(sae.W_enc.shape, generator=generator))
    notes = evaluate(tiny_model, sae, tokens, CONFIG).notes
    assert any("no better than that of a random dictionary" in note for note in notes)
    assert any("no better than that of PCA" in note for note in notes)


def test_p30_numbers_that_differ_from_the_declared_ones_are_pointed_out(tiny_model, tokens):
    sae = perfect()
    sae.provenance = {"training": {"l0": 5.0, "fvu": 0.1}}
    notes = evaluate(tiny_model, sae, tokens, CONFIG).notes
    assert any(note.startswith("l0 is 32 here") for note in notes)


def test_p23_a_scale_that_was_not_folded_back_shows(tiny_model, tokens):
    sae = perfect()
    with torch.no_grad():
        sae.W_dec.mul_(3)
    assert any("scale" in note for note in evaluate(tiny_model, sae, tokens, CONFIG).notes)


def test_intervals_hold_their_numbers_and_everything_goes_through_json(tiny_model, tokens, tmp_path):
    sae = perfect()
    with torch.no_grad():
        sae.threshold.fill_(0.4)
    evaluation = evaluate(tiny_model, sae, tokens, CONFIG)
    for name, (low, high) in evaluation["interval"].items():
        assert low <= evaluation[name] <= high, name
    back = Evaluation.from_json(json.loads(evaluation.save(tmp_path / "evaluation.json").read_text()))
    assert back["fvu"] == evaluation["fvu"]
    assert evaluation.provenance["model"]["weights_sha256"] == "random-0"
    assert sum(evaluation.latents["density_log10_counts"]) == round(64 * (1 - evaluation.latents["never_fired"]))


def test_the_table_names_the_dictionary_and_its_nulls(tiny_model, tokens):
    from rich.console import Console

    evaluation = evaluate(tiny_model, perfect(), tokens, CONFIG)
    console = Console(width=160, record=True, file=open("/dev/null", "w"))  # noqa: SIM115 - closed below
    console.print(table(evaluation))
    console.file.close()
    text = console.export_text()
    for word in ("SAE", "random dictionary", "PCA", "mean", "zero", "delta loss", "FVU, pooled"):
        assert word in text
    assert any("position 0" in line for line in lines(evaluation))


def test_the_same_seed_gives_the_same_numbers(tiny_model, tokens):
    runs = [
        evaluate(tiny_model, perfect(), tokens, EvaluateConfig(contexts=4, resamples=20, seed=3)).to_json() for _ in range(2)
    ]
    assert runs[0] == runs[1]


def test_one_context_is_too_few_for_an_interval(tiny_model, tokens):
    with pytest.raises(ConfigError, match="at least two"):
        evaluate(tiny_model, perfect(), tokens[:1], CONFIG)


def test_pca_of_k_components_leaves_what_the_other_components_hold():
    x = torch.randn(2000, 4, generator=torch.Generator().manual_seed(0)) * torch.tensor([4.0, 3.0, 2.0, 1.0]) + 7
    moments = Moments(4)
    for part in x.split(300):
        moments.add(part)
    values = torch.linalg.eigvalsh(moments.covariance)
    assert fvu(x, PCA(moments, 2)(x)).item() == pytest.approx((values[:2].sum() / values.sum()).item(), rel=1e-4)


def test_the_random_dictionary_fires_as_often_as_it_is_told_to():
    x = torch.randn(3000, 16, generator=torch.Generator().manual_seed(0)) + 2
    moments = Moments(16)
    moments.add(x)
    null = RandomDictionary(moments, 64, l0=5.0, seed=1)
    assert (null.encode(x) > 0).sum(1).float().mean().item() == pytest.approx(5.0, rel=0.05)
    assert 0.1 < fvu(x, null(x)) < 1.0

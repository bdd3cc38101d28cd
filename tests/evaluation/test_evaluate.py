"""The whole evaluation on cases whose answer is known, and each number beside its nulls."""

import hashlib
import json

import pytest
import torch

from scope.errors import ConfigError, DictionaryError
from scope.evaluation.baselines import PCA, Moments, RandomDictionary
from scope.evaluation.certificate.certify import examine
from scope.evaluation.evaluate import EvaluateConfig, Evaluation, evaluate
from scope.evaluation.metrics import fvu, fvu_per_dimension, fvu_per_token
from scope.evaluation.random_model import randomised
from scope.evaluation.report import heading, lines, table
from scope.sae.files import parameters_sha256
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


def test_a_dictionary_none_of_whose_latents_is_near_dense_is_scored(tiny_model, tokens):
    sae = perfect()
    with torch.no_grad():
        sae.threshold.fill_(1e9)
        sae.threshold[3] = 0.0
    evaluation = evaluate(tiny_model, sae, tokens, EvaluateConfig(contexts=6, resamples=50, dense_above=1.0))
    assert evaluation.latents["dense"] == 0
    assert evaluation.latents["interval"]["dense"] == (0.0, 0.0)


@pytest.mark.parametrize(
    "claim", [{}, {"training": {"l0": 0.0, "fvu": 1.0}}, {"declared": {"l0": 5.0}}, {"declared": {"l0": 0}}]
)
def test_a_dictionary_that_died_is_scored_and_told_as_one_in_which_nothing_fires(tiny_model, tokens, claim, tmp_path):
    sae = perfect()
    sae.provenance |= claim
    with torch.no_grad():
        sae.threshold.fill_(1e9)
    evaluation = evaluate(tiny_model, sae, tokens, CONFIG)
    assert (evaluation["l0"], evaluation.latents["never_fired"]) == (0.0, 1.0)
    assert any("100% of the latents never fired" in note for note in evaluation.notes)
    assert "none fired" in " ".join(lines(Evaluation.load(evaluation.save(tmp_path / "evaluation.json"))))
    certificate = examine(tiny_model, sae, tokens)
    assert "no latent fires" in " ".join([certificate.said, *certificate.notes]).lower()


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


def test_p02_a_token_of_huge_norm_in_the_middle_is_counted_and_the_fvu_without_it_stands_beside(tiny_model, tokens):
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


def test_p01_every_score_is_given_with_and_without_position_0_and_special_tokens(tiny_model, tokens):
    tokens[2, 9] = tiny_model.cfg.eos[0]
    sae = perfect()
    with torch.no_grad():
        sae.threshold.fill_(0.4)
    evaluation = evaluate(tiny_model, sae, tokens, CONFIG)
    x = tiny_model.record(tokens, [SITE])[SITE]
    counted = torch.ones(tokens.shape, dtype=torch.bool)
    counted[2, 9] = False
    with_bos = counted.clone()
    counted[:, 0] = False
    arms = {"with_bos": with_bos, "with_special": torch.ones_like(counted)}
    assert evaluation["fvu"] == pytest.approx(fvu(x[counted], sae(x[counted])).item(), rel=1e-5)
    for name, kept in arms.items():
        for score, measure in (("fvu", fvu), ("fvu_per_token", fvu_per_token), ("fvu_per_dimension", fvu_per_dimension)):
            assert evaluation[name][score] == pytest.approx(measure(x[kept], sae(x[kept])).item(), rel=1e-5)
        assert evaluation[name]["l0"] == pytest.approx((sae.encode(x[kept]) > 0).sum(1).float().mean().item(), rel=1e-6)
        assert evaluation[name]["tokens"] == int(kept.sum())
    assert evaluation.counted["tokens"] == int(counted.sum())
    assert evaluation.provenance["rule"].startswith("position 0 and special tokens")


def test_p08_fvu_and_l0_by_position_are_those_of_the_tokens_there(tiny_model, tokens):
    sae = perfect()
    with torch.no_grad():
        sae.threshold.fill_(0.4)
    evaluation = evaluate(tiny_model, sae, tokens, CONFIG)
    rows = {row["from"]: row for row in evaluation.positions}
    x = tiny_model.record(tokens, [SITE])[SITE]
    mean = x[:, 1:].flatten(0, 1).mean(0)
    for first, last in ((0, 0), (3, 3), (5, 8), (9, 16)):
        part = x[:, first : last + 1].flatten(0, 1)
        assert rows[first]["fvu"] == pytest.approx(((part - sae(part)).square().sum() / (part - mean).square().sum()).item())
        assert rows[first]["tokens"] == len(part)
    assert sum(row["tokens"] for row in rows.values() if row["counted"]) == evaluation.counted["tokens"]


def test_p08_a_bad_first_token_is_pointed_out(tiny_model, tokens):
    sae = perfect("blocks.0.hook_resid_pre")
    tokens[:, 1] = 300
    with torch.no_grad():  # it reconstructs all but the direction of that token
        away = torch.nn.functional.normalize(tiny_model.embed.weight[300], dim=0)
        sae.W_dec.sub_(torch.outer(sae.W_dec @ away, away))
    assert any("At position 1 of a context FVU is" in note for note in evaluate(tiny_model, sae, tokens, CONFIG).notes)


def test_p40_intervals_are_over_documents_where_they_are_known_and_said_to_be_over_contexts_where_not(tiny_model, tokens):
    sae = perfect()
    with torch.no_grad():
        sae.threshold.fill_(0.4)
    documents = torch.zeros(tokens.shape, dtype=torch.long)
    documents[3:] = 1
    documents[:, 10:] += 2
    known, unknown = (evaluate(tiny_model, sae, tokens, CONFIG, documents=d) for d in (documents, None))
    assert (known.counted["units"], known.counted["documents"]) == ("documents", 4)
    assert (unknown.counted["units"], unknown.counted["contexts"]) == ("contexts", 6)
    assert known["fvu"] == pytest.approx(unknown["fvu"])
    assert known["interval"]["fvu"] != unknown["interval"]["fvu"]
    assert any("over 4 documents only" in note for note in known.notes)
    assert any("The document of each token is not known" in note for note in unknown.notes)
    one = evaluate(tiny_model, sae, tokens, CONFIG, documents=torch.zeros_like(documents))
    assert one.counted["units"] == "contexts"
    assert any("All of it is one document" in note for note in one.notes)
    with pytest.raises(ConfigError, match="go together"):
        evaluate(tiny_model, sae, tokens, CONFIG, documents=documents[:3])


def test_p41_on_a_model_of_random_weights_it_stands_beside_itself_at_its_own_scale(tiny_model, tokens):
    before = {name: p.clone() for name, p in tiny_model.named_parameters()}
    sae = perfect()
    with torch.no_grad():
        sae.threshold.fill_(0.4)
    null = evaluate(tiny_model, sae, tokens, CONFIG).arms["random_model"]
    assert all(torch.equal(p, before[name]) for name, p in tiny_model.named_parameters())
    other = randomised(tiny_model, tiny_model.layers_for([SITE]), CONFIG.seed)
    assert not torch.equal(other.blocks[0].attn.W_Q, tiny_model.blocks[0].attn.W_Q)
    assert other.blocks[3] is tiny_model.blocks[3]
    x, raw = (m.record(tokens, [SITE])[SITE][:, 1:].flatten(0, 1) for m in (tiny_model, other))
    scale = (x.square().sum() / raw.square().sum()).sqrt()
    assert null["scale"] == pytest.approx(scale.item(), rel=1e-4)
    assert null["fvu"] == pytest.approx(fvu(raw * scale, sae(raw * scale)).item(), rel=1e-4)
    assert null["interval"]["fvu"][0] <= null["fvu"] <= null["interval"]["fvu"][1]


def test_random_weights_keep_the_spread_of_each_matrix_and_follow_their_seed(tiny_model):
    one, same, other = (randomised(tiny_model, None, seed) for seed in (1, 1, 2))
    trained = dict(tiny_model.named_parameters())
    for name, p in one.named_parameters():
        assert torch.equal(p, dict(same.named_parameters())[name])
        if p.dim() > 1:
            assert not torch.equal(p, dict(other.named_parameters())[name])
            assert p.std().item() == pytest.approx(trained[name].std().item(), rel=0.15)
        else:
            assert torch.equal(p, trained[name])
    assert one.tokenizer is tiny_model.tokenizer


def test_p41_another_dictionary_stands_beside_it_with_what_they_share(tiny_model, tokens):
    sae, other = perfect(), perfect()
    with torch.no_grad():
        sae.threshold.fill_(0.4)
        turned = torch.linalg.qr(torch.randn(32, 32, generator=torch.Generator().manual_seed(3))).Q
        other.W_dec.copy_(torch.cat([turned, -turned]))
        other.W_enc.copy_(other.W_dec.T)
    evaluation = evaluate(tiny_model, sae, tokens, CONFIG, beside={"itself": sae, "turned": other})
    assert evaluation.arms["beside itself"]["fvu"] == pytest.approx(evaluation["fvu"])
    assert evaluation.arms["beside turned"]["fvu"] < 1e-9
    part = evaluation.latents["shared"]
    assert part["itself"]["cosine_above_0.7"] == 1.0
    assert part["turned"]["cosine_median"] < 0.7
    elsewhere = perfect("blocks.2.hook_resid_post")
    with pytest.raises(DictionaryError, match="cannot be scored beside"):
        evaluate(tiny_model, sae, tokens, CONFIG, beside={"elsewhere": elsewhere})


def test_every_number_can_be_made_again_from_what_is_written_beside_it(tiny_model, tokens, tmp_path):
    """Contexts by number and hash, seeds, config, and the hashes of model and parameters."""
    sae = perfect()
    with torch.no_grad():
        sae.threshold.fill_(0.4)
    first = evaluate(tiny_model, sae, tokens, EvaluateConfig(contexts=4, batch_contexts=3, resamples=20, seed=3))
    content = json.loads(first.save(tmp_path / "evaluation.json").read_text())
    said = content["provenance"]
    drawn = tokens[said["drawn"]["contexts"]]
    assert hashlib.sha256(drawn.int().numpy().tobytes()).hexdigest() == said["drawn"]["tokens_sha256"]
    assert said["parameters_sha256"] == parameters_sha256(sae)
    assert said["model"]["weights_sha256"] == "random-0"
    again = evaluate(tiny_model, sae, tokens, EvaluateConfig(**said["config"]))
    assert json.loads(json.dumps(again.to_json())) == content
    by_hand = tiny_model.record(drawn, [SITE])[SITE][:, 1:].flatten(0, 1)
    assert content["arms"]["sae"]["fvu"] == pytest.approx(fvu(by_hand, sae(by_hand)).item(), rel=1e-5)
    assert set(content["arms"]["sae"]["interval"]) <= {*content["definitions"], "loss", "l0_median", "l0_p95", "norm_ratio"}


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


def test_p41_numbers_without_nulls_are_said_to_be_without(tiny_model, tokens):
    alone = evaluate(tiny_model, perfect(), tokens, EvaluateConfig(contexts=6, resamples=20, nulls=False))
    assert set(alone.arms) == {"sae"}
    assert any("without baselines" in note for note in alone.notes)


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
    assert {"fvu", "cosine", "norm_ratio", "l0", "l0_median", "l0_p95", "kl", "recovered_vs_mean"} <= set(
        evaluation["interval"]
    )
    for name, ends in evaluation["interval"].items():
        assert (ends is None) is (evaluation[name] is None), name  # mean-ablation may do no harm to a random model
        assert ends is None or ends[0] <= evaluation[name] <= ends[1], name
    back = Evaluation.load(evaluation.save(tmp_path / "evaluation.json"))
    assert back["fvu"] == evaluation["fvu"]
    assert evaluation.provenance["model"]["weights_sha256"] == "random-0"
    assert sum(evaluation.latents["density_log10_counts"]) == round(64 * (1 - evaluation.latents["never_fired"]))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"arms": {"sae": {"fvu": 0.1}}}', "form 1; this version reads form"),
        ('{"form": 99, "arms": {"sae": {"fvu": 0.1}}}', "form 99"),
        ('{"form": 2, "ar', "not JSON"),
        ('{"form": 2, "arms": {"sae": 5}, "counted": {}, "latents": {}}', "got `int`"),
        ("[" * 100_000, "nested too deeply"),
        ("[]", "no report"),
        ('{"domains": {}}', "no report"),
    ],
)
def test_a_report_of_another_form_is_refused_with_the_way_to_a_new_one(text, said, tmp_path):
    (tmp_path / "evaluation.json").write_text(text)
    with pytest.raises(ConfigError, match=f"(?s)evaluation.json.*{said}.*scope evaluate"):
        Evaluation.load(tmp_path / "evaluation.json")


def test_the_table_names_the_dictionary_and_its_nulls(tiny_model, tokens):
    from rich.console import Console

    evaluation = evaluate(tiny_model, perfect(), tokens, CONFIG)
    console = Console(width=160, record=True, file=open("/dev/null", "w"))  # noqa: SIM115 - closed below
    console.print(table(evaluation))
    console.file.close()
    text = console.export_text()
    told = ("random dictionary", "PCA", "random weights", "mean", "zero", "delta loss", "FVU, pooled", "norm ratio", "KL")
    for word in ("SAE", *told, "with position 0", "without huge norms", "from 1", "(left out)"):
        assert word in text
    assert any("position 0" in line for line in lines(evaluation))
    assert text.splitlines()[1].startswith("64 latents at blocks.1.hook_resid_post")
    evaluation.provenance["text"] = {"corpus": {"kind": "file", "name": "a.txt"}, "held_out": "documents after the last"}
    assert heading(evaluation).endswith("; text: file a.txt, documents after the last")


def test_further_dictionaries_have_a_table_of_their_own_and_no_number_is_cut(tiny_model, tokens):
    from rich.console import Console

    evaluation = evaluate(tiny_model, perfect(), tokens, CONFIG, beside={f"runs/seed-{i}": perfect() for i in range(5)})
    console = Console(width=80, record=True, file=open("/dev/null", "w"))  # noqa: SIM115 - closed below
    console.print(table(evaluation))
    console.file.close()
    text = console.export_text()
    assert all(f"seed-{i}" in text for i in range(5))
    assert "…" not in text


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

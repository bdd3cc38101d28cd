"""Two models compared on text: a planted change is found, a model against itself gives nothing, and the result is kept."""

import copy
import json
from dataclasses import replace

import pytest
import torch
from scope.activations.corpus.document import Document

from scope.diffing.config import DiffConfig
from scope.diffing.diff import diff
from scope.diffing.reading import Reading
from scope.diffing.result import Diff, DiffError
from scope.diffing.text import in_balance, read_text, script_of
from scope.errors import ConfigError, DictionaryError, TokensError
from scope.evaluation.metrics import fvu
from scope.sae.jumprelu import JumpReLUConfig, JumpReLUSAE
from tests.conftest import random_gemma
from tests.help.planted import plant

SITE, LAYER, LATENT, TRIGGER = "blocks.2.hook_resid_post", 2, 11, " teacher"
CONFIG = DiffConfig(contexts=32, context=32, redraws=200, loss_contexts=3, sites=("blocks.*.hook_resid_post",))


@pytest.fixture(scope="module")
def tiny_model(tiny_config, toy_tokenizer):
    """One for all tests: none changes it."""
    return random_gemma(tiny_config, toy_tokenizer)


@pytest.fixture(scope="module")
def text(toy_text, toy_tokenizer):
    documents = [Document(str(i), t) for i, t in enumerate(toy_text)]
    return read_text(((d, "even" if int(d.name) % 2 == 0 else "odd") for d in documents), toy_tokenizer, 32, 32)


@pytest.fixture(scope="module")
def sae(tiny_model, text):
    """Random directions of length 1 that fire where the stream lies unusually far along them."""
    made = JumpReLUSAE(JumpReLUConfig(d_in=32, d_sae=64), SITE)
    x = tiny_model.record(text.tokens, [SITE])[SITE][:, 1:].flatten(0, 1)
    with torch.no_grad():
        rows = torch.randn(64, 32, generator=torch.Generator().manual_seed(0))
        made.W_dec.copy_(rows / rows.norm(dim=1, keepdim=True))
        made.W_enc.copy_(made.W_dec.T)
        made.b_dec.copy_(x.mean(0))
        made.b_enc.copy_(-x.mean(0) @ made.W_enc)
        made.threshold.copy_(2 * (x @ made.W_enc).std(0))
    made.provenance = {"model": dict(tiny_model.provenance)}
    return made.requires_grad_(False)


@pytest.fixture(scope="module")
def planted(tiny_model, text, sae, toy_tokenizer):
    return plant(tiny_model, text.tokens, toy_tokenizer.vocab().index(TRIGGER), LAYER, sae.W_dec[LATENT], 12.0)


@pytest.fixture(scope="module")
def found(tiny_model, planted, text, sae):
    return diff(tiny_model, planted.model, text, sae, CONFIG)


def test_a_planted_rank_one_change_is_found_with_its_trigger_its_direction_and_its_latent(found, planted, sae):
    (change,) = found.weights
    assert (change.parameter, change.rank) == (planted.parameter, 1)
    assert change.relative == pytest.approx(planted.relative, rel=1e-4)
    assert found.tokens[0].token == TRIGGER
    at = {row.site: row for row in found.sites}
    assert at["blocks.1.hook_resid_post"].relative == 0
    assert at[SITE].relative > 0
    assert abs(torch.cosine_similarity(found.directions[f"{SITE}/first"], sae.W_dec[LATENT], 0)) > 0.95
    latents = found.to_frame()
    assert LATENT in list(latents[latents["moved"]]["latent"][:2])
    (row,) = [u for u in found.updates if u.role == "writes"]
    assert row.latents[0] == LATENT
    assert row.meets


def test_a_model_against_itself_has_nothing_to_show(tiny_model, text, sae):
    none = diff(tiny_model, copy.deepcopy(tiny_model), text, sae, CONFIG)
    assert none.weights == ()
    assert {row.relative for row in none.sites} == {0.0}
    assert none.tokens == ()
    assert none.moved.latents == 0
    assert none.transfer[0].fvu == none.transfer[1].fvu
    assert "The two models are the same." in none.notes


def test_the_same_model_in_bfloat16_moves_no_latent_and_its_rounding_is_noted(tiny_model, text, sae):
    rounded = diff(tiny_model, copy.deepcopy(tiny_model).to(torch.bfloat16), text, sae, CONFIG)
    assert rounded.moved.latents == 0
    assert 0 < max(row.relative for row in rounded.sites) < 0.05
    assert any("rounding" in note for note in rounded.notes)


def test_sums_over_batches_are_what_the_definitions_say_of_all_tokens(tiny_model, planted, text, sae, found):
    special = torch.tensor(sorted(tiny_model.special_ids))
    mask = ~torch.isin(text.tokens, special)
    mask[:, 0] = False
    x, y = (m.record(text.tokens, [SITE])[SITE][mask] for m in (tiny_model, planted.model))
    row = next(r for r in found.sites if r.site == SITE)
    apart = (y - x).norm(dim=1) / x.norm(dim=1)
    assert row.relative == pytest.approx(apart.mean().item(), rel=1e-4)
    assert row.pooled == pytest.approx(((y - x).norm() / x.norm()).item(), rel=1e-4)
    for transfer, acts in zip(found.transfer, (x, y), strict=True):
        assert transfer.fvu == pytest.approx(fvu(acts, sae(acts)).item(), rel=1e-4)
        assert transfer.l0 == pytest.approx((sae.encode(acts) > 0).sum(1).float().mean().item(), rel=1e-4)
    frame = found.latents
    assert frame["tuned"][LATENT] == pytest.approx(sae.encode(y)[:, LATENT].mean().item(), rel=1e-3)
    even = text.groups[mask] == text.names.index("even")
    assert frame["frequency_base even"].to_numpy() == pytest.approx((sae.encode(x)[even] > 0).float().mean(0).numpy(), abs=1e-6)
    group = next(g for g in found.groups if g.group == "even")
    assert group.relative == pytest.approx(apart[even].mean().item(), rel=1e-4)


def test_a_comparison_that_was_stopped_goes_on_to_the_same_numbers(tiny_model, planted, text, sae, found):
    class Stopped(Exception):
        pass

    kept = []

    def stop(reading: Reading) -> None:
        kept.append(Reading(reading.done, dict(reading.sums)))
        if len(kept) == 2:
            raise Stopped

    with pytest.raises(Stopped):
        diff(tiny_model, planted.model, text, sae, CONFIG, after_batch=stop)
    assert 0 < kept[-1].done < len(text.tokens)
    again = diff(tiny_model, planted.model, text, sae, CONFIG, reading=kept[-1])
    assert str(again) == str(found)
    assert again.latents.equals(found.latents)


def test_a_result_is_read_back_from_its_folder_and_a_damaged_one_is_refused(found, tmp_path):
    folder = found.save(tmp_path / "diff")
    back = Diff.load(folder)
    assert str(back) == str(found)
    assert back.weights == found.weights
    assert list(back.to_frame()["latent"]) == list(found.to_frame()["latent"])
    assert torch.equal(back.directions[f"{SITE}/mean"], found.directions[f"{SITE}/mean"])
    assert {"weights.csv", "sites.csv", "groups.csv", "tokens.csv", "updates.csv"} <= {p.name for p in folder.iterdir()}
    (folder / "latents.csv").unlink()
    with pytest.raises(DiffError, match="damaged"):
        Diff.load(folder)
    content = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(content | {"form": 99}))
    with pytest.raises(DiffError, match="form 99"):
        Diff.load(folder)
    (folder / "manifest.json").write_text(json.dumps(content | {"sites": 3}))
    with pytest.raises(DiffError, match="sites"):
        Diff.load(folder)


def test_texts_that_read_like_missing_numbers_stay_texts_and_no_table_outlives_its_comparison(found, tmp_path):
    folder = replace(found, latents=found.latents.assign(promotes="NA", label="")).save(tmp_path / "diff")
    back = Diff.load(folder)
    assert {*back.latents["promotes"], *back.latents["label"]} == {"NA", ""}
    replace(found, latents=None, moved=None, weights=(), updates=()).save(folder)
    assert not {"latents.csv", "weights.csv", "updates.csv"} & {p.name for p in folder.iterdir()}
    assert list(Diff.load(folder).to_frame("weights").columns[:2]) == ["parameter", "shape"]


def test_no_text_of_a_model_is_a_formula_in_the_tables(found, tmp_path):
    tokens = (replace(found.tokens[0], token="=1+1"), *found.tokens[1:])
    folder = replace(found, tokens=tokens, latents=found.latents.assign(promotes="@SUM(A1)")).save(tmp_path / "diff")
    assert "\n'=1+1," in (folder / "tokens.csv").read_text()
    assert ",@SUM" not in (folder / "latents.csv").read_text()


def test_the_page_holds_the_verdict_and_escapes_what_models_are_called(found, tmp_path):
    named = replace(found, provenance={**found.provenance, "tuned": {"model": "<b>bold</b>"}})
    text = named.to_html(tmp_path / "page.html")
    assert "Activations: most apart" in text
    assert "<b>bold</b>" not in text
    assert (tmp_path / "page.html").read_text() == text


def test_the_loss_says_how_many_tokens_it_was_read_on(tiny_model, planted, text):
    one, all_of_them = (diff(tiny_model, planted.model, text, None, replace(CONFIG, loss_contexts=n)) for n in (1, 10_000))
    assert 0 < one.groups[0].loss_tokens < all_of_them.groups[0].loss_tokens <= all_of_them.groups[0].tokens
    assert f"on {one.groups[0].loss_tokens:,} of them" in str(one)


def test_without_an_sae_the_rest_is_there_and_latents_are_refused_with_the_way_out(tiny_model, planted, text):
    found = diff(tiny_model, planted.model, text, None, replace(CONFIG, loss_contexts=0))
    assert found.weights
    assert found.moved is None
    assert found.groups[0].loss_base is None
    with pytest.raises(ConfigError, match="--sae"):
        found.to_frame()
    with pytest.raises(ConfigError, match="there are latents, weights"):
        found.to_frame("nothing")


def test_models_of_another_shape_and_saes_of_another_model_are_refused(tiny_model, tiny_config, toy_tokenizer, text, sae):
    other = random_gemma(replace(tiny_config, n_layers=2, layer_types=tiny_config.layer_types[:2]), toy_tokenizer)
    with pytest.raises(ConfigError, match="scope match"):
        diff(tiny_model, other, text, sae, CONFIG)
    foreign = copy.deepcopy(sae)
    foreign.provenance = {"model": {"model": "other", "weights_sha256": "another"}}
    with pytest.raises(DictionaryError, match="any_model"):
        diff(tiny_model, tiny_model, text, foreign, CONFIG)


def test_text_needs_two_documents_and_is_read_from_sources_in_equal_parts(toy_tokenizer):
    with pytest.raises(TokensError, match="at least two"):
        read_text([(Document("one", "the dog runs " * 100), "a")], toy_tokenizer, 4, 16)
    long, short = [Document("l", "x" * 100)] * 3, [Document("s", "y" * 10)] * 30
    order = [name for _, name in in_balance([("long", iter(long)), ("short", iter(short))], 50)]
    assert order[:7] == ["long", *["short"] * 5, "long"]  # of 100 characters 50 count


@pytest.mark.parametrize(
    ("text", "script"), [("Hello, мир", "Latin"), ("مرحبا 12", "Arabic"), ("Привет, world!!", "Cyrillic"), ("12 + 3", "none")]
)
def test_the_script_of_a_text_is_that_of_most_of_its_letters(text, script):
    assert script_of(text) == script

"""Latents of two SAEs are matched by what they do on the same text: copies find each other, strangers do not."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import sparse

from scope.errors import PackError, TokensError
from scope.features.compare.partners import Encoder, Match, best_correlations, exchanged, match, word_activations
from tests.conftest import random_gemma
from tests.steering.conftest import random_sae

SITE = "blocks.1.hook_resid_post"
WORDS = "river water stone house night tree light road king queen sister letter window garden bread horse".split()


@pytest.fixture(scope="module")
def texts():
    rng = np.random.default_rng(0)
    return [" ".join(rng.choice(WORDS, 50)) for _ in range(30)]


@pytest.fixture
def encoder(tiny_model):
    return Encoder(tiny_model, random_sae(tiny_model.cfg.d_model, 40))


def permuted(sae, order):
    """The same SAE with its latents in another order."""
    other = random_sae(sae.d_in, sae.d_sae)
    with torch.no_grad():
        for name, p in sae.named_parameters():
            source = p[:, order] if name == "W_enc" else p if name == "b_dec" else p[order]
            other.get_parameter(name).copy_(source)
    other.provenance = sae.provenance
    return other


def test_a_latent_finds_its_copy_and_both_choose_each_other(encoder, texts):
    order = torch.randperm(40, generator=torch.Generator().manual_seed(1))
    result = match(encoder, Encoder(encoder.model, permuted(encoder.sae, order)), texts, words=1200)
    assert len(result.latents) > 10
    assert result.correlation.min() > 0.999
    assert np.array_equal(order.numpy()[result.partners], result.latents)
    assert result.mutual.all()
    assert result.share == 1.0
    assert result.share_by_chance <= 0.2


def test_exchanged_documents_give_what_chance_gives(encoder, texts):
    result = match(encoder, encoder, texts, words=1200)
    assert np.median(result.by_chance) < 0.5 < np.median(result.correlation)
    assert result.threshold >= np.quantile(result.by_chance, 0.5)


def test_the_ceiling_is_the_share_that_a_third_sae_gives(encoder, texts):
    stranger = Encoder(encoder.model, random_sae(encoder.sae.d_in, 40, seed=9))
    result = match(encoder, stranger, texts, ceiling=encoder, words=1200)
    assert result.ceiling == 1.0
    assert "Ceiling, a third SAE: 100%" in str(result)
    assert match(encoder, encoder, texts, words=600).ceiling is None


def test_models_of_other_vocabularies_meet_at_words(encoder, texts, tiny_config, toy_tokenizer):
    first = {"model_type": "gemma", "attn_cap": None, "final_cap": None, "layer_types": (), "n_kv_heads": 1}
    other = random_gemma(replace(tiny_config, **first), toy_tokenizer)
    result = match(encoder, Encoder(other, random_sae(other.cfg.d_model, 48)), texts, words=1200)
    assert result.words == 1200
    assert set(result.to_frame().columns) >= {"latent", "partner", "correlation", "by_chance", "mutual", "has_partner"}
    assert result.partners.max() < 48


def test_a_word_has_the_largest_value_of_its_tokens(encoder):
    text = "river  naïve\n漢字 stone"
    read = word_activations(encoder, [(0, text, [(0, 5), (7, 12), (13, 15), (16, 21)])])
    ids = encoder.model.words.encode(text)
    acts = encoder.model.record(torch.tensor([ids]), [encoder.sae.site])[encoder.sae.site][0]
    latents = encoder.sae.encode(acts).numpy()
    n_last = len(encoder.model.words.encode("stone", bos=False))  # its tokens are the last of the text
    np.testing.assert_allclose(read.values.toarray()[3], latents[-n_last:].max(0), rtol=1e-5)
    n_first = len(encoder.model.words.encode("river", bos=False))
    np.testing.assert_allclose(read.values.toarray()[0], latents[1 : 1 + n_first].max(0), rtol=1e-5)


def test_correlations_are_pearsons():
    rng = np.random.default_rng(2)
    a, b = rng.random((50, 4)) * (rng.random((50, 4)) > 0.5), rng.random((50, 3))
    best, which = best_correlations(sparse.csr_matrix(a), sparse.csr_matrix(b))
    exact = np.corrcoef(a.T, b.T)[:4, 4:]
    np.testing.assert_allclose(best, exact.max(1), atol=1e-12)
    assert which.tolist() == exact.argmax(1).tolist()


def test_no_document_stays_in_its_place_and_none_is_lost():
    documents = np.repeat([0, 1, 2, 3], [4, 2, 5, 3])
    order = exchanged(documents, np.random.default_rng(0))
    assert (documents[order] != documents).all()
    assert len(np.unique(documents[order])) == 4


def test_one_document_is_refused(encoder):
    with pytest.raises(TokensError, match="at least two documents"):
        match(encoder, encoder, ["river water"])
    with pytest.raises(TokensError, match="No latent of the first SAE fires on 10"):
        match(encoder, encoder, ["river", "water"])


def test_a_saved_match_is_read_back_as_it_was_and_damage_is_refused(encoder, texts, tmp_path):
    result = replace(match(encoder, encoder, texts, words=600), provenance={"seed": 0})
    again = Match.load(result.save(tmp_path / "new" / "b.json"))
    assert str(again) == str(result)
    assert again.to_frame().equals(result.to_frame())
    assert again.provenance == {"seed": 0}
    damaged = (tmp_path / "new" / "b.json").read_text().replace('"latents": [', '"latents": [7, ', 1)
    (tmp_path / "bad.json").write_text(damaged)
    with pytest.raises(PackError, match="scope match"):
        Match.load(tmp_path / "bad.json")

"""How long the latents of a state last, tried where the answer is known."""

import numpy as np
import pytest
import torch

from scope.errors import DictionaryError, PackError
from scope.features.compare.decay import decay
from scope.features.pack.decay import Decay
from scope.models.griffin.shares import half_lives
from tests.models.griffin_twins import tiny_griffin
from tests.steering.conftest import random_sae

SITE = "blocks.0.rec.hook_state"
HALVES = 4.0


@pytest.fixture
def model(toy_tokenizer):
    """Layer 0 keeps the same part of every channel at each token: half is left after four."""
    model = tiny_griffin(toy_tokenizer).requires_grad_(False)
    rec = model.blocks[0].rec
    rec.recurrent_gate_weight.zero_()
    rec.recurrent_gate_bias.zero_()
    rate = np.log(2) / HALVES / (8 * 0.5)  # log a = -8 sigmoid(0) softplus(p)
    rec.recurrent_param.fill_(float(np.log(np.expm1(rate))))
    return model


@pytest.fixture
def sae(model):
    sae = random_sae(model.cfg.lru_width, 48, SITE)
    sae.provenance = {"model": dict(model.provenance)}
    return sae


def contexts(n: int = 6, length: int = 40) -> torch.Tensor:
    tokens = torch.randint(7, 384, (n, length), generator=torch.Generator().manual_seed(3))
    tokens[:, 0] = 2
    return tokens


@pytest.mark.parametrize("site", [SITE, "blocks.0.rec.hook_write"])
def test_latents_of_a_state_that_halves_in_four_tokens_have_that_half_life(model, sae, site):
    sae.site = site
    result = decay(model, sae, contexts())
    assert result.latents
    assert all(row.half_life == pytest.approx(HALVES, rel=1e-3) for row in result.latents)
    assert all(row.low == pytest.approx(HALVES, rel=1e-3) for row in result.latents)
    assert result.share == 0.0
    assert result.state[2] == pytest.approx(0.5, rel=1e-3)
    retained = [token for row in result.latents for token in row.retained]
    assert all(token.left == pytest.approx(0.5 ** (16 / HALVES), rel=1e-2) for token in retained)


def test_more_than_all_is_left_where_what_a_token_takes_from_a_latent_is_forgotten_sooner(model, sae):
    """Channel 0 keeps 0.995 a token, channel 1 nothing: of x w0 + y w1 then x w0 is left, which is more where y w1 takes."""
    signs = [(x, y) for x in (1.0, -1.0) for y in (0.05, -0.05)]
    with torch.no_grad():
        model.blocks[0].rec.recurrent_param.fill_(20.0)
        model.blocks[0].rec.recurrent_param[0] = float(np.log(np.expm1(-np.log(0.995) / 4)))
        sae.W_enc.zero_(), sae.threshold.zero_()
        sae.b_enc.fill_(1e6)  # fires everywhere
        sae.W_enc[:2, :4] = torch.tensor(signs).T
    tokens = contexts(20) % 5 + 7
    tokens[:, 0] = 2
    result = decay(model, sae, tokens)
    write = model.run_with_cache(tokens)[1]["blocks.0.rec.hook_write"].double()
    parts = []
    for latent, (x, y) in enumerate(signs):
        added = x * write[..., 0] + y * write[..., 1]
        for token in row.retained if (row := result.of(latent)) else ():
            there = (tokens == token.id) & (added > 0)
            there[:, -16:] = there[:, 0] = False
            assert int(there.sum()) == token.count
            parts.append(token.left)
            assert token.left == pytest.approx(float(0.995**16 * x * write[..., 0][there].sum() / added[there].sum()), rel=1e-3)
    assert min(parts) < 1 < max(parts)


def test_the_share_of_long_half_lives_stands_beside_that_of_the_redrawn_model(model, sae, toy_tokenizer):
    other = tiny_griffin(toy_tokenizer, seed=5)
    with torch.no_grad():
        other.blocks[0].rec.recurrent_gate_bias.fill_(-8.0)  # keeps nearly all
        other.blocks[0].rec.recurrent_gate_weight.zero_()
    result = decay(model, sae, contexts(), redrawn=other.requires_grad_(False))
    assert (result.share, result.null) == (0.0, 1.0)
    assert "weights drawn again 100%" in str(result)


def test_what_never_halves_is_beyond_every_age_and_survives_json(model, sae, tmp_path):
    with torch.no_grad():
        model.blocks[0].rec.recurrent_gate_bias.fill_(-8.0)
    result = decay(model, sae, contexts(4))
    assert result.share == 1.0
    assert all(row.half_life is None for row in result.latents)
    again = Decay.load(result.save(tmp_path / "decay.json"))
    assert again == result
    assert again.of(result.latents[0].latent).long
    assert again.to_frame()["half_life"].iloc[0] == np.inf
    (tmp_path / "decay.json").write_text(result.to_json()[:-5])
    with pytest.raises(PackError, match=r"decay\.json"):
        Decay.load(tmp_path / "decay.json")


def test_half_lives_lie_between_ages_by_the_exponential():
    left = np.array([[0.8, 0.2], [0.5, 0.1], [0.9, 0.8], [np.nan, 0.1]])
    found = half_lives(np.array([1, 3]), left)
    assert found[0] == pytest.approx(1 + 2 * np.log(0.8 / 0.5) / np.log(4))
    assert found[1] == 1.0
    assert np.isinf(found[2])
    assert np.isnan(found[3])


def test_an_sae_of_another_site_has_no_decay(model):
    sae = random_sae(32, 48, "blocks.1.hook_resid_post")
    sae.provenance = {"model": dict(model.provenance)}
    with pytest.raises(DictionaryError, match="Decay is that of a state"):
        decay(model, sae, contexts())

"""Splicing replaces what it should, where it should, and refuses dictionaries of other models."""

import pytest
import torch
from scope.activations.corpus.inputs import counted_tokens

from scope.errors import DictionaryError
from scope.evaluation.splice import replacing, splice
from scope.sae.jumprelu import JumpReLUConfig, JumpReLUSAE

SITE = "blocks.1.hook_resid_post"


def perfect(site: str = SITE, d_in: int = 32) -> JumpReLUSAE:
    """A dictionary that reconstructs everything: each direction and its opposite."""
    sae = JumpReLUSAE(JumpReLUConfig(d_in=d_in, d_sae=2 * d_in, target_l0=4.0), site)
    with torch.no_grad():
        sae.W_dec.copy_(torch.cat([torch.eye(d_in), -torch.eye(d_in)]))
        sae.W_enc.copy_(sae.W_dec.T)
    return sae


def tokens_of(model, n: int = 3) -> torch.Tensor:
    ids = torch.randint(7, model.cfg.d_vocab, (n, 20), generator=torch.Generator().manual_seed(n))
    ids[:, 0] = model.cfg.bos
    return ids


def test_a_perfect_dictionary_spliced_in_changes_nothing(tiny_model):
    tokens = tokens_of(tiny_model)
    with splice(tiny_model, perfect()):
        spliced = tiny_model(tokens)
    torch.testing.assert_close(spliced, tiny_model(tokens), atol=1e-5, rtol=1e-5)


def test_position_0_special_tokens_and_padding_are_left_as_they_are(tiny_model):
    tokens = tokens_of(tiny_model, 2)
    tokens[0, 5] = tiny_model.cfg.eos[0]
    tokens[1, 16:] = tiny_model.cfg.pad
    real = tokens != tiny_model.cfg.pad
    seen = {}
    hook = replacing(torch.zeros_like, {tiny_model.cfg.eos[0]})
    with tiny_model.hooks([(SITE, hook), (SITE, lambda x, _: seen.update(x=x))]):
        tiny_model(tokens, attention_mask=real)
    left = torch.zeros_like(real)
    left[:, 0] = left[0, 5] = True
    left[1, 16:] = True
    assert torch.equal(seen["x"].abs().sum(-1) > 0, left)


def test_positions_are_absolute_so_left_padding_does_not_hide_bos():
    tokens = torch.tensor([[0, 0, 2, 9, 9]])
    positions = torch.tensor([[0, 0, 0, 1, 2]])
    assert counted_tokens(tokens, {0, 2}, positions).tolist() == [[False, False, False, True, True]]


def test_attention_outputs_by_head_are_spliced_as_one_vector(tiny_model):
    tokens = tokens_of(tiny_model)
    site = "blocks.1.attn.hook_z"
    with splice(tiny_model, perfect(site, tiny_model.sites()[site])):
        spliced = tiny_model(tokens)
    torch.testing.assert_close(spliced, tiny_model(tokens), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("sae", "said"),
    [
        (perfect(site=""), "does not say"),
        (perfect(site="blocks.9.hook_resid_post"), "does not have"),
        (perfect(d_in=16), "32 wide"),
    ],
)
def test_a_dictionary_of_another_site_or_width_is_refused(tiny_model, sae, said):
    with pytest.raises(DictionaryError, match=said), splice(tiny_model, sae):
        pass


def test_a_dictionary_of_another_models_weights_is_refused(tiny_model):
    sae = perfect()
    sae.provenance = {"model": {"model": "other", "weights_sha256": "0" * 64}}
    with pytest.raises(DictionaryError, match="trained on other"), splice(tiny_model, sae):
        pass

"""Our Gemma 1, 2 and 3 against transformers' eager float32 models, on tiny random twins of several shapes."""

import pytest
import torch
from torch.nn.functional import cross_entropy

from tests.models.twins import SHAPES, some_tokens, twins

CLOSE = {"rtol": 0, "atol": 2e-5}


@pytest.fixture(scope="module", params=list(SHAPES))
def pair(request, tmp_path_factory, toy_tokenizer):
    return twins(SHAPES[request.param], tmp_path_factory.mktemp("twin"), toy_tokenizer)


@pytest.fixture(scope="module")
def gqa(tmp_path_factory, toy_tokenizer):
    return twins(SHAPES["several kv heads, low caps"], tmp_path_factory.mktemp("twin"), toy_tokenizer)


@torch.no_grad()
def test_logits_equal_transformers_on_every_shape(pair):
    ours, theirs = pair
    tokens = some_tokens(ours.cfg)
    torch.testing.assert_close(ours(tokens), theirs(tokens, use_cache=False).logits, **CLOSE)


def test_gradients_equal_transformers_at_every_parameter(pair):
    ours, theirs = pair
    tokens = some_tokens(ours.cfg)
    ours.zero_grad(), theirs.zero_grad()
    ours(tokens, return_type="loss").backward()
    logits = theirs(tokens, use_cache=False).logits
    cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()).backward()
    from scope.models.gemma.weights import tensor_names

    names = tensor_names(ours.cfg)
    expected = dict(theirs.named_parameters())
    for name, p in ours.named_parameters():
        torch.testing.assert_close(p.grad, expected[names[name]].grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_padding_on_either_side_changes_no_real_position(pair, side):
    ours, theirs = pair
    alone = some_tokens(ours.cfg, batch=1, length=17)
    pad = torch.full((1, 6), ours.cfg.pad)
    none, full = torch.zeros(1, 6, dtype=torch.bool), torch.ones(1, 17, dtype=torch.bool)
    first, second = ((pad, alone), (none, full)) if side == "left" else ((alone, pad), (full, none))
    tokens, mask = torch.cat(first, 1), torch.cat(second, 1)
    logits = ours(tokens, attention_mask=mask)
    torch.testing.assert_close(logits[mask], ours(alone)[0], **CLOSE)
    positions = (mask.long().cumsum(1) - 1).clamp(min=0)
    expected = theirs(tokens, attention_mask=mask.long(), position_ids=positions, use_cache=False).logits
    torch.testing.assert_close(logits[mask], expected[mask], **CLOSE)
    assert torch.isfinite(logits).all()


@torch.no_grad()
def test_a_token_outside_every_window_still_reaches_through_global_layers_only(gqa):
    ours, _ = gqa
    tokens = some_tokens(ours.cfg, batch=1)
    other = tokens.clone()
    other[0, 1] = 9
    _, a = ours.run_with_cache(tokens)
    _, b = ours.run_with_cache(other)
    local, widened = (a[f"blocks.{i}.hook_resid_post"] != b[f"blocks.{i}.hook_resid_post"] for i in (0, 1))
    reached = local[0].any(-1).nonzero().flatten()
    assert reached.tolist() == [1, 2, 3, 4, 5]  # a window of five is the token itself and the four after it
    assert widened[0, -1].any()


@torch.no_grad()
def test_logits_equal_transformers_beyond_the_window_at_the_last_position_of_the_context(gqa):
    ours, theirs = gqa
    tokens = some_tokens(ours.cfg, batch=1, length=ours.cfg.n_ctx)
    torch.testing.assert_close(ours(tokens), theirs(tokens, use_cache=False).logits, **CLOSE)


@pytest.mark.parametrize("length", [23, 64])
@pytest.mark.parametrize("side", ["none", "left", "right"])
@torch.no_grad()
def test_who_listens_changes_no_number(pair, side, length, monkeypatch):
    """Scores are computed whole only for those who listen to them, and else in pieces, here of 16 queries."""
    from scope.models.parts import attention

    monkeypatch.setitem(attention._SCORES_AT_ONCE, "cpu", 1)
    ours, _ = pair
    tokens = some_tokens(ours.cfg, length=length)
    mask = torch.ones_like(tokens, dtype=torch.bool)
    if side != "none":
        mask[0, slice(0, 9) if side == "left" else slice(-9, None)] = False
    mask = None if side == "none" else mask
    _, whole = ours.run_with_cache(tokens, attention_mask=mask)
    names = [name for name in whole if not name.endswith(("attn_scores", "pattern"))]
    _, pieces = ours.run_with_cache(tokens, names_filter=names, attention_mask=mask)
    assert len(names) < len(whole)
    for name in names:
        rounding = 2.5e-7 * max(4, ours.cfg.n_layers)
        assert (pieces[name] - whole[name]).abs().max() <= rounding * whole[name].abs().max(), name
    _, last = ours.run_with_cache(tokens, names_filter=names[-1], attention_mask=mask)
    assert torch.equal(last[names[-1]], pieces[names[-1]])

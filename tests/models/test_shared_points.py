"""Hook points: what is kept at one is not written at another, hidden scores, one position, and returns that do not fit."""

import pytest
import torch

from scope.errors import ConfigError
from tests.conftest import random_gemma
from tests.models.twins import SHAPES, some_tokens

pytestmark = pytest.mark.filterwarnings("ignore:HookedTransformer is deprecated")


@torch.no_grad()
@pytest.mark.parametrize(
    ("kept", "written"),
    [
        ("hook_embed", "blocks.0.hook_resid_pre"),
        ("blocks.0.hook_resid_post", "blocks.1.hook_resid_pre"),
        ("blocks.1.attn.hook_out", "blocks.1.hook_attn_out"),
        ("blocks.1.mlp.hook_out", "blocks.1.hook_mlp_out"),
        ("blocks.1.hook_resid_mid", "blocks.1.hook_mlp_in"),
        ("blocks.1.hook_resid_post", "blocks.1.hook_resid_post"),
    ],
)
@pytest.mark.parametrize("shape", ["several kv heads, low caps", "Gemma 1, several kv heads"])
def test_writing_at_one_point_leaves_what_was_kept_at_another(kept, written, shape):
    model, tokens = random_gemma(SHAPES[shape]), some_tokens(SHAPES[shape])
    plain = model(tokens)
    expected = model.run_with_cache(tokens, names_filter=kept)[1][kept].clone()
    by_hand = []
    cached = model.get_caching_hooks(kept)
    hooks = [*cached[1], (kept, lambda x, hook: by_hand.append(x)), (written, lambda x, hook: x.zero_())]
    with model.hooks(hooks):
        assert not torch.allclose(model(tokens), plain)
    assert torch.equal(cached[0][kept], expected)
    assert kept == written or torch.equal(by_hand[0], expected)


@torch.no_grad()
def test_tensors_of_a_cache_and_of_a_record_share_no_memory(tiny_model):
    tokens = some_tokens(tiny_model.cfg)
    sites = ["blocks.0.hook_resid_post", "blocks.1.hook_resid_pre"]
    for kept in (tiny_model.run_with_cache(tokens)[1], tiny_model.record(tokens, sites)):
        before = kept[sites[1]].clone()
        kept[sites[0]].zero_()
        assert torch.equal(kept[sites[1]], before)


@torch.no_grad()
def test_a_stream_that_is_given_is_not_written_into(tiny_model):
    tokens = some_tokens(tiny_model.cfg)
    stream = tiny_model(tokens, stop_at_layer=2)
    before = stream.clone()
    with tiny_model.hooks([("blocks.2.hook_resid_pre", lambda x, hook: x.zero_())]):
        tiny_model.logits_from(2, stream, tokens)
    assert torch.equal(stream, before)


@torch.no_grad()
def test_one_position_that_is_kept_stays_a_dimension_as_in_transformer_lens(tiny_model):

    from scope.models.transformer_lens import bridge as lens

    tokens = some_tokens(tiny_model.cfg)
    theirs = lens.hooked_transformer(tiny_model)
    names = ["blocks.1.hook_resid_post", "blocks.1.attn.hook_z", "blocks.1.attn.hook_pattern", "blocks.1.attn.hook_attn_scores"]
    for where in (-1, 3, [1, 2], (1, 4), torch.tensor([0, 2])):
        ours = tiny_model.run_with_cache(tokens, names_filter=names, pos_slice=where)[1]
        expected = theirs.run_with_cache(tokens, names_filter=names, pos_slice=where)[1]
        for name in names:
            torch.testing.assert_close(ours[name], expected[name], rtol=0, atol=1e-4)


@pytest.mark.parametrize("side", ["left", "right"])
def test_hidden_scores_are_minus_infinity_and_gradients_stay_finite(tiny_model, side):
    tokens = tiny_model.to_tokens(["the dog runs to the river", "a"], padding_side=side)
    mask = tiny_model.mask_of(["the dog runs to the river", "a"], padding_side=side)
    names = ["blocks.1.attn.hook_attn_scores", "blocks.1.attn.hook_pattern"]
    logits, cache = tiny_model.run_with_cache(tokens, attention_mask=mask, names_filter=names)
    scores, pattern = (cache[name] for name in names)
    assert torch.isneginf(scores[0, :, 0, 1:]).all()
    assert torch.isneginf(scores[1][:, :, ~mask[1]]).all()
    assert torch.isfinite(scores[0].tril().nan_to_num(0, 0, 0)).all()
    assert torch.isfinite(pattern).all()
    logits[mask].square().sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in tiny_model.parameters() if p.grad is not None)


def test_a_query_from_which_a_hook_hides_every_key_reads_nothing(tiny_model):
    """As in TransformerLens; it does not read the keys that the mask had hidden."""
    tokens, name = some_tokens(tiny_model.cfg), "blocks.1.attn.hook_attn_scores"

    def hide(x, hook):
        x[:, 0, 3] = -torch.inf
        return x

    with tiny_model.hooks([(name, hide)]):
        logits, cache = tiny_model.run_with_cache(tokens, names_filter="blocks.1.attn.hook_z")
    assert not cache["z", 1][:, 3, 0].any()
    logits.square().sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in tiny_model.parameters() if p.grad is not None)


def wrong_type(x, hook):
    return x.double()


def wrong_shape(x, hook):
    return x[:, :1]


def no_tensor(x, hook):
    return [x]


@pytest.mark.parametrize(
    ("fn", "says"), [(wrong_type, "float64; float32 flows"), (wrong_shape, "shape"), (no_tensor, "list; give a tensor")]
)
@pytest.mark.parametrize("dir", ["fwd", "bwd"])
def test_a_hook_that_returns_what_does_not_fit_is_named(tiny_model, fn, says, dir):
    hooks = {f"{dir}_hooks": [("blocks.1.hook_resid_post", fn)]}
    with (
        pytest.raises(ConfigError, match=rf"The hook {fn.__name__} on blocks\.1\.hook_resid_post returned {says}"),
        tiny_model.hooks(**hooks),
    ):
        tiny_model(some_tokens(tiny_model.cfg), "loss").backward()

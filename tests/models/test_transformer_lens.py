"""Against TransformerLens' HookedTransformer: the same names carry the same values, and weights the same layouts."""

import pytest
import torch

from tests.models.twins import SHAPES, some_tokens, twins


@pytest.mark.filterwarnings("ignore")
@torch.no_grad()
def test_every_shared_hook_and_weight_equals_transformer_lens(tmp_path, toy_tokenizer):
    from transformer_lens import HookedTransformer, HookedTransformerConfig
    from transformer_lens.pretrained.weight_conversions import convert_gemma_weights

    c = SHAPES["several kv heads, low caps"]
    ours, theirs = twins(c, tmp_path, toy_tokenizer)
    config = HookedTransformerConfig(
        d_model=c.d_model,
        n_layers=c.n_layers,
        n_heads=c.n_heads,
        n_key_value_heads=c.n_kv_heads,
        d_head=c.d_head,
        d_mlp=c.d_mlp,
        d_vocab=c.d_vocab,
        n_ctx=c.n_ctx,
        eps=c.eps,
        act_fn="gelu_pytorch_tanh",
        normalization_type="RMS",
        final_rms=True,
        gated_mlp=True,
        positional_embedding_type="rotary",
        rotary_base=c.rope_theta,
        rotary_dim=c.d_head,
        attn_scale=c.query_scalar**0.5,
        attn_scores_soft_cap=c.attn_cap,
        output_logits_soft_cap=c.final_cap,
        use_local_attn=True,
        window_size=c.window,
        attn_types=list(c.layer_types),
        use_normalization_before_and_after=True,
        original_architecture="Gemma2ForCausalLM",
        device="cpu",
    )
    lens = HookedTransformer(config)
    lens.load_state_dict(convert_gemma_weights(theirs, config), strict=False)
    tokens = some_tokens(c)
    expected_logits, expected = lens.run_with_cache(tokens)
    logits, cache = ours.run_with_cache(tokens)
    assert set(expected.keys()) <= set(cache.keys())
    torch.testing.assert_close(logits, expected_logits, rtol=0, atol=1e-4)
    for name, value in expected.items():
        mine = cache[name]
        if name.endswith("attn_scores"):  # where masked, -inf there and the lowest number here
            mine, value = mine[value > -1e30], value[value > -1e30]
        torch.testing.assert_close(mine, value, rtol=1e-4, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}")
    for name in ("W_Q", "W_K", "W_V", "W_O", "W_gate", "W_in", "W_out", "W_U"):
        mine, value = getattr(ours, name), getattr(lens, name)
        torch.testing.assert_close(mine, value, rtol=0, atol=0, msg=lambda text, name=name: f"{name}: {text}")
    torch.testing.assert_close(ours.W_E * c.d_model**0.5, lens.W_E, rtol=1e-6, atol=1e-6)
    for name in ("d_model", "n_layers", "n_heads", "n_key_value_heads", "d_head", "d_mlp", "d_vocab", "n_ctx", "eps"):
        assert getattr(ours.cfg, name) == getattr(config, name)
    assert ours.cfg.attn_scores_soft_cap == config.attn_scores_soft_cap
    assert list(ours.cfg.layer_types) == config.attn_types

"""Our Gemma 2 against transformers' eager float32 Gemma2ForCausalLM, on tiny random twins of several shapes."""

import pytest
import torch
from torch.nn.functional import cross_entropy

from tests.models.twins import SHAPES, some_tokens, twins

CLOSE = {"rtol": 0, "atol": 2e-5}
NEAR = {"rtol": 1e-5, "atol": 1e-4}


@pytest.fixture(scope="module", params=list(SHAPES))
def pair(request, tmp_path_factory, toy_tokenizer):
    return twins(SHAPES[request.param], tmp_path_factory.mktemp("twin"), toy_tokenizer)


@pytest.fixture(scope="module")
def gqa(tmp_path_factory, toy_tokenizer):
    return twins(SHAPES["several kv heads, low caps"], tmp_path_factory.mktemp("twin"), toy_tokenizer)


@torch.no_grad()
def flow(theirs, tokens) -> dict[str, torch.Tensor]:
    """What passes every hook point of ours, read off transformers' modules."""
    from transformers.models.gemma2.modeling_gemma2 import apply_rotary_pos_emb

    seen, handles = {}, []

    def put(name, value, heads=None):
        seen[name] = value if heads is None else value.unflatten(-1, (heads, -1))

    def on(module, name, take="out", heads=None):
        def fn(module, inputs, output):
            value = output if take == "out" else inputs[0]
            put(name, (value[0] if isinstance(value, tuple) else value).detach(), heads)

        handles.append(module.register_forward_hook(fn))

    def on_norm(module, name):
        def fn(module, inputs, output):
            scale = (inputs[0].square().mean(-1, keepdim=True) + module.eps).sqrt()
            seen[f"{name}.hook_scale"], seen[f"{name}.hook_normalized"] = scale, inputs[0] / scale

        handles.append(module.register_forward_hook(fn))

    c, inner = theirs.config, theirs.model
    on(inner.embed_tokens, "hook_embed")
    for i, layer in enumerate(inner.layers):
        at, b = layer.self_attn, f"blocks.{i}"
        handles.append(layer.register_forward_hook(lambda m, inputs, out, b=b: put(f"{b}.hook_resid_pre", inputs[0].detach())))
        on(layer, f"{b}.hook_resid_post")
        on(layer.pre_feedforward_layernorm, f"{b}.hook_resid_mid", "in")
        on(layer.post_attention_layernorm, f"{b}.hook_attn_out")
        on(layer.post_feedforward_layernorm, f"{b}.hook_mlp_out")
        on(at.q_proj, f"{b}.attn.hook_q", heads=c.num_attention_heads)
        on(at.k_proj, f"{b}.attn.hook_k", heads=c.num_key_value_heads)
        on(at.v_proj, f"{b}.attn.hook_v", heads=c.num_key_value_heads)
        on(at.o_proj, f"{b}.attn.hook_z", "in", heads=c.num_attention_heads)
        on(layer.mlp.gate_proj, f"{b}.mlp.hook_pre")
        on(layer.mlp.up_proj, f"{b}.mlp.hook_pre_linear")
        on(layer.mlp.down_proj, f"{b}.mlp.hook_post", "in")
        on(layer.mlp.down_proj, f"{b}.mlp.hook_out")
        on(at.o_proj, f"{b}.attn.hook_out")
        norms = ("input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm")
        for ours, norm in zip(("ln1", "ln1_post", "ln2", "ln2_post"), norms, strict=True):
            on_norm(getattr(layer, norm), f"{b}.{ours}")
    on_norm(inner.norm, "ln_final")
    on(theirs.lm_head, "unembed.hook_in", "in")
    on(theirs.lm_head, "unembed.hook_out")
    out = theirs(tokens, use_cache=False, output_attentions=True, output_hidden_states=True)
    for handle in handles:
        handle.remove()
    positions = torch.arange(tokens.shape[1])[None].expand(len(tokens), -1)
    cos, sin = inner.rotary_emb(seen["hook_embed"], positions)
    for i, pattern in enumerate(out.attentions):
        a = f"blocks.{i}.attn"
        q, k = (seen[f"{a}.hook_{x}"].transpose(1, 2) for x in "qk")
        q, k = apply_rotary_pos_emb(q, k, cos, sin)
        seen[f"{a}.hook_rot_q"], seen[f"{a}.hook_rot_k"] = q.transpose(1, 2), k.transpose(1, 2)
        group = c.num_attention_heads // c.num_key_value_heads
        scores = q @ k.repeat_interleave(group, 1).transpose(2, 3) * c.query_pre_attn_scalar**-0.5
        cap = c.attn_logit_softcapping
        seen[f"{a}.hook_attn_scores"] = scores if cap is None else cap * torch.tanh(scores / cap)
        seen[f"{a}.hook_pattern"] = pattern
    for i, hidden in enumerate(out.hidden_states[:-1]):
        torch.testing.assert_close(seen[f"blocks.{i}.hook_resid_pre"], hidden)
    return seen


@torch.no_grad()
def test_logits_equal_transformers_on_every_shape(pair):
    ours, theirs = pair
    tokens = some_tokens(ours.cfg)
    torch.testing.assert_close(ours(tokens), theirs(tokens, use_cache=False).logits, **CLOSE)


def test_every_hook_equals_what_flows_in_transformers(pair):
    ours, theirs = pair
    tokens = some_tokens(ours.cfg)
    expected = flow(theirs, tokens)
    _, cache = ours.run_with_cache(tokens)
    assert set(cache.keys()) == set(ours.match(None)) == set(expected)
    for name, value in cache.items():
        if name.endswith("attn_scores"):  # what is masked differs: theirs were taken before the mask
            visible = value > -1e30
            value, expected[name] = value[visible], expected[name][visible]
        torch.testing.assert_close(value, expected[name], **NEAR, msg=lambda text, name=name: f"{name}: {text}")


def test_gradients_equal_transformers_at_every_parameter(pair):
    ours, theirs = pair
    tokens = some_tokens(ours.cfg)
    ours.zero_grad(), theirs.zero_grad()
    ours(tokens, return_type="loss").backward()
    logits = theirs(tokens, use_cache=False).logits
    cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()).backward()
    from scope.models.gemma.weights import hf_names

    names = hf_names(ours.cfg.n_layers)
    expected = dict(theirs.named_parameters())
    for name, p in ours.named_parameters():
        torch.testing.assert_close(p.grad, expected[names[name]].grad, rtol=1e-4, atol=1e-5)


def test_gradients_at_hook_points_are_those_of_transformers_hidden_states(gqa):
    ours, theirs = gqa
    tokens = some_tokens(ours.cfg)
    _, cache = ours.run_with_cache(tokens, names_filter="blocks.2.hook_resid_pre", incl_bwd=True, return_type="loss")
    out = theirs(tokens, use_cache=False, output_hidden_states=True)
    hidden = out.hidden_states[2]
    loss = cross_entropy(out.logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    (expected,) = torch.autograd.grad(loss, hidden)
    torch.testing.assert_close(cache["blocks.2.hook_resid_pre_grad"], expected, rtol=1e-4, atol=1e-6)


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
def test_bfloat16_is_as_close_to_the_truth_as_transformers_bfloat16_is(tmp_path, toy_tokenizer):
    config = SHAPES["query scale that is not 1/sqrt(d_head)"]
    ours, theirs = twins(config, tmp_path, toy_tokenizer, torch.bfloat16)
    from scope.models.load import load_model

    truth = load_model(str(tmp_path), dtype=torch.float32).double()
    tokens = some_tokens(config, batch=8)
    exact = truth(tokens).double()
    mine, other = ((m.double() - exact).abs().mean() for m in (ours(tokens), theirs(tokens, use_cache=False).logits))
    assert ours(tokens).dtype == torch.bfloat16
    assert mine < 1.15 * other


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

    monkeypatch.setitem(attention._NUMBERS, "cpu", 1)
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
        assert (pieces[name] - whole[name]).abs().max() <= 1e-6 * whole[name].abs().max(), name
    _, last = ours.run_with_cache(tokens, names_filter=names[-1], attention_mask=mask)
    assert torch.equal(last[names[-1]], pieces[names[-1]])

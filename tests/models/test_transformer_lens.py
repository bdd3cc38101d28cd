"""Against TransformerLens' HookedTransformer: the same names carry the same values, and weights the same layouts."""

import pytest
import torch

from tests.models.twins import SHAPES, hooked_transformer, some_tokens, twins

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(
    scope="module",
    params=[
        "several kv heads, low caps",
        "a kv head each, window of two",
        "layers in another order",
        "Gemma 1, one kv head",
        "Gemma 1, a kv head each, wider than the stream",
        "Gemma 3, five local layers to a global one",
        "Gemma 3, scaled positions, one kv head",
    ],
)
def pair(request, tmp_path_factory, toy_tokenizer):
    ours, theirs = twins(SHAPES[request.param], tmp_path_factory.mktemp("twin"), toy_tokenizer)
    return ours, hooked_transformer(ours.cfg, theirs)


def same(mine, value, name, atol=1e-4):
    if ".attn.q_norm." in name or ".attn.k_norm." in name:  # theirs has all heads of all tokens in a row
        mine = mine.flatten(0, -2)
    if name.endswith("attn_scores"):  # where masked, -inf there and the lowest number here
        mine, value = mine[value > -1e30], value[value > -1e30]
    torch.testing.assert_close(mine, value, rtol=1e-4, atol=atol, msg=lambda text: f"{name}: {text}")


@torch.no_grad()
def test_every_hook_of_transformer_lens_exists_here_and_carries_the_same_values(pair):
    ours, lens = pair
    tokens = some_tokens(ours.cfg)
    lens.set_use_attn_result(True), lens.set_use_split_qkv_input(True), lens.set_use_hook_mlp_in(True)
    expected_logits, expected = lens.run_with_cache(tokens)
    logits, cache = ours.run_with_cache(tokens, names_filter=lambda name: True)
    assert set(lens.hook_dict) <= set(ours.hook_dict)
    assert set(lens.hook_dict) - set(expected.keys()) == {f"blocks.{i}.hook_attn_in" for i in range(ours.cfg.n_layers)}
    torch.testing.assert_close(logits, expected_logits, rtol=0, atol=1e-4)
    for name, value in expected.items():
        mine = cache[name]
        if ".ln1.hook" in name:  # theirs ran once for each of q, k and v, and kept v's
            value = value[:, :, 0]
        same(mine, value, name)


@torch.no_grad()
def test_without_switches_both_cache_the_same_names_but_for_raw_outputs(pair):
    ours, lens = pair
    lens.set_use_attn_result(False), lens.set_use_split_qkv_input(False), lens.set_use_hook_mlp_in(False)
    expected = set(lens.run_with_cache(some_tokens(ours.cfg))[1].keys())
    raw = {f"blocks.{i}.{part}.hook_out" for i in range(ours.cfg.n_layers) for part in ("attn", "mlp")}
    assert set(ours.run_with_cache(some_tokens(ours.cfg))[1]) - expected == raw


@pytest.mark.parametrize(
    "leaf", ["attn.hook_result", "hook_q_input", "hook_k_input", "hook_v_input", "hook_mlp_in", "ln1.hook_scale"]
)
def test_edits_and_gradients_at_what_is_computed_on_request_equal_transformer_lens(pair, leaf):
    ours, lens = pair
    lens.set_use_attn_result(leaf.endswith("result")), lens.set_use_hook_mlp_in(leaf.endswith("mlp_in"))
    lens.set_use_split_qkv_input(leaf.endswith("_input"))
    name, tokens = f"blocks.1.{leaf}", some_tokens(ours.cfg)
    outs, grads = [], []
    for model in (ours, lens):

        def edit(x, hook):
            x = x.clone()
            x[:, 3:, -1] = x[:, 3:, -1].cumsum(-1)  # one head, or, where there are none, one feature
            return x

        out = model.run_with_hooks(tokens, fwd_hooks=[(name, edit)])
        outs.append(out.detach())
        parts = []  # theirs normalises for q, k and v apart
        with model.hooks(bwd_hooks=[(name, lambda grad, hook, parts=parts: parts.append(grad.clone()))]):
            model(tokens, return_type="loss").backward()
        grads.append(sum(parts))
        model.zero_grad()
    torch.testing.assert_close(*outs, rtol=0, atol=1e-4)
    torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-5)
    assert (outs[0] - ours(tokens)).abs().max() > 1e-3


def test_gradients_at_every_hook_equal_transformer_lens(pair):
    ours, lens = pair
    lens.set_use_attn_result(False), lens.set_use_split_qkv_input(False), lens.set_use_hook_mlp_in(False)
    tokens, seen = some_tokens(ours.cfg), ({}, {})
    for model, grads in zip((ours, lens), seen, strict=True):
        names = list(lens.hook_dict) if model is lens else ours.match(None)
        hook = [
            (n, lambda grad, hook, grads=grads: grads.__setitem__(hook.name, grads.get(hook.name, 0) + grad)) for n in names
        ]
        with model.hooks(bwd_hooks=hook):
            model(tokens, return_type="loss").backward()
    assert set(seen[1]) <= set(seen[0])
    for name, grad in seen[1].items():
        same(seen[0][name], grad, name, atol=1e-5)


@torch.no_grad()
def test_attn_in_is_every_heads_input_and_may_differ_between_groups_of_heads_only(pair):
    from scope.errors import ConfigError

    ours, _ = pair
    c, tokens, name = ours.cfg, some_tokens(ours.cfg), "blocks.1.hook_attn_in"
    group = c.n_heads // c.n_kv_heads

    def widen(*heads):
        def fn(x, hook):
            x = x.clone()
            x[:, :, list(heads)] *= 1.5
            x[:, :, list(heads), 0] += 1
            return x

        return fn

    by_input = ours.run_with_hooks(tokens, fwd_hooks=[(name, widen(*range(group)))])
    parts = [("q", range(group)), ("k", [0]), ("v", [0])]
    by_parts = ours.run_with_hooks(tokens, fwd_hooks=[(f"blocks.1.hook_{p}_input", widen(*heads)) for p, heads in parts])
    assert torch.equal(by_input, by_parts)
    if group > 1:
        with pytest.raises(ConfigError, match="hook_q_input, hook_k_input and hook_v_input"):
            ours.run_with_hooks(tokens, fwd_hooks=[(name, widen(0))])


@pytest.mark.parametrize("grad", [True, False])
def test_looking_at_a_result_or_a_scale_changes_no_bit(pair, grad):
    ours, _ = pair
    tokens = some_tokens(ours.cfg)
    with torch.set_grad_enabled(grad):
        plain = ours(tokens)
        names = [n for n in ours.hook_dict if n.endswith(("hook_result", "hook_scale", "mlp_in"))]
        assert torch.equal(ours.run_with_cache(tokens, names_filter=names)[0], plain)
        if not grad:
            assert torch.equal(ours.run_with_cache(tokens, names_filter=lambda name: True)[0], plain)


@torch.no_grad()
def test_weights_have_transformer_lens_names_and_layouts(pair):
    ours, lens = pair
    for name in (
        "W_E",
        "W_U",
        "b_U",
        "W_Q",
        "W_K",
        "W_V",
        "W_O",
        "b_Q",
        "b_K",
        "b_V",
        "b_O",
        "W_gate",
        "W_in",
        "W_out",
        "b_in",
        "b_out",
    ):
        mine, value = getattr(ours, name), getattr(lens, name)
        torch.testing.assert_close(mine, value, rtol=1e-6, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}")
    block, theirs, post = ours.blocks[1], lens.blocks[1], ("ln1_post.w", "ln2_post.w") if ours.cfg.post_norms else ()
    for path in (
        "attn.W_Q",
        "attn.W_K",
        "attn.W_O",
        "attn.b_K",
        "mlp.W_gate",
        "mlp.W_out",
        "mlp.b_in",
        "ln1.w",
        "ln2.w",
        *post,
    ):
        part, name = path.split(".")
        torch.testing.assert_close(getattr(getattr(block, part), name), getattr(getattr(theirs, part), name))
    tokens = some_tokens(ours.cfg)
    torch.testing.assert_close(ours.embed(tokens), lens.embed(tokens))
    resid = lens(tokens, stop_at_layer=2)
    torch.testing.assert_close(ours.unembed(ours.ln_final(resid)), lens.unembed(lens.ln_final(resid)), rtol=0, atol=1e-4)
    torch.testing.assert_close(ours.embed.W_E, lens.embed.W_E)
    torch.testing.assert_close(ours.unembed.W_U, lens.unembed.W_U)
    for wanted in (9, tokens[0, 4], tokens):
        torch.testing.assert_close(ours.tokens_to_residual_directions(wanted), lens.tokens_to_residual_directions(wanted))
    assert ours.all_head_labels() == lens.all_head_labels()
    assert torch.equal(ours.accumulated_bias(2), lens.accumulated_bias(2))


@torch.no_grad()
def test_switches_losses_and_products_of_weights_are_transformer_lens_own(pair):
    ours, lens = pair
    tokens = some_tokens(ours.cfg)
    switches = ("attn_result", "split_qkv_input", "hook_mlp_in")
    for model in pair:
        for switch in switches:
            getattr(model, f"set_use_{switch}")(True)
    raw = {f"blocks.{i}.{part}.hook_out" for i in range(ours.cfg.n_layers) for part in ("attn", "mlp")}
    _, cache = ours.run_with_cache(tokens)
    logits, expected = lens.run_with_cache(tokens)
    assert set(cache) - raw == set(expected.keys())
    same(cache["result", 1], expected["result", 1], "result")
    recorded = ours.record(tokens, list(ours.sites()))
    assert {name: x.shape[-1] for name, x in recorded.items()} == ours.sites()
    for model in pair:
        for switch in switches:
            getattr(model, f"set_use_{switch}")(False)
    assert not ours.cfg.use_attn_result
    assert ours.match(None) == [n for n, point in ours.hook_dict.items() if not point.on_request]
    for per_token in (False, True):
        mine, theirs = (model.loss_fn(logits, tokens, per_token=per_token) for model in pair)
        torch.testing.assert_close(mine, theirs)
    for name in ("QK", "OV"):
        torch.testing.assert_close(getattr(ours, name).AB, getattr(lens, name).AB, rtol=1e-4, atol=1e-5)
    resid = cache["resid_pre", 2]
    torch.testing.assert_close(ours(resid, start_at_layer=2), lens(resid, start_at_layer=2), rtol=0, atol=1e-4)


def test_the_config_answers_to_transformer_lens_names(pair):
    ours, lens = pair
    for name in (
        *("d_model", "n_layers", "n_heads", "n_key_value_heads", "d_head", "d_mlp", "d_vocab", "d_vocab_out", "n_ctx", "eps"),
        *("act_fn", "normalization_type", "positional_embedding_type", "gated_mlp", "final_rms", "attn_only"),
        *(
            "attn_scores_soft_cap",
            "output_logits_soft_cap",
            "window_size",
            "attn_types",
            "use_local_attn",
            "dtype",
            "n_devices",
        ),
        *("use_normalization_before_and_after", "parallel_attn_mlp", "rotary_dim", "rotary_base", "original_architecture"),
        *("default_prepend_bos", "attn_scale", "attention_dir", "use_attn_result", "use_split_qkv_input", "use_hook_mlp_in"),
        *("ungroup_grouped_query_attention", "scale_attn_by_inverse_layer_idx", "num_experts", "from_checkpoint"),
    ):
        assert getattr(ours.cfg, name) == getattr(lens.cfg, name), name
    assert str(ours.cfg.device) == str(lens.cfg.device)


def test_the_config_tells_where_the_weights_are_and_of_which_kind_they_are_after_a_move(tiny_model):
    config = tiny_model.cfg
    assert config.dtype == torch.float32
    assert config.device == torch.device("cpu")
    tiny_model.to(torch.bfloat16)
    assert tiny_model.cfg.dtype == torch.bfloat16


def test_what_rotary_positions_make_needless_is_absent_and_says_why(tiny_model):
    with pytest.raises(AttributeError, match=r"no W_pos\. Positions turn queries"):
        _ = tiny_model.W_pos
    assert not hasattr(tiny_model, "pos_embed")

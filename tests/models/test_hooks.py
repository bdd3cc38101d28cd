"""The hook vocabulary: TransformerLens' names and habits, and refusals where a mistake would go unnoticed."""

from functools import partial

import pytest
import torch

from scope.errors import ConfigError, TokensError, UnknownSite

RESID = "blocks.2.hook_resid_post"


@pytest.fixture
def tokens(tiny_config):
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(7, tiny_config.d_vocab, (2, 11), generator=generator)
    ids[:, 0] = tiny_config.bos
    return ids


def test_an_unknown_name_is_refused_with_the_nearest_ones(tiny_model, tokens):
    with pytest.raises(UnknownSite, match=r"no hook point blocks\.2\.hook_resid_pots(.|\n)*blocks\.2\.hook_resid_post"):
        tiny_model.run_with_hooks(tokens, fwd_hooks=[("blocks.2.hook_resid_pots", lambda x, hook: None)])


def test_a_refused_name_leaves_no_hook_behind(tiny_model, tokens):
    with pytest.raises(UnknownSite):
        tiny_model.run_with_hooks(tokens, fwd_hooks=[(RESID, lambda x, hook: x * 0), ("nowhere", lambda x, hook: x)])
    assert not any(point.has_hooks() for point in tiny_model.hook_points())


def test_a_filter_that_selects_nothing_is_refused(tiny_model, tokens):
    with pytest.raises(UnknownSite, match="selects none"):
        tiny_model.run_with_cache(tokens, names_filter=lambda name: "resid_poste" in name)


def test_a_hook_that_never_ran_is_reported(tiny_model, tokens):
    with pytest.raises(ConfigError, match=r"never ran: blocks\.2\.hook_resid_post"):
        tiny_model.run_with_hooks(tokens, fwd_hooks=[(RESID, lambda x, hook: None)], stop_at_layer=1)


def test_a_backward_hook_that_saw_no_gradient_is_reported(tiny_model, tokens):
    with pytest.raises(ConfigError, match=r"never ran(.|\n)*\.backward"):
        tiny_model.run_with_hooks(tokens, bwd_hooks=[(RESID, lambda grad, hook: None)], return_type="loss")


def test_hooks_are_gone_after_the_block_even_when_it_fails(tiny_model, tokens):
    with pytest.raises(ZeroDivisionError), tiny_model.hooks([(RESID, lambda x, hook: 1 / 0)]):
        tiny_model(tokens)
    assert not any(point.has_hooks() for point in tiny_model.hook_points())


@torch.no_grad()
def test_hook_names_are_listed_in_the_order_in_which_they_run(tiny_model, tokens):
    ran = []
    tiny_model.run_with_hooks(tokens, fwd_hooks=[(lambda name: True, lambda x, hook: ran.append(hook.name))])
    assert ran == list(tiny_model.hook_dict)
    assert [name for name in ran if not tiny_model.hook_dict[name].on_request] == tiny_model.match(None)
    assert [name for name in ran if name in tiny_model.sites()] == list(tiny_model.sites())


def test_a_returned_tensor_takes_the_place_of_what_flows(tiny_model, tokens):
    zero = tiny_model.run_with_hooks(tokens, fwd_hooks=[("blocks.3.hook_resid_post", lambda x, hook: torch.zeros_like(x))])
    assert torch.equal(zero, torch.zeros_like(zero))


def test_hooks_on_one_point_run_in_the_order_given(tiny_model, tokens):
    first = ("blocks.3.hook_resid_post", lambda x, hook: x + 1)
    second = ("blocks.3.hook_resid_post", lambda x, hook: x * 0)
    assert tiny_model.run_with_hooks(tokens, fwd_hooks=[first, second]).abs().max() == 0
    assert tiny_model.run_with_hooks(tokens, fwd_hooks=[second, first]).abs().max() > 0


def test_a_replacement_of_another_shape_is_refused(tiny_model, tokens):
    with pytest.raises(ConfigError, match=r"returned shape \(2, 32\); \(2, 11, 32\)"):
        tiny_model.run_with_hooks(tokens, fwd_hooks=[(RESID, lambda x, hook: x[:, 0])])


def test_permanent_hooks_outlast_a_reset_unless_it_includes_them(tiny_model, tokens):
    tiny_model.add_hook(RESID, lambda x, hook: None, is_permanent=True)
    tiny_model.add_hook(RESID, lambda x, hook: None)
    point = tiny_model.hook_dict[RESID]
    tiny_model.reset_hooks()
    assert len(point.fwd_hooks) == 1
    tiny_model.reset_hooks(including_permanent=True)
    assert not point.fwd_hooks


def test_a_reset_empties_contexts_unless_told_not_to(tiny_model, tokens):
    point = tiny_model.hook_dict[RESID]

    def count(x, hook):
        hook.ctx["n"] = hook.ctx.get("n", 0) + 1

    point.add_perma_hook(count)
    tiny_model(tokens), tiny_model(tokens)
    tiny_model.reset_hooks(clear_contexts=False)
    assert point.ctx == {"n": 2}
    tiny_model.reset_hooks()
    assert (point.ctx, len(point.fwd_hooks)) == ({}, 1)
    tiny_model.remove_all_hook_fns(including_permanent=True)
    assert not point.has_hooks()


def test_a_hook_may_stay_after_the_run_when_asked_to(tiny_model, tokens):
    tiny_model.run_with_hooks(tokens, fwd_hooks=[(RESID, lambda x, hook: None)], reset_hooks_end=False)
    assert tiny_model.hook_dict[RESID].has_hooks()
    tiny_model.reset_hooks()
    assert not tiny_model.hook_dict[RESID].has_hooks()


def test_a_hook_knows_where_it_is(tiny_model, tokens):
    seen = {}

    def look(x, hook):
        seen.update(layer=hook.layer(), tokens=hook.run.tokens, positions=hook.run.positions[0].tolist())

    tiny_model.run_with_hooks(tokens, fwd_hooks=[(RESID, look)])
    assert seen["layer"] == 2
    assert torch.equal(seen["tokens"], tokens)
    assert seen["positions"] == list(range(11))


def test_a_backward_hook_can_replace_the_gradient(tiny_model, tokens):
    with tiny_model.hooks(bwd_hooks=[(RESID, lambda grad, hook: grad * 0)]):
        tiny_model(tokens, return_type="loss").backward()
    assert tiny_model.blocks[2].mlp.up_proj.weight.grad.abs().max() == 0
    assert tiny_model.blocks[3].mlp.up_proj.weight.grad.abs().max() > 0


@torch.no_grad()
def test_stop_at_layer_gives_the_stream_before_that_block_and_counts_from_the_end(tiny_model, tokens):
    _, cache = tiny_model.run_with_cache(tokens)
    assert torch.equal(tiny_model(tokens, stop_at_layer=2), cache["resid_pre", 2])
    assert torch.equal(tiny_model(tokens, stop_at_layer=-1), cache["resid_pre", 3])
    assert torch.equal(tiny_model(tokens, stop_at_layer=4), cache["resid_post", -1])
    with pytest.raises(ConfigError, match="blocks 0 to 3"):
        tiny_model(tokens, stop_at_layer=5)


def test_a_cache_of_a_run_that_stops_holds_what_was_passed(tiny_model, tokens):
    _, cache = tiny_model.run_with_cache(tokens, stop_at_layer=-3)
    assert {name.split(".")[1] for name in cache if name.startswith("blocks")} == {"0"}
    assert "ln_final.hook_scale" not in cache


@torch.no_grad()
def test_a_run_may_start_at_the_stream_of_a_layer(tiny_model, tokens):
    mask = torch.ones_like(tokens, dtype=torch.bool)
    mask[0, :4] = False
    for given in ({}, {"attention_mask": mask}):
        logits, cache = tiny_model.run_with_cache(tokens, **given)
        assert torch.equal(tiny_model(cache["resid_pre", 2], start_at_layer=2, **given), logits)
        assert torch.equal(tiny_model(cache["resid_post", -1], start_at_layer=4, **given), logits)
        stopped = tiny_model(cache["resid_pre", 1], start_at_layer=1, stop_at_layer=3, **given)
        assert torch.equal(stopped, cache["resid_pre", 3])
    _, later = tiny_model.run_with_cache(cache["resid_pre", 2], start_at_layer=-2)
    assert {n.split(".")[1] for n in later if n.startswith("blocks")} == {"2", "3"}
    with pytest.raises(ConfigError, match="no tokens to take a loss of"):
        tiny_model(cache["resid_pre", 2], start_at_layer=2, return_type="loss")
    with pytest.raises(ConfigError, match="takes the stream there"):
        tiny_model(tokens, start_at_layer=2)
    with pytest.raises(ConfigError, match="blocks 0 to 3"):
        tiny_model(cache["resid_pre", 2], start_at_layer=9)


def test_caching_hooks_stay_until_a_reset_and_hold_the_last_run(tiny_model, tokens):
    def stream(name):
        return "resid_post" in name

    kept = tiny_model.add_caching_hooks(stream, incl_bwd=True)
    tiny_model(tokens[:1], return_type="loss").backward()
    tiny_model(tokens, return_type="loss").backward()
    _, cache = tiny_model.run_with_cache(
        tokens, names_filter=lambda name: "resid_post" in name, incl_bwd=True, return_type="loss"
    )
    assert set(kept) == set(cache)
    assert all(torch.equal(kept[name], cache[name]) for name in kept)
    tiny_model.reset_hooks()
    assert not any(point.has_hooks() for point in tiny_model.hook_points())


@torch.no_grad()
def test_a_cache_goes_to_a_device_or_loses_its_batch_dimension_on_request(tiny_model, tokens):
    _, cache = tiny_model.run_with_cache(tokens[:1], device="meta", remove_batch_dim=True, return_cache_object=False)
    assert type(cache) is dict
    assert {x.device.type for x in cache.values()} == {"meta"}
    assert cache[RESID].shape == (11, 32)
    out, _ = tiny_model.run_with_cache(tokens, return_type=None)
    assert out is None
    with pytest.raises(ConfigError, match="holds 2 sequences"):
        tiny_model.run_with_cache(tokens, remove_batch_dim=True)


@torch.no_grad()
def test_modules_of_torch_may_hook_an_idle_hook_point(tiny_model, tokens):
    seen = []
    handle = tiny_model.hook_dict[RESID].register_forward_hook(lambda module, inputs, output: seen.append(output.shape))
    tiny_model(tokens)
    handle.remove()
    tiny_model(tokens)
    assert seen == [(2, 11, 32)]


@torch.no_grad()
def test_a_filter_means_what_a_stopped_run_passes_and_a_name_beyond_it_is_refused(tiny_model, tokens):
    _, cache = tiny_model.run_with_cache(tokens, names_filter=lambda name: "resid_post" in name, stop_at_layer=-2)
    assert list(cache) == ["blocks.0.hook_resid_post", "blocks.1.hook_resid_post"]
    with pytest.raises(UnknownSite, match="before it stops at layer 1"):
        tiny_model.run_with_cache(tokens, names_filter=lambda name: name == RESID, stop_at_layer=1)
    with pytest.raises(ConfigError, match="never ran"):
        tiny_model.run_with_cache(tokens, names_filter=RESID, stop_at_layer=1)


def test_names_filter_takes_a_name_a_list_or_a_function(tiny_model, tokens):
    for names in (RESID, [RESID], lambda name: name == RESID):
        _, cache = tiny_model.run_with_cache(tokens, names_filter=names)
        assert list(cache) == [RESID]


def test_the_cache_understands_short_names_and_refuses_what_it_lacks(tiny_model, tokens):
    _, cache = tiny_model.run_with_cache(tokens)
    assert cache["resid_post", 2] is cache[RESID]
    assert cache["resid_post", -2] is cache[RESID]
    assert cache["embed"] is cache["hook_embed"]
    assert cache["pattern", 1] is cache["blocks.1.attn.hook_pattern"]
    assert cache["scale", 0, "ln2"] is cache["blocks.0.ln2.hook_scale"]
    with pytest.raises(UnknownSite, match=r"holds no blocks\.7\.hook_resid_post"):
        cache["resid_post7"]


def test_record_equals_the_cache_and_computes_no_layer_above(tiny_model, tokens):
    computed = []
    handles = [
        block.register_forward_hook(lambda m, i, o, n=n: computed.append(n)) for n, block in enumerate(tiny_model.blocks)
    ]
    recorded = tiny_model.record(tokens, ["blocks.1.attn.hook_z", "blocks.0.hook_mlp_out"])
    for handle in handles:
        handle.remove()
    assert computed == [0, 1]
    _, cache = tiny_model.run_with_cache(tokens)
    assert list(recorded) == ["blocks.1.attn.hook_z", "blocks.0.hook_mlp_out"]
    assert torch.equal(recorded["blocks.1.attn.hook_z"], cache["blocks.1.attn.hook_z"].flatten(2))
    assert torch.equal(recorded["blocks.0.hook_mlp_out"], cache["blocks.0.hook_mlp_out"])


def test_every_site_records_at_the_width_it_declares(tiny_model, tokens):
    sites = tiny_model.sites()
    recorded = tiny_model.record(tokens, list(sites))
    assert {name: x.shape[-1] for name, x in recorded.items()} == sites


def test_what_record_gives_can_be_trained_on(tiny_model, tokens):
    x = tiny_model.record(tokens, [RESID])[RESID]
    weight = torch.zeros(x.shape[-1], requires_grad=True)
    (x @ weight).sum().backward()
    assert weight.grad is not None
    assert not x.requires_grad


@torch.no_grad()
def test_text_is_tokenised_once_with_bos_and_padding_changes_nothing(tiny_model):
    short, long = "the dog runs", "the dog runs to the river"
    both = tiny_model([short, long])
    n = tiny_model.to_tokens(short).shape[1]
    torch.testing.assert_close(both[0, :n], tiny_model(short)[0], rtol=0, atol=1e-5)
    assert torch.equal(tiny_model(long), tiny_model(tiny_model.to_tokens(long)))
    assert tiny_model.to_tokens(short)[0, 0] == tiny_model.cfg.bos


@torch.no_grad()
def test_the_loss_of_a_padded_batch_is_the_mean_over_real_tokens(tiny_model):
    texts = ["the dog runs", "the dog runs to the river"]
    n = [tiny_model.to_tokens(t).shape[1] - 1 for t in texts]
    alone = [float(tiny_model(t, return_type="loss")) for t in texts]
    expected = (n[0] * alone[0] + n[1] * alone[1]) / sum(n)
    assert float(tiny_model(texts, return_type="loss")) == pytest.approx(expected, abs=1e-5)


def test_an_unknown_return_type_is_refused(tiny_model, tokens):
    with pytest.raises(ConfigError, match="return_type"):
        tiny_model(tokens, return_type="losses")


def test_a_text_of_several_tokens_is_not_a_single_one(tiny_model):
    piece = tiny_model.words.pieces([tiny_model.words.encode(" dog", bos=False)[0]])[0]
    assert tiny_model.to_str_tokens([tiny_model.to_single_token(piece)]) == [piece]
    with pytest.raises(TokensError, match="not one"):
        tiny_model.to_single_token("the dog runs to the river")


@pytest.mark.parametrize(
    ("ids", "says"),
    [
        ([[2, 384]], "vocabulary ends at 383"),
        ([[2, -1]], "vocabulary ends at 383"),
        ([[]], "no tokens"),
        ([[2] * 65], "65 tokens do not fit: this model's context holds 64"),
    ],
)
def test_tokens_the_model_cannot_take_are_refused(tiny_model, ids, says):
    with pytest.raises(TokensError, match=says):
        tiny_model(torch.tensor(ids, dtype=torch.long))


def test_a_function_gets_its_point_by_the_name_hook_as_in_transformer_lens(tiny_model, tokens):
    seen = []

    def note(x, layer, hook):
        seen.append((layer, hook.name))

    name = "blocks.1.hook_resid_post"
    for fn in (
        lambda x, layer=3, hook=None: note(x, layer, hook),
        partial(note, layer=3),
        lambda x, **rest: note(x, 3, rest["hook"]),
        lambda x, *, hook: note(x, 3, hook),
        lambda x, point: note(x, 3, point),
        lambda x, hook, layer=3: note(x, layer, hook),
    ):
        tiny_model.run_with_hooks(tokens, fwd_hooks=[(name, fn)])
    assert seen == [(3, name)] * 6


def test_a_backward_hook_may_return_a_tuple_of_one_as_in_transformer_lens(tiny_model, tokens):
    with tiny_model.hooks(bwd_hooks=[("blocks.0.hook_resid_post", lambda grad, hook: (grad * 0,))]):
        tiny_model(tokens, return_type="loss").backward()
    assert not tiny_model.blocks[0].mlp.down_proj.weight.grad.any()
    assert tiny_model.blocks[1].mlp.down_proj.weight.grad.any()


@pytest.mark.parametrize(
    ("hooks", "says"),
    [
        (("blocks.0.hook_resid_post", print), "a list of pairs"),
        (["blocks.0.hook_resid_post"], "a list of pairs"),
        ([("blocks.0.hook_resid_post", lambda x, hook: 3)], "returned int"),
    ],
)
def test_hooks_that_are_no_pairs_or_give_no_tensor_are_refused(tiny_model, tokens, hooks, says):
    with pytest.raises(ConfigError, match=says):
        tiny_model.run_with_hooks(tokens, fwd_hooks=hooks)


def test_one_row_of_ids_is_a_batch_of_one(tiny_model, tokens):
    site = "blocks.0.hook_resid_post"
    assert torch.equal(tiny_model(tokens[0]), tiny_model(tokens[:1]))
    assert torch.equal(tiny_model.record(tokens[0], [site])[site], tiny_model.record(tokens[:1], [site])[site])


@pytest.mark.parametrize("name", ["blocks.0.attn.hook_pattern", "blocks.0.attn.hook_attn_scores"])
def test_a_table_of_queries_by_keys_is_no_site_to_record(tiny_model, tokens, name):
    with pytest.raises(UnknownSite, match="no row for each token"):
        tiny_model.record(tokens, [name])


def test_none_means_the_default_where_transformer_lens_takes_it(tiny_model):
    texts = ["the dog", "a cat sat here"]
    assert torch.equal(tiny_model.to_tokens(texts, prepend_bos=None, padding_side=None), tiny_model.to_tokens(texts))
    assert tiny_model.to_str_tokens("the dog", prepend_bos=None) == tiny_model.to_str_tokens("the dog")
    assert torch.equal(tiny_model(texts, prepend_bos=None, padding_side=None), tiny_model(texts))


@pytest.mark.parametrize(
    ("tokens", "mask", "says"),
    [
        (torch.full((1, 4), 5.0), None, "these are float32"),
        (torch.full((1, 1, 4), 5), None, r"shape \(1, 1, 4\)"),
        (torch.full((2, 4), 5), torch.ones(4, 2), r"attention_mask is \(4, 2\)"),
    ],
)
def test_tokens_and_masks_of_another_form_are_refused(tiny_model, tokens, mask, says):
    with pytest.raises(TokensError, match=says):
        tiny_model(tokens, attention_mask=mask)

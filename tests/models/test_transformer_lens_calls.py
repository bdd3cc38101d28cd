"""Code written for TransformerLens, run on our model and on TransformerLens' own class with the same weights: a line a call."""

import pytest
import torch

from scope.errors import ConfigError
from scope.models.transformer_lens import bridge
from tests.conftest import random_gemma
from tests.models.twins import SHAPES, some_tokens

pytestmark = pytest.mark.filterwarnings("ignore")
TEXTS = ["the dog runs to the river", "a cat", "an angry crowd looks at the moon. my sister counts 12 apples"]
RESID = "blocks.1.hook_resid_post"


@pytest.fixture(scope="module")
def pair(tiny_config, toy_tokenizer):
    model = random_gemma(tiny_config, toy_tokenizer)
    return model, bridge.hooked_transformer(model)


@pytest.fixture
def fresh(tiny_config, toy_tokenizer):
    """(ours, theirs) that a test may change, tokenizers too."""
    from scope.models.text.tokenizer import Tokenizer

    backend = type(toy_tokenizer.backend).from_str(toy_tokenizer.backend.to_str())
    model = random_gemma(tiny_config, Tokenizer(backend))
    return model, bridge.hooked_transformer(model)


def flat(value):
    """The numbers of a result, one after another: of tensors and lists, texts as they are."""
    if isinstance(value, torch.Tensor):
        return [value.detach().float()]
    if isinstance(value, dict):
        return [x for key in sorted(value) for x in flat(value[key])]
    if isinstance(value, list | tuple):
        return [x for part in value for x in flat(part)]
    return [value]


def assert_same(mine, theirs, atol=1e-4):
    mine, theirs = flat(mine), flat(theirs)
    assert len(mine) == len(theirs)
    for one, other in zip(mine, theirs, strict=True):
        if isinstance(other, torch.Tensor):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=atol)
        else:
            assert one == other


def lens_slice(*args):
    from transformer_lens.utils import Slice

    return Slice(*args)


def kv_cache(model, batch=1):
    from transformer_lens.cache.key_value_cache import TransformerLensKeyValueCache

    return TransformerLensKeyValueCache.init_cache(model.cfg, model.cfg.device, batch)


def continuing(model, *parts, **options):
    """Logits of each part of the tokens, each continuing the cache of those before; then what the cache holds but for its keys,
    which ours turns by their positions before it keeps them."""
    cache = kv_cache(model, len(parts[0]))
    logits = [model(part, past_kv_cache=cache, **options) for part in parts]
    return logits, [e.past_values for e in cache.entries], cache.previous_attention_mask


def cached(model, tokens=None, **options):
    return model.run_with_cache(LONG if tokens is None else tokens, **options)[1]


TOKENS = torch.tensor([[2, 309, 317, 333, 308, 340, 312, 307], [2, 330, 311, 309, 309, 350, 360, 370]])
LONG = torch.cat([TOKENS, TOKENS[:, 1:] + 5, TOKENS[:, 1:] + 3], 1)  # longer than the window
PADDED = torch.tensor([[0, 0, 2, 309, 317, 333], [2, 330, 311, 309, 309, 350]])

CALLS = {
    # running
    "input by name": lambda m: m(input=TOKENS, return_type="logits"),
    "loss by position": lambda m: m(TOKENS, "loss", True),
    "both has names": lambda m: (m(TOKENS, return_type="both").logits, m(TOKENS, return_type="both").loss),
    "one row of tokens": lambda m: m(TOKENS[0]),
    "a text": lambda m: m(TEXTS[0], prepend_bos=False),
    "stop at a layer from the end": lambda m: m(TOKENS, stop_at_layer=-1),
    "start at a stream": lambda m: m(m(TOKENS, stop_at_layer=2), start_at_layer=2),
    "start and stop": lambda m: m(m(TOKENS, stop_at_layer=1), start_at_layer=1, stop_at_layer=3),
    "loss from a stream": lambda m: m(m(TOKENS, stop_at_layer=2), "loss", start_at_layer=2, tokens=TOKENS),
    "input to embed": lambda m: m.input_to_embed(TOKENS)[:2],
    "input to embed, a text": lambda m: m.input_to_embed(TEXTS[0])[:2],
    "from embed on": lambda m: m(m.input_to_embed(TOKENS)[0], start_at_layer=0),
    "left padding by mask": lambda m: m(PADDED, attention_mask=(PADDED != 0).long())[1:],
    "left padding of texts": lambda m: m.to_tokens(TEXTS, padding_side="left"),
    # key-value caches
    "a token at a time": lambda m: continuing(m, *TOKENS.split(1, dim=1)),
    "longer than the window": lambda m: continuing(m, *LONG.split((9, 1, 12), dim=1)),
    "left padded": lambda m: continuing(m, PADDED, TOKENS[:, 1:3], padding_side="left")[0][1][1:],
    "right padded": lambda m: continuing(m, PADDED.flip(1), TOKENS[:, 1:3], padding_side="right")[0][1],
    # hooks and caches
    "cache of one name": lambda m: dict(cached(m, names_filter=RESID).items()),
    "cache of names": lambda m: dict(cached(m, names_filter=[RESID, "hook_embed"]).items()),
    "cache by function": lambda m: dict(cached(m, names_filter=lambda name: name.endswith("hook_z")).items()),
    "positions by Slice": lambda m: dict(cached(m, names_filter=[RESID], pos_slice=lens_slice((2, 7, 2))).items()),
    "one position by Slice": lambda m: dict(cached(m, names_filter=[RESID], pos_slice=lens_slice(-1)).items()),
    "without batch": lambda m: dict(cached(m, TOKENS[:1], names_filter=[RESID], remove_batch_dim=True).items()),
    "no cache object": lambda m: m.run_with_cache(TOKENS, names_filter=[RESID], return_cache_object=False)[1],
    "hooks prepended": lambda m: ordered(m),
    "levels": lambda m: levels(m),
    "permanent hooks": lambda m: permanent(m),
    "hooks reset within the block": lambda m: reset_within(m),
    "hooks left behind": lambda m: left_behind(m),
    "gradients": lambda m: gradients(m),
    # the cache's methods
    "batch by Slice": lambda m: cached(m).apply_slice_to_batch_dim(lens_slice((0, 2)))["resid_pre", 1],
    "one of the batch": lambda m: cached(m).apply_slice_to_batch_dim(1)["resid_pre", 1],
    "stack activation": lambda m: cached(m).stack_activation("z"),
    "accumulated, Slice": lambda m: cached(m).accumulated_resid(incl_mid=True, pos_slice=lens_slice(-1), return_labels=True),
    "decomposed, Slice": lambda m: cached(m).decompose_resid(layer=2, pos_slice=lens_slice([1, 3]), return_labels=True),
    "projected parts": lambda m: (
        cached(m).get_full_resid_decomposition(2, expand_neurons=False, pos_slice=lens_slice(-1)).shape
    ),
    "attributes of a cache": lambda m: [cached(m).has_embed, cached(m).has_pos_embed, len(cached(m, names_filter=[RESID]))],
    # text
    "a token's place": lambda m: m.get_token_position(" the", input=TEXTS[0], mode="last", prepend_bos=False),
    "pieces by name": lambda m: m.to_str_tokens(input=TOKENS[0]),
    "to string": lambda m: m.to_string(TOKENS),
    "single token": lambda m: m.to_single_token(string=" the"),
    "single text": lambda m: m.to_single_str_token(int_token=309),
    # weights
    "composition scores": lambda m: [m.all_composition_scores(mode) for mode in "QKV"],
    "parts of a factored product": lambda m: [m.OV[1, 2].AB, m.QK[1, 2].norm(), m.OV[0].eigenvalues.abs()],
    "residual directions": lambda m: m.tokens_to_residual_directions(TOKENS),
}


def ordered(model):
    seen = []
    with model.hooks([]):
        model.add_hook(name=RESID, hook=lambda x, hook: seen.append("second"))
        model.add_hook(RESID, lambda x, hook: seen.append("first"), prepend=True)
        model(TOKENS)
    model.reset_hooks()
    model(TOKENS)
    return seen


def levels(model):
    point, counts = model.hook_dict[RESID], []
    for level in (None, 1, 2, 2):
        model.add_hook(RESID, lambda x, hook: None, level=level)
    counts.append(len(point.fwd_hooks))
    counts += [point.has_hooks(level=1), point.has_hooks(level=3), point.has_hooks(dir="bwd")]
    model.reset_hooks(level=2)
    counts.append(len(point.fwd_hooks))
    model.remove_all_hook_fns("fwd", level=1)
    counts.append(len(point.fwd_hooks))
    with model.hooks([(RESID, lambda x, hook: None)]):
        counts += [model.context_level, point.has_hooks(level=1)]
        model(TOKENS)
    model.reset_hooks()
    return [*counts, len(point.fwd_hooks), model.context_level]


def permanent(model):
    point = model.hook_dict[RESID]
    model.add_perma_hook(RESID, lambda x, hook: x * 1.5)
    model.reset_hooks()
    edited = model(TOKENS)
    kinds = [point.has_hooks(), point.has_hooks(including_permanent=False)]
    model.reset_hooks(including_permanent=True)
    return edited, kinds, point.has_hooks(), model(TOKENS)


def reset_within(model):
    with model.hooks([(RESID, lambda x, hook: 0 * x)]):
        model.reset_hooks()
        return model(TOKENS)


def left_behind(model):
    edited = model.run_with_hooks(TOKENS, fwd_hooks=[(RESID, lambda x, hook: -x)], reset_hooks_end=False)
    again, point = model(TOKENS), model.hook_dict[RESID]
    point.ctx["seen"] = 1
    model.reset_hooks(clear_contexts=False)
    remains = dict(point.ctx)
    model.reset_hooks()
    return edited, again, remains, dict(point.ctx), model(TOKENS)


@torch.enable_grad()
def gradients(model):
    seen = {}
    model.add_hook(
        lambda name: name.endswith("hook_mlp_out"), lambda grad, hook: seen.__setitem__(hook.name, grad.clone()), "bwd"
    )
    model(TOKENS, return_type="loss").backward()
    model.reset_hooks(direction="bwd")
    model.zero_grad()
    return seen


@pytest.mark.parametrize("call", CALLS)
@torch.no_grad()
def test_a_call_of_transformer_lens_gives_what_its_own_class_gives(pair, call):
    mine, theirs = (CALLS[call](model) for model in pair)
    assert_same(mine, theirs)


@torch.no_grad()
def test_a_frozen_cache_stays_as_it_is_and_serves_many_runs(pair):
    outs = []
    for model in pair:
        cache = kv_cache(model)
        model(TOKENS[:1, :5], past_kv_cache=cache)
        cache.freeze()
        outs.append([model(part, past_kv_cache=cache) for part in (TOKENS[:1, 5:], TOKENS[1:, 5:])])
        assert cache.entries[0].past_keys.shape[1] == cache.previous_attention_mask.shape[1] == 5
        embed, tokens, _, mask = model.input_to_embed(TOKENS[:1, 5:], past_kv_cache=cache)
        outs[-1].append(model(embed, start_at_layer=0, tokens=tokens, attention_mask=mask, past_kv_cache=cache))
    assert_same(*outs)
    torch.testing.assert_close(outs[0][0], outs[0][2])


@torch.no_grad()
def test_a_padding_side_set_on_the_tokenizer_holds_wherever_none_is_given(fresh):
    outs = []
    for model in fresh:
        model.tokenizer.padding_side = "left"
        tokens = model.to_tokens(TEXTS)
        logits = model(tokens)
        alone = model(TEXTS[1])
        torch.testing.assert_close(logits[1, -alone.shape[1] :], alone[0], rtol=1e-4, atol=1e-4)
        outs.append([tokens, logits[:, -1], model(TEXTS)[:, -1], model.to_tokens(TEXTS, padding_side="right")])
    assert_same(*outs)


@torch.no_grad()
def test_a_default_of_prepend_bos_set_on_the_config_holds_wherever_none_is_given(fresh):
    outs = []
    for model in fresh:
        model.cfg.default_prepend_bos = False
        outs.append([model.to_tokens(TEXTS[0]), model(TEXTS[0]), model.to_str_tokens(TEXTS[0]), model.to_tokens("a", True)])
        outs[-1].append(model.generate(TEXTS[0], max_new_tokens=3, do_sample=False, verbose=False, return_type="str"))
        outs[-1].append(model.get_token_position(" dog", TEXTS[0]))
    outs[0][4], outs[1][4] = (text.replace("<bos>", "") for text in (outs[0][4], outs[1][4]))
    assert_same(*outs)
    with pytest.raises(AttributeError):
        fresh[0].cfg.d_model = 7


def test_a_switch_may_be_set_on_the_config_too(fresh):
    for switch, name in (("use_attn_result", "attn.hook_result"), ("use_split_qkv_input", "hook_v_input")):
        for model in fresh:
            setattr(model.cfg, switch, True)
            assert f"blocks.0.{name}" in model.run_with_cache(TOKENS)[1]
            getattr(model, f"set_{switch}")(False)
            assert f"blocks.0.{name}" not in model.run_with_cache(TOKENS)[1]


@torch.no_grad()
def test_head_results_are_added_to_a_cache_and_used(pair):
    outs = []
    for model in pair:
        cache = cached(model)
        cache.compute_head_results()
        outs.append([cache["result", 1]])
    assert_same(*outs)
    cache = cached(pair[0])
    before = cache.stack_head_results()
    cache.compute_head_results()
    assert_same(before, cache.stack_head_results())
    by_slice = cache.get_neuron_results(1, lens_slice([3, 5]), lens_slice((1, 4)))
    assert torch.equal(by_slice, cache.get_neuron_results(1, [3, 5], (1, 4)))


def test_another_tokenizer_can_be_set(fresh):
    model, theirs = fresh
    model.set_tokenizer(theirs.tokenizer, default_padding_side="left")
    assert model.to_tokens(TEXTS).tolist() == theirs.to_tokens(TEXTS, padding_side="left").tolist()
    assert model.tokenizer.bos_token_id == model.cfg.bos


@pytest.mark.parametrize("shape", ["several kv heads, low caps", "Gemma 1, several kv heads", "no caps"])
@torch.no_grad()
def test_folded_weights_are_transformer_lens_own_and_the_model_computes_what_it_computed(shape, toy_tokenizer):
    ours = random_gemma(SHAPES[shape], toy_tokenizer)
    theirs, tokens = bridge.hooked_transformer(ours), some_tokens(ours.cfg)
    plain, before = ours.run_with_cache(tokens)
    capped = ours.cfg.final_cap is not None
    ours.process_weights_()
    theirs.process_weights_(center_writing_weights=False, center_unembed=not capped)
    logits, cache = ours.run_with_cache(tokens)
    assert_same(logits, theirs(tokens), 1e-3)
    assert_same(logits.log_softmax(-1), plain.log_softmax(-1), 1e-3)
    for name in ("W_E", "W_U", "W_Q", "W_K", "W_V", "W_O", "W_in", "W_gate", "W_out"):
        assert_same(getattr(ours, name), getattr(theirs, name), 1e-5)
    for name in (RESID, "blocks.0.attn.hook_q", "blocks.2.mlp.hook_post"):
        assert_same(cache[name], before[name], 1e-3)
    attributed = [c.logit_attrs(c.decompose_resid(), 7, 9) for c in (cache, theirs.run_with_cache(tokens)[1])]
    assert_same(*attributed, 1e-3)
    ours.process_weights_()
    assert_same(ours(tokens).log_softmax(-1), plain.log_softmax(-1), 1e-3)


@torch.no_grad()
def test_a_cache_that_a_model_of_transformer_lens_filled_is_refused(pair):
    model, theirs = pair
    cache = kv_cache(theirs)
    theirs(TOKENS[:1], past_kv_cache=cache)
    with pytest.raises(ConfigError, match="keeps keys before their rotary positions"):
        model(TOKENS[:1], past_kv_cache=cache)


def test_what_cannot_be_folded_or_ungrouped_is_refused_with_the_reason(tiny_model):
    with pytest.raises(ConfigError, match="Rotary positions turn queries"):
        tiny_model.process_weights_(refactor_factored_attn_matrices=True)
    with pytest.raises(ConfigError, match="one row for each key-value head"):
        tiny_model.set_ungroup_grouped_query_attention(True)
    with pytest.raises(ConfigError, match="no batch dimension"):
        tiny_model.run_with_cache(TOKENS[:1], remove_batch_dim=True)[1].apply_slice_to_batch_dim(0)

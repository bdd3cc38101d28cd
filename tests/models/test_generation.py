"""Generation: the cache is invisible, rows of a batch do not know of each other, hooks act on new tokens too."""

from copy import copy
from dataclasses import replace

import pytest
import torch

from scope.errors import ConfigError, EditError, TokensError
from scope.models.parts.cache import LayerCache
from scope.models.text.generate import generate
from scope.models.text.sampling_config import SamplingConfig
from tests.conftest import random_gemma

GREEDY = SamplingConfig(max_new_tokens=20, temperature=0, repetition_penalty=1.0)
PROMPTS = ["the dog", "my sister looks at the river. the old king counts", "a"]


def push(x, hook):
    """An edit whose size depends on the absolute position, so that a wrong position shows."""
    return x + 0.05 * hook.run.positions[..., None].to(x.dtype) * torch.linspace(-1, 1, x.shape[-1])


GENERATIONS = {
    "Gemma 1": {"model_type": "gemma", "attn_cap": None, "final_cap": None, "layer_types": (), "n_kv_heads": 1},
    "Gemma 2": {},
    "Gemma 3": {"model_type": "gemma3_text", "attn_cap": None, "rope_local_theta": 100.0, "rope_factor": 8.0},
}


@pytest.fixture(params=list(GENERATIONS))
def model(request, tiny_config, toy_tokenizer):
    """The tiny Gemma 2 of all tests, and a Gemma 1 and a Gemma 3 of its size."""
    return random_gemma(replace(tiny_config, **GENERATIONS[request.param]), toy_tokenizer)


HOOKS = {"plain": [], "steered": [("blocks.1.hook_resid_post", push)]}


@pytest.mark.parametrize("hooks", list(HOOKS))
def test_cached_generation_equals_uncached_token_by_token(model, hooks):
    cached, plain = (
        generate(model, PROMPTS, GREEDY, fwd_hooks=HOOKS[hooks], use_cache=use_cache) for use_cache in (True, False)
    )
    assert [g.new_ids for g in cached] == [g.new_ids for g in plain]
    assert any(len(g.new_ids) > model.cfg.window for g in cached)


@pytest.mark.parametrize("hooks", list(HOOKS))
@torch.no_grad()
def test_cached_logits_equal_those_of_the_whole_text_far_beyond_the_window(model, hooks):
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(7, model.cfg.d_vocab, (2, 40), generator=generator)
    tokens[:, 0] = model.cfg.bos
    cache = model.new_cache()
    with model.hooks(HOOKS[hooks]):
        whole = model(tokens)
        pieces = [model(piece, cache=cache) for piece in (tokens[:, :3], tokens[:, 3:20], *tokens[:, 20:].split(1, 1))]
    torch.testing.assert_close(torch.cat(pieces, 1), whole, rtol=0, atol=2e-5)
    assert cache.layers[0].k.shape[1] == (40 if model.cfg.model_type == "gemma" else model.cfg.window - 1)


@pytest.mark.parametrize("hooks", list(HOOKS))
@torch.no_grad()
def test_what_sets_a_cached_run_apart_is_rounding_alone(model, hooks):
    """In float64 it is the same to twelve digits, with unequal prompts, a window of 8 and edits by absolute position."""
    model = model.double()
    rows = [model.words.encode(p) for p in PROMPTS]
    longest, n_new = max(map(len, rows)), 30
    new = torch.randint(7, model.cfg.d_vocab, (len(rows), n_new), generator=torch.Generator().manual_seed(0))
    pads = [longest - len(row) for row in rows]
    prompt = torch.tensor([[0] * pad + row for pad, row in zip(pads, rows, strict=True)])
    tokens = torch.cat([prompt, new], 1)
    mask = torch.arange(tokens.shape[1])[None] >= torch.tensor(pads)[:, None]
    cache, at = model.new_cache(), longest
    with model.hooks(HOOKS[hooks]):
        whole = model(tokens, attention_mask=mask)
        pieces = [model(prompt, attention_mask=mask[:, :at], cache=cache)]
        for n in range(n_new):
            pieces.append(model(new[:, n : n + 1], attention_mask=mask[:, at + n : at + n + 1], cache=cache))
        alone = [model(tokens[i : i + 1, pad:]) for i, pad in enumerate(pads)]
    cached = torch.cat(pieces, 1)
    torch.testing.assert_close(cached[mask], whole[mask], rtol=0, atol=1e-12)
    for i, pad in enumerate(pads):
        torch.testing.assert_close(cached[i : i + 1, pad:], alone[i], rtol=0, atol=1e-12)


@torch.no_grad()
def test_one_new_token_gives_the_same_whether_somebody_looks_at_its_scores_or_not(tiny_model):
    tokens = torch.randint(7, tiny_model.cfg.d_vocab, (3, 30), generator=torch.Generator().manual_seed(0))
    caches = [tiny_model.new_cache() for _ in range(2)]
    for n, token in enumerate(tokens.split(1, 1)):
        plain = tiny_model(token, cache=caches[0])
        looked, seen = tiny_model.run_with_cache(token, cache=caches[1], names_filter=lambda name: name.endswith("pattern"))
        torch.testing.assert_close(plain, looked, rtol=0, atol=1e-5)
        widths = [pattern.shape[-1] for pattern in seen.values()]
        assert widths == [min(n + 1, tiny_model.cfg.window), n + 1] * 2
        assert all(torch.allclose(pattern.sum(-1), torch.ones(())) for pattern in seen.values())


def test_a_prompt_generates_the_same_alone_and_in_a_batch(tiny_model):
    sampling = SamplingConfig(max_new_tokens=12, seed=3)
    together = generate(tiny_model, PROMPTS, sampling, noise_rows=1)
    assert [g.text for g in together] == [generate(tiny_model, p, sampling)[0].text for p in PROMPTS]


def test_a_seed_gives_its_text_again_and_another_seed_another(tiny_model):
    def text(seed):
        return generate(tiny_model, "the dog", SamplingConfig(max_new_tokens=20, temperature=8.0, seed=seed))[0].text

    assert text(1) == text(1)
    assert text(1) != text(2)


@torch.no_grad()
def test_greedy_generation_is_transformers_greedy_generation(model, tmp_path, toy_tokenizer):
    from tests.models.twins import twins

    ours, theirs = twins(model.cfg, tmp_path, toy_tokenizer)
    prompt = ours.to_tokens("my sister looks at the river")
    new = generate(ours, prompt, GREEDY)[0].new_ids
    expected = theirs.generate(
        prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=20, eos_token_id=1, pad_token_id=0
    )
    assert list(new) == expected[0, prompt.shape[1] :].tolist()[: len(new)]
    assert len(new) > 8


def test_generation_ends_where_the_context_does(tiny_model):
    ids = [tiny_model.cfg.bos] + [9] * (tiny_model.cfg.n_ctx - 4)
    sampling = SamplingConfig(max_new_tokens=50, temperature=0, repetition_penalty=1)
    found = generate(tiny_model, [ids], sampling)[0]
    assert (found.stopped_by, len(found.new_ids)) in {("context", 3), ("eos", len(found.new_ids))}
    with pytest.raises(TokensError, match="adds at least one"):
        generate(tiny_model, [[2] + [9] * 63], sampling)


def test_a_stop_string_ends_a_text(tiny_model):
    free = generate(tiny_model, "the dog", GREEDY)[0]
    stop = tiny_model.words.pieces(free.new_ids)[3].strip() or " "
    cut = generate(tiny_model, "the dog", SamplingConfig(max_new_tokens=20, temperature=0, repetition_penalty=1, stop=(stop,)))[
        0
    ]
    assert cut.stopped_by == "stop"
    assert len(cut.new_ids) <= 4


def test_the_caller_can_cancel_and_hooks_are_gone_afterwards(tiny_model):
    steps = []
    found = generate(
        tiny_model, "the dog", GREEDY, fwd_hooks=HOOKS["steered"], on_token=lambda s, ids: steps.append(s) or s == 2
    )
    assert steps == [0, 1, 2]
    assert found[0].stopped_by == "cancelled"
    assert not any(point.has_hooks() for point in tiny_model.hook_points())


def test_an_edit_that_breaks_the_numbers_is_refused(tiny_model):
    with pytest.raises(EditError, match="far too strong"):
        generate(tiny_model, "the dog", GREEDY, fwd_hooks=[("blocks.1.hook_resid_post", lambda x, hook: x * float("inf"))])


def test_the_method_takes_and_gives_back_text_texts_or_tokens(tiny_model):
    (one,) = generate(tiny_model, "the dog", GREEDY)
    whole = tiny_model.words.decode([*one.prompt_ids, *one.new_ids])
    greedy = {"max_new_tokens": 20, "do_sample": False}
    assert tiny_model.generate("the dog", **greedy) == whole
    assert tiny_model.generate(["the dog", "a"], **greedy)[0] == whole
    assert tiny_model.generate(list(one.prompt_ids), **greedy) == [*one.prompt_ids, *one.new_ids]
    tokens = tiny_model.generate(tiny_model.to_tokens("the dog"), **greedy)
    assert tokens[0].tolist() == [*one.prompt_ids, *one.new_ids]
    assert tiny_model.generate("the dog", return_type="generations", **greedy) == [one]
    with pytest.raises(ConfigError, match="embeds"):
        tiny_model.generate("the dog", return_type="embeds")


def test_a_row_that_ended_is_filled_with_end_tokens_unless_ends_are_written_like_any_other(tiny_model):
    prompts = [[2, n] for n in range(7, 80)]
    eos = tiny_model.cfg.eos[0]
    rows = tiny_model.generate(prompts, 40, temperature=4.0, return_type="tokens")
    ended = [row for row in rows.tolist() if eos in row]
    assert ended
    assert all(set(row[row.index(eos) :]) == {eos} for row in ended)
    endless = tiny_model.generate(torch.tensor(prompts), 40, temperature=4.0, stop_at_eos=False)
    assert endless.shape == (len(prompts), 42)
    assert any(eos in row[:-1] and row[row.index(eos) + 1] != eos for row in endless.tolist())


def test_chat_turns_are_laid_out_by_the_template_and_answered_with_the_reply_alone(tiny_model):
    tiny_model.tokenizer = copy(tiny_model.tokenizer)
    tiny_model.tokenizer.chat_template = (
        "{{ bos_token }}{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}. {% endfor %}"
    )
    turns = [{"role": "user", "content": "the dog"}]
    found = tiny_model.generate(turns, 8, do_sample=False)
    assert (
        found
        == generate(tiny_model, "user: the dog. ", SamplingConfig(max_new_tokens=8, temperature=0, repetition_penalty=1))[
            0
        ].text
    )
    assert tiny_model.generate([turns, turns], 8, do_sample=False) == [found, found]
    (whole,) = tiny_model.generate(turns, 8, return_type="generations")
    assert whole.prompt_ids.count(tiny_model.cfg.bos) == 1


@pytest.mark.parametrize("seed", [0, 7, 13, 19])
def test_streamed_pieces_are_the_text_in_whole_characters(tiny_model, seed):
    pieces = {0: [], 1: []}
    found = tiny_model.generate(
        ["the dog", "a"],
        60,
        temperature=3.0,
        seed=seed,
        on_text=lambda row, piece: pieces[row].append(piece),
        return_type="generations",
    )
    assert ["".join(pieces[row]) for row in (0, 1)] == [g.text for g in found]
    assert len(pieces[0]) + len(pieces[1]) > 5


def test_the_stream_can_be_stopped_by_whoever_listens(tiny_model):
    (cut,) = tiny_model.generate("the dog", 30, on_text=lambda row, piece: True, return_type="generations")
    assert cut.stopped_by == "cancelled"
    assert len(cut.new_ids) < 10


@torch.no_grad()
def test_what_the_cache_gave_out_stays_what_it_was(tiny_config):
    """A copy that continues elsewhere must not see what the original goes on to write."""
    for window in (None, 5):
        layer = LayerCache(window)
        fork, expected, seen = None, None, []
        for n in range(300):
            k = torch.full((2, 1, 2, 12), float(n))
            k_all, _ = layer.append(k, -k)
            seen.append((k_all, k_all.clone()))
            if n == 40:
                fork = LayerCache(window, layer.k, layer.v)
                expected = torch.cat([fork.k.clone(), torch.full((2, 1, 2, 12), -1.0)], 1)
        assert all(torch.equal(a, b) for a, b in seen)
        assert seen[-1][0][0, :, 0, 0].tolist() == list(range(0 if window is None else 300 - window, 300))
        mine, _ = fork.append(torch.full((2, 1, 2, 12), -1.0), torch.zeros(2, 1, 2, 12))
        assert torch.equal(mine, expected)
        assert layer.keys.shape[2] < (600 if window is None else 100)


def test_what_transformer_lens_generate_takes_is_taken_and_means_the_same(tiny_model):
    greedy = {"max_new_tokens": 12, "do_sample": False, "verbose": False}
    text = tiny_model.generate("the dog", **greedy, stop_at_eos=False)
    assert tiny_model.generate("the dog", **greedy, stop_at_eos=False, prepend_bos=None, padding_side="left") == text
    ids = tiny_model.generate(tiny_model.to_tokens("the dog"), **greedy, stop_at_eos=False)
    n = len(tiny_model.to_tokens("the dog")[0])
    end = int(ids[0, n + 3])
    for given in (end, [end]):
        cut = tiny_model.generate(tiny_model.to_tokens("the dog"), **greedy, eos_token_id=given)
        assert cut.tolist() == ids[:, : n + ids[0, n:].tolist().index(end)].tolist()
    said = tiny_model.generate("the dog", **greedy, stop_at_eos=False, freq_penalty=1e6, return_type="generations")[0].new_ids
    assert len(set(said)) == 12  # nothing twice


@pytest.mark.parametrize(
    ("prompt", "given", "says"),
    [
        (torch.zeros(2, 3, 4).long(), {}, r"shape \(2, 3, 4\)"),
        (torch.full((1, 4), 5.7), {}, "these are float32"),
        (torch.zeros(2, 0).long(), {}, "prompt is empty"),
        ([2, 10**6], {}, "vocabulary ends"),
        (torch.ones(1, 4).bool(), {}, "these are bool"),
        ([2**70], {}, "row of token ids"),
        ("the dog", {"eos_token_id": 10**6}, "eos_token_id"),
        ("the dog", {"eos_token_id": []}, "eos_token_id"),
    ],
)
def test_prompts_and_ends_that_are_no_tokens_are_refused(tiny_model, prompt, given, says):
    with pytest.raises((TokensError, ConfigError), match=says):
        tiny_model.generate(prompt, 2, **given)


# Noise: torch's own without a seed, as in TransformerLens; with one, the same text again.


def drawn(model, **options):
    return model.generate("the dog", 12, temperature=4.0, stop_at_eos=False, **options)


def test_without_a_seed_every_call_draws_another_text_and_manual_seed_repeats_them(tiny_model):
    torch.manual_seed(0)
    texts = [drawn(tiny_model) for _ in range(4)]
    assert len(set(texts)) == 4
    torch.manual_seed(0)
    assert [drawn(tiny_model) for _ in range(4)] == texts
    before = torch.get_rng_state()
    assert drawn(tiny_model, seed=3) == drawn(tiny_model, seed=3)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.filterwarnings("ignore:HookedTransformer is deprecated")
@pytest.mark.parametrize("options", [{}, {"temperature": 0.7}, {"top_k": 20}, {"freq_penalty": 0.5}])
def test_without_a_seed_the_tokens_are_those_that_transformer_lens_draws(tiny_model, options):
    from scope.models.transformer_lens import bridge as lens

    theirs, tokens = lens.hooked_transformer(tiny_model), tiny_model.to_tokens("the dog")
    both = []
    for model in (tiny_model, theirs):
        torch.manual_seed(5)
        both.append(model.generate(tokens, 12, stop_at_eos=False, verbose=False, **options))
    assert torch.equal(*both)


def test_a_float16_overflow_is_called_one(tiny_model):
    model = copy(tiny_model).half()
    with torch.no_grad():
        model.blocks[0].mlp.down_proj.weight.fill_(60000.0)
        model.blocks[0].ln2_post.weight.fill_(60000.0)
    with pytest.raises(EditError, match=r"numbers exceed 65504, the largest of float16(.|\n)*bfloat16"):
        generate(model, "the dog", GREEDY)

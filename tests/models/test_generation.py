"""Generation: the cache is invisible, rows of a batch do not know of each other, hooks act on new tokens too."""

import pytest
import torch

from scope.errors import EditError, TokensError
from scope.models.generate import SamplingConfig, generate

GREEDY = SamplingConfig(max_new_tokens=20, temperature=0, repetition_penalty=1.0)
PROMPTS = ["the dog", "my sister looks at the river. the old king counts", "a"]


def push(x, hook):
    """An edit whose size depends on the absolute position, so that a wrong position shows."""
    return x + 0.05 * hook.run.positions[..., None].to(x.dtype) * torch.linspace(-1, 1, x.shape[-1])


HOOKS = {"plain": [], "steered": [("blocks.1.hook_resid_post", push)]}


@pytest.mark.parametrize("hooks", list(HOOKS))
def test_cached_generation_equals_uncached_token_by_token(tiny_model, hooks):
    cached, plain = (
        generate(tiny_model, PROMPTS, GREEDY, fwd_hooks=HOOKS[hooks], use_cache=use_cache) for use_cache in (True, False)
    )
    assert [g.new_ids for g in cached] == [g.new_ids for g in plain]
    assert any(len(g.new_ids) > tiny_model.cfg.window for g in cached)


@pytest.mark.parametrize("hooks", list(HOOKS))
@torch.no_grad()
def test_cached_logits_equal_those_of_the_whole_text_far_beyond_the_window(tiny_model, hooks):
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(7, tiny_model.cfg.d_vocab, (2, 40), generator=generator)
    tokens[:, 0] = tiny_model.cfg.bos
    cache = tiny_model.new_cache()
    with tiny_model.hooks(HOOKS[hooks]):
        whole = tiny_model(tokens)
        pieces = [tiny_model(piece, cache=cache) for piece in (tokens[:, :3], tokens[:, 3:20], *tokens[:, 20:].split(1, 1))]
    torch.testing.assert_close(torch.cat(pieces, 1), whole, rtol=0, atol=2e-5)
    assert cache.layers[0].k.shape[1] == tiny_model.cfg.window - 1


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
def test_greedy_generation_is_transformers_greedy_generation(tmp_path, tiny_config, toy_tokenizer):
    from tests.models.twins import twins

    ours, theirs = twins(tiny_config, tmp_path, toy_tokenizer)
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

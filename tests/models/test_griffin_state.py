"""What a RecurrentGemma carries from token to token: documents, padding, caches, and edits of its state that flow on."""

from unittest.mock import patch

import pytest
import torch

from scope.errors import TokensError
from scope.models.griffin import recurrent
from scope.models.load import load_model
from scope.models.text.generate import generate
from scope.models.text.sampling_config import SamplingConfig
from tests.models.griffin_twins import CLOSE, SHAPES, random_recurrent, some_tokens, tiny_griffin

KINDS = {
    "as published": {},
    "attention first": {"layer_types": ("local", "recurrent", "recurrent", "local"), "n_kv_heads": 2},
    "conv of three": {"conv_width": 3, "window_convention": "hf"},
    "conv of one": {"conv_width": 1, "window": 1},
}
STATE, WRITE, A = (f"blocks.0.rec.hook_{name}" for name in ("state", "write", "a"))


@pytest.fixture(scope="module", params=list(KINDS))
def model(request, toy_tokenizer):
    return tiny_griffin(toy_tokenizer, **KINDS[request.param])


@pytest.fixture(scope="module")
def plain(toy_tokenizer):
    return tiny_griffin(toy_tokenizer)


def in_words(model, tokens):
    """The state of block 0 of one document by plain loops, DeepMind's definition: [pos channel]."""
    rec, p = model.blocks[0].rec, model.blocks[0].rec
    _, cache = model.run_with_cache(tokens, names_filter=[STATE, "blocks.0.rec.hook_x"])
    u, width, block = cache["blocks.0.rec.hook_x"][0], p.conv_width, rec.lru_width // rec.n_blocks
    h, states = torch.zeros_like(u[0]), []
    for t in range(len(u)):
        c = p.conv_bias.clone()
        for s in range(min(width, t + 1)):  # inputs of this document alone
            c = c + u[t - s] * p.conv_weight[:, 0, width - 1 - s]
        i, r = torch.empty_like(c), torch.empty_like(c)
        for n in range(rec.n_blocks):
            part = slice(n * block, (n + 1) * block)
            i[part] = torch.sigmoid(c[part] @ p.input_gate_weight[n] + p.input_gate_bias[n])
            r[part] = torch.sigmoid(c[part] @ p.recurrent_gate_weight[n] + p.recurrent_gate_bias[n])
        a = torch.exp(-8 * r * torch.log1p(p.recurrent_param.exp()))
        h = i * c if t == 0 else a * h + torch.sqrt(1 - a**2) * i * c
        states.append(h)
    return torch.stack(states), cache[STATE][0]


@torch.no_grad()
def test_the_state_is_what_plain_loops_give():
    for changed in ({}, {"conv_width": 3}, {"conv_width": 1}):
        expected, found = in_words(tiny_griffin(**changed).double(), some_tokens(batch=1))
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


@torch.no_grad()
def test_packed_documents_equal_single_ones(model):
    documents = [some_tokens(1, n, seed=n) for n in (1, 9, 2, 14)]
    row = torch.cat(documents, 1)
    positions = torch.cat([torch.arange(d.shape[1]) for d in documents])[None]
    both = model(torch.cat([row, row]), position_ids=torch.cat([positions, torch.arange(26)[None]]))
    expected = torch.cat([model(d) for d in documents], 1)
    torch.testing.assert_close(both[:1], expected, **CLOSE)
    torch.testing.assert_close(both[1:], model(row), **CLOSE)
    assert not torch.allclose(both[0], both[1], atol=1e-2)
    cache = model.new_cache()
    parts = [model(row[:, a:b], position_ids=positions[:, a:b], cache=cache) for a, b in ((0, 4), (4, 11), (11, 26))]
    torch.testing.assert_close(torch.cat(parts, 1), expected, **CLOSE)
    torch.testing.assert_close(
        model(row[:, :1], cache=cache), model(torch.cat([documents[-1], row[:, :1]], 1))[:, -1:], **CLOSE
    )


def test_positions_that_do_not_count_on_are_refused(plain):
    tokens = some_tokens(1, 4)
    for positions in ([1, 2, 3, 4], [0, 1, 3, 4], [0, 1, 1, 2]):
        with pytest.raises(TokensError, match="count on by one"):
            plain(tokens, position_ids=torch.tensor([positions]))
    with pytest.raises(TokensError, match="whole numbers"):
        plain(tokens, position_ids=torch.zeros(1, 4))


@pytest.mark.parametrize("side", ["left", "right", "both", "holes"])
@torch.no_grad()
def test_padding_changes_no_real_position(model, side):
    alone = some_tokens(1, 17)
    real = torch.ones(1, 25, dtype=torch.bool)
    padding = {"left": slice(0, 8), "right": slice(17, 25), "both": [0, 1, 2, 20, 21, 22, 23, 24], "holes": slice(3, 19, 2)}
    real[0, padding[side]] = False
    tokens = torch.full((1, 25), 9)
    tokens[real] = alone
    logits, cache = model.run_with_cache(tokens, attention_mask=real)
    expected, singly = model.run_with_cache(alone)
    torch.testing.assert_close(logits[real], expected[0], **CLOSE)
    assert torch.isfinite(logits).all()
    for name in cache:
        if name.endswith(("rec.hook_state", "rec.hook_write", "rec.hook_a", "rec.hook_conv", "rec.hook_rec_out")):
            torch.testing.assert_close(cache[name][real], singly[name][0], **CLOSE)


@pytest.mark.parametrize("side", ["none", "left", "right"])
@torch.no_grad()
def test_cached_decoding_equals_the_full_pass_far_beyond_the_window(model, side):
    tokens = some_tokens(2, 40)
    real = torch.ones_like(tokens, dtype=torch.bool)
    if side != "none":
        real[0, slice(0, 4) if side == "left" else slice(6, 10)] = False
    mask = None if side == "none" else real
    whole = model(tokens, attention_mask=mask)
    for cuts in ((10, *range(11, 41)), (1, 2, 13, 40), (10, 12, 40)):
        if side == "right" and cuts[0] != 10:
            continue
        cache, first, parts = model.new_cache(), 0, []
        for last in cuts:
            mask = None if side == "none" else real[:, first:last]
            parts.append(model(tokens[:, first:last], attention_mask=mask, cache=cache))
            first = last
        torch.testing.assert_close(torch.cat(parts, 1)[real], whole[real], **CLOSE)


@torch.no_grad()
def test_the_memory_of_a_recurrent_block_does_not_grow(plain):
    cache = plain.new_cache()
    for first in (0, 20):
        plain(some_tokens(2, 20), cache=cache)
        state = cache.layers[0]
        assert state.h.shape == (2, 40)
        assert state.inputs.shape == (2, 3, 40)
        assert state.h.dtype == torch.float32, first


@torch.no_grad()
def test_generation_in_batches_continues_each_prompt_as_alone(plain):
    prompts = ["the dog runs to", "a cat", "my sister sings about the moon and the old king"]
    sampling = SamplingConfig(max_new_tokens=20, temperature=0.0)
    together = [g.new_ids for g in generate(plain, prompts, sampling)]
    assert together == [generate(plain, p, sampling)[0].new_ids for p in prompts]
    assert together == [g.new_ids for g in generate(plain, prompts, sampling, use_cache=False)]
    cache = plain.new_cache()
    tokens = plain.to_tokens(prompts[0])
    plain(tokens, cache=cache)
    three = cache.repeated(3)
    next_tokens = torch.tensor([[20], [30], [40]])
    logits = plain(next_tokens, cache=three)
    for row, token in enumerate(next_tokens):
        torch.testing.assert_close(logits[row], plain(torch.cat([tokens, token[None]], 1))[0, -1:], **CLOSE)
    three.select(torch.tensor([2, 0]))
    rows = torch.cat([tokens.expand(2, -1), next_tokens[[2, 0]], next_tokens[:2]], 1)
    torch.testing.assert_close(plain(next_tokens[:2], cache=three), plain(rows)[:, -1:], **CLOSE)


def stepped(model, tokens, edit):
    """The states of block 0 where `edit(state, t)` is applied to each token's as it arises."""
    _, cache = model.run_with_cache(tokens, names_filter=[WRITE, A])
    h, states = torch.zeros_like(cache[WRITE][:, 0]), []
    for t in range(tokens.shape[1]):
        h = edit((cache[A][:, t] * h if t else 0) + cache[WRITE][:, t], t)
        states.append(h)
    return torch.stack(states, 1)


EDITS = {
    "one token added to": lambda h, t: h + 2.0 if t == 7 else h,
    "one token replaced": lambda h, t: torch.full_like(h, 3.0) if t == 7 else h,
    "two tokens and one channel": lambda h, t: torch.where(torch.arange(h.shape[-1]) == 3, 1.5, h) if t in (3, 9) else h,
    "every token added to": lambda h, t: h + 0.5,
    "every token replaced": lambda h, t: torch.zeros_like(h),
    "every token halved": lambda h, t: h * 0.5,
    "every token bounded": lambda h, t: h.clamp(-0.1, 0.1),
    "the last token halved": lambda h, t: h * 0.5 if t == 22 else h,
}


@pytest.mark.parametrize("name", EDITS)
def test_an_edit_of_the_state_flows_on_to_later_tokens_and_changes_nothing_before(plain, name):
    edit, tokens = EDITS[name], some_tokens(2)
    seen = {}

    def hook(x, hook):
        return torch.stack([edit(x[:, t], t) for t in range(x.shape[1])], 1)

    def keep(x, hook):
        seen[hook.name] = x.detach().clone()

    with torch.no_grad():
        plain.run_with_hooks(tokens, fwd_hooks=[(STATE, hook), (STATE, keep), ("blocks.0.rec.hook_rec_out", keep)])
        _, before = plain.run_with_cache(tokens, names_filter=[STATE, "blocks.0.rec.hook_rec_out"])
        torch.testing.assert_close(seen[STATE], stepped(plain, tokens, edit), rtol=0, atol=2e-6)
    out, was = seen["blocks.0.rec.hook_rec_out"], before["blocks.0.rec.hook_rec_out"]
    first = next(t for t in range(23) if not torch.equal(edit(before[STATE][:, t], t), before[STATE][:, t]))
    assert torch.equal(out[:, :first], was[:, :first])
    assert not torch.allclose(out[:, first:], was[:, first:])


@pytest.mark.parametrize("name", EDITS)
def test_gradients_pass_through_an_edited_state_as_through_plain_steps(name):
    model, edit, tokens = tiny_griffin(n_layers=1), EDITS[name], some_tokens(2)

    def hook(x, hook):
        return torch.stack([edit(x[:, t], t) for t in range(x.shape[1])], 1)

    with model.hooks(fwd_hooks=[(STATE, hook)]):
        model(tokens, return_type="loss").backward()
    gradient = {n: p.grad for n, p in model.named_parameters()}
    model.zero_grad(set_to_none=True)

    def by_steps(point, a, write, start):
        h, states = torch.zeros_like(write[:, 0]), []
        for t in range(write.shape[1]):
            h = edit(a[:, t] * h + write[:, t], t)
            states.append(h)
        return torch.stack(states, 1)

    with patch.object(recurrent, "run_state_hooks", by_steps), model.hooks():
        model(tokens, return_type="loss").backward()
    for n, p in model.named_parameters():
        assert (p.grad is None) == (gradient[n] is None)
        if p.grad is not None:
            torch.testing.assert_close(gradient[n], p.grad, rtol=1e-4, atol=2e-6, msg=lambda text, n=n: f"{n}: {text}")


def test_reading_a_state_changes_no_bit_and_its_gradient_predicts_a_small_edit(plain):
    model, tokens = plain.double(), some_tokens(1)
    grads = {}
    with model.hooks(bwd_hooks=[(STATE, lambda x, hook: grads.update({hook.name: x}))]):
        logits = model(tokens)
        weights = torch.randn(logits.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
        (logits * weights).sum().backward()
    with torch.no_grad():
        assert torch.equal(model(tokens), logits)
        direction = torch.randn(40, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
        for t in (0, 5, 21):

            def score(sign, t=t):
                def push(x, hook):
                    x[:, t] += sign * 1e-5 * direction

                return (model.run_with_hooks(tokens, fwd_hooks=[(STATE, push)]) * weights).sum()

            expected = (grads[STATE][0, t] * direction).sum()
            torch.testing.assert_close((score(1) - score(-1)) / 2e-5, expected, rtol=1e-6, atol=1e-9)
    model.float()


@torch.no_grad()
def test_an_edited_state_is_what_decoding_continues_from(plain):
    tokens = some_tokens(1, 12)
    hook = [(STATE, lambda x, hook: x + 0.3)]
    whole = plain.run_with_hooks(tokens, fwd_hooks=hook)
    cache = plain.new_cache()
    parts = [plain.run_with_hooks(tokens[:, a:b], cache=cache, fwd_hooks=hook) for a, b in ((0, 5), (5, 6), (6, 12))]
    torch.testing.assert_close(torch.cat(parts, 1), whole, **CLOSE)


@torch.no_grad()
def test_a_streamed_model_computes_the_same_and_records_with_early_stop(tmp_path, toy_tokenizer):
    folder = str(random_recurrent(tmp_path, toy_tokenizer, **SHAPES["wider than the stream, heads that do not divide it"]))
    resident, streamed, tokens = load_model(folder), load_model(folder, streamed=True), some_tokens()
    assert torch.equal(resident(tokens), streamed(tokens))
    sites = [STATE, "blocks.1.rec.hook_write", "blocks.0.hook_resid_post"]
    ran = []
    with resident.hooks([("blocks.2.hook_resid_pre", lambda x, hook: ran.append(1))], must_fire=False):
        recorded = resident.record(tokens, sites)
    assert not ran
    for site, values in streamed.record(tokens, sites).items():
        assert torch.equal(values, recorded[site])
    sampling = SamplingConfig(max_new_tokens=6, temperature=0.0)
    assert generate(resident, "the dog", sampling) == generate(streamed, "the dog", sampling)


def test_a_hook_on_a_state_is_told_its_last_call(plain):
    calls = []

    def hook(x, hook):
        calls.append(hook.run.settled)
        return x * 0.5

    with torch.no_grad():
        plain.run_with_hooks(some_tokens(1, 6), fwd_hooks=[(STATE, hook)])
        assert calls[-1]
        assert sum(calls) == 1
        calls.clear()
        plain.run_with_hooks(some_tokens(1, 6), fwd_hooks=[(STATE, lambda x, hook: calls.append(hook.run.settled))])
        assert calls == [False, True]

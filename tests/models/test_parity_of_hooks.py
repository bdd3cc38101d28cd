"""Every hook and its gradient against transformers' eager Gemma 1, 2 and 3, over heads, windows, caps, batches and padding."""

from dataclasses import replace
from itertools import product

import pytest
import torch

from tests.benchmarks.models import transformers_twin
from tests.conftest import random_gemma
from tests.models.flow import at_real_tokens, flow
from tests.models.twins import SHAPES, some_tokens

LENGTH, PAD = 17, 6
BASE = replace(SHAPES["several kv heads, low caps"], n_layers=3, layer_types=())
HEADS = {"two kv heads": (4, 2, 12), "one kv head": (4, 1, 10), "a kv head each": (2, 2, 24)}
WINDOWS = (2, 5, 40)
CAPS = {"low caps": (3.0, 5.0), "released caps": (50.0, 30.0), "no caps": (None, None)}
PADDING = ("none", "left", "right", "both sides")


def config(heads: str, window: int, caps: str):
    n_heads, kv, d_head = HEADS[heads]
    attn, final = CAPS[caps]
    return replace(BASE, n_heads=n_heads, n_kv_heads=kv, d_head=d_head, window=window, attn_cap=attn, final_cap=final)


OTHER_GENERATIONS = [name for name in SHAPES if name.startswith(("Gemma 1", "Gemma 3"))]
CONFIGS = {f"{h}, window {w}, {c}": config(h, w, c) for h, w, c in product(HEADS, WINDOWS, CAPS)}
CONFIGS |= {name: SHAPES[name] for name in OTHER_GENERATIONS}


@pytest.fixture(scope="module", params=list(CONFIGS))
def pair(request):
    ours = random_gemma(CONFIGS[request.param])
    return ours, transformers_twin(ours, torch.float32)


def padded(ours, padding: str, batch: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens and their mask; rows lie at different places where there is padding."""
    tokens = some_tokens(ours.cfg, batch, LENGTH + PAD)
    mask = torch.ones_like(tokens, dtype=torch.bool)
    for row in range(batch):
        left = {"left": PAD - row, "both sides": 1 + row}.get(padding, 0)
        right = {"right": PAD - row, "both sides": PAD - row}.get(padding, 0)
        mask[row, :left] = False
        mask[row, mask.shape[1] - right :] = False
        tokens[row, left] = ours.cfg.bos
    return tokens.masked_fill(~mask, ours.cfg.pad), mask


@pytest.mark.parametrize("padding", PADDING)
def test_every_hook_and_its_gradient_equal_what_flows_in_transformers(pair, padding):
    ours, theirs = pair
    tokens, mask = padded(ours, padding, batch=1 if padding == "none" else 3)
    given = None if padding == "none" else mask
    expected, expected_grads = flow(theirs, tokens, given, grad=True)
    _, cache = ours.run_with_cache(tokens, attention_mask=given, incl_bwd=True, return_type="loss")
    ours.zero_grad()
    names = set(ours.match(None))
    assert set(cache.keys()) == names | {f"{name}_grad" for name in names}
    assert names == set(expected) == set(expected_grads)
    for name in names:
        values = [at_real_tokens(name, x, mask) for x in (cache[name], expected[name])]
        grads = [at_real_tokens(name, x, mask) for x in (cache[f"{name}_grad"], expected_grads[name])]
        if name.endswith("attn_scores"):  # what is masked differs: theirs were taken before the mask
            visible = values[0] > -1e30
            values = [x[visible] for x in values]
        if name.endswith("hook_pattern"):  # at hidden keys the gradient asks for the values of padding, which are anything
            scores = at_real_tokens(name, cache[name.replace("hook_pattern", "hook_attn_scores")], mask)
            grads = [x[scores > -1e30] for x in grads]
        torch.testing.assert_close(*values, rtol=1e-5, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}")
        worst = (grads[0] - grads[1]).abs().max() / grads[1].abs().max()
        assert grads[1].abs().max() > 1e-7, name
        assert worst < 1e-4, f"the gradient at {name} differs by {worst:.1e} of its largest"


@pytest.mark.parametrize("name", [f"{heads}, window 5, released caps" for heads in HEADS] + OTHER_GENERATIONS)
@torch.no_grad()
def test_bfloat16_is_as_close_to_the_truth_at_every_hook_as_transformers_bfloat16_is(name):
    """The truth is float64 arithmetic on the weights rounded to bfloat16."""
    rounded = random_gemma(CONFIGS[name]).to(torch.bfloat16)
    truth = random_gemma(rounded.cfg).double()
    truth.load_state_dict(rounded.state_dict())
    tokens = some_tokens(rounded.cfg, batch=12)
    _, exact = truth.run_with_cache(tokens)
    _, mine = rounded.run_with_cache(tokens)
    other = flow(transformers_twin(rounded, torch.bfloat16), tokens)
    for name in exact:
        if name.endswith("attn_scores"):  # not theirs, but worked out from theirs
            continue
        errors = [(x.double() - exact[name]).abs().mean() for x in (mine[name], other[name])]
        assert errors[0] <= 1.1 * errors[1] + 1e-9, f"{name}: {errors[0]:.2e}, where transformers has {errors[1]:.2e}"


@pytest.mark.parametrize("name", ["two kv heads, window 5, released caps", *OTHER_GENERATIONS])
@torch.no_grad()
def test_bfloat16_has_the_logits_of_transformers_bfloat16_to_the_last_bit(name):
    ours = random_gemma(CONFIGS[name]).to(torch.bfloat16)
    tokens = some_tokens(ours.cfg, batch=4)
    assert torch.equal(ours(tokens), transformers_twin(ours, torch.bfloat16)(tokens, use_cache=False).logits)

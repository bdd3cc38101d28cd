"""The linear recurrence in its four forms: one answer, whatever the length, the batch, the chunks and the resets."""

import pytest
import torch

from scope.errors import ConfigError, TokensError
from scope.models.griffin.scan import FORMS, associative, back_flow, chunked, scan, sequential, step

WITHIN = {torch.float32: 1e-6, torch.float64: 1e-12}


def by_hand(a, x, start=None):
    """The definition."""
    states, h = [], torch.zeros_like(x[:, 0]) if start is None else start
    for t in range(x.shape[1]):
        h = a[:, t] * h + x[:, t]
        states.append(h)
    return torch.stack(states, 1)


def inputs(batch=2, n=37, channels=5, dtype=torch.float64, seed=0, resets=()):
    g = torch.Generator().manual_seed(seed)
    a = torch.rand(batch, n, channels, generator=g, dtype=dtype)
    a[:, list(resets)] = 0
    return a, torch.randn(batch, n, channels, generator=g, dtype=dtype), torch.randn(batch, channels, generator=g, dtype=dtype)


@pytest.mark.parametrize("dtype", list(WITHIN))
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("n", [1, 2, 3, 16, 31, 33, 100])
def test_step_sequential_chunked_and_associative_are_one_answer(dtype, batch, n):
    for resets in ((), (0,), (n // 2, n - 1)):
        a, x, start = inputs(batch, n, dtype=dtype, seed=n, resets=resets)
        for begin in (None, start):
            expected = by_hand(a.double(), x.double(), None if begin is None else begin.double())
            scale = expected.abs().max().clamp(min=1)
            stepped, state = [], torch.zeros_like(start) if begin is None else begin
            for t in range(n):
                state = step(a[:, t], x[:, t], state)
                stepped.append(state)
            found = {"step": torch.stack(stepped, 1), **{name: form(a, x, begin) for name, form in FORMS.items()}}
            found |= {f"chunks of {size}": chunked(a, x, begin, size) for size in (1, 2, 7, 64)}
            found["scan"] = scan(a, x, begin)
            for name, states in found.items():
                assert (states - expected).abs().max() <= WITHIN[dtype] * scale, name


@pytest.mark.parametrize("form", [None, *FORMS])
@pytest.mark.parametrize("n", [1, 2, 33])
def test_the_gradient_of_every_form_is_that_of_the_definition(form, n):
    a, x, start = (t.requires_grad_() for t in inputs(n=n, resets=(n // 2,)))
    weights = torch.randn(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(1))
    expected = torch.autograd.grad((by_hand(a, x, start) * weights).sum(), (a, x, start))
    found = torch.autograd.grad((scan(a, x, start, form) * weights).sum(), (a, x, start))
    for f, e in zip(found, expected, strict=True):
        torch.testing.assert_close(f, e, rtol=0, atol=1e-12)
    a, x, _ = (t.detach().requires_grad_() for t in (a, x, start))
    expected = torch.autograd.grad((by_hand(a, x) * weights).sum(), (a, x))
    found = torch.autograd.grad((scan(a, x, None, form) * weights).sum(), (a, x))
    for f, e in zip(found, expected, strict=True):
        torch.testing.assert_close(f, e, rtol=0, atol=1e-12)


def test_a_state_is_handed_from_part_to_part():
    a, x, start = inputs(n=50)
    whole = scan(a, x, start)
    for form in FORMS:
        state, parts = start, []
        for first, last in ((0, 1), (1, 20), (20, 21), (21, 50)):
            parts.append(scan(a[:, first:last], x[:, first:last], state, form))
            state = parts[-1][:, -1]
        torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=0, atol=1e-12)


def test_back_flow_is_the_gradient_by_way_of_all_later_states():
    a, x, _ = inputs(n=20)
    x.requires_grad_()
    direct = torch.randn(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(2))
    (expected,) = torch.autograd.grad((by_hand(a, x) * direct).sum(), x)
    for form in (None, *FORMS):
        torch.testing.assert_close(back_flow(a, direct, form), expected, rtol=0, atol=1e-12)


def test_a_factor_of_zero_forgets_and_one_of_one_keeps():
    a, x, start = inputs(n=6)
    a[:, 3], x[:, 4], a[:, 4] = 0, 0, 1
    for form in (sequential, chunked, associative):
        h = form(a, x, start)
        assert torch.equal(h[:, 3], x[:, 3])
        assert torch.equal(h[:, 4], h[:, 3])


def test_states_of_another_batch_and_unknown_forms_are_refused():
    a, x, start = inputs()
    with pytest.raises(TokensError, match=r"takes factors .* and a state \(2, 5\).*\n.*start a new cache"):
        scan(a, x, start[:1])
    with pytest.raises(TokensError, match=r"these are \(2, 36, 5\)"):
        scan(a[:, 1:], x)
    with pytest.raises(ConfigError, match="sequential, chunked, associative"):
        scan(a, x, form="fast")
    with pytest.raises(ConfigError, match="at least one token"):
        chunked(a, x, chunk=0)

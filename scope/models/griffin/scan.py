"""The linear recurrence h_t = a_t h_(t-1) + x_t, channel by channel: four forms of one answer, with a gradient of their own.

    step          one token, for decoding
    sequential    a loop over tokens, one multiply-add each
    chunked       the steps of all chunks side by side, then what each chunk hands to the next
    associative   doubling: log2(tokens) passes over everything

The gradient is the same recurrence run backwards, so every form gives it too. Source: Griffin, section 2.4 and appendix A,
arXiv:2402.19427.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from scope.errors import ConfigError, TokensError

Channels = Float[Tensor, "batch pos channel"]
State = Float[Tensor, "batch channel"]
Earlier = Float[Tensor, "batch earlier channel"]

CHUNK = 32
"""Tokens of a chunk."""

_FEW = 1024
"""Numbers a token up to which the steps of several chunks side by side cost hardly more than those of one."""


def step(a: State, x: State, state: State) -> State:
    """The state after one more token."""
    return torch.addcmul(x, a, state)


def sequential(a: Channels, x: Channels, start: State | None = None) -> Channels:
    """A loop over tokens."""
    h = torch.empty_like(x)
    factors, added, states = a.unbind(1), x.unbind(1), h.unbind(1)
    state = states[0].copy_(added[0]) if start is None else torch.addcmul(added[0], factors[0], start, out=states[0])
    for t in range(1, len(states)):
        state = torch.addcmul(added[t], factors[t], state, out=states[t])
    return h


def chunked(a: Channels, x: Channels, start: State | None = None, chunk: int = CHUNK) -> Channels:
    """A loop over the tokens of a chunk, for all chunks at once, then one over chunks; chunks need not divide the tokens."""
    if chunk < 1:
        raise ConfigError(f"chunk is {chunk}; a chunk has at least one token.")
    batch, n, channels = x.shape
    n_chunks = -(-n // chunk)
    left = n_chunks * chunk - n
    if left:
        a, x = (torch.cat([t, t.new_zeros(batch, left, channels)], 1) for t in (a, x))
    a, x = (t.reshape(batch * n_chunks, chunk, channels) for t in (a, x))
    within, decayed = sequential(a, x), a.cumprod(1)
    within, decayed = (t.unflatten(0, (batch, n_chunks)) for t in (within, decayed))
    state, states = start, []
    for k in range(n_chunks):
        states.append(within[:, k] if state is None else torch.addcmul(within[:, k], decayed[:, k], state[:, None]))
        state = states[-1][:, -1]
    return torch.cat(states, 1)[:, :n]


def associative(a: Channels, x: Channels, start: State | None = None) -> Channels:
    """Doubling: after pass k each token holds what the 2^k tokens up to it add. Few large operations, for a GPU."""
    if start is not None:
        x = torch.cat([torch.addcmul(x[:, :1], a[:, :1], start[:, None]), x[:, 1:]], 1)
    reach, n = 1, x.shape[1]
    while reach < n:
        x = torch.cat([x[:, :reach], torch.addcmul(x[:, reach:], a[:, reach:], x[:, :-reach])], 1)
        if 2 * reach < n:
            a = torch.cat([a[:, :reach], a[:, reach:] * a[:, :-reach]], 1)
        reach *= 2
    return x


FORMS: dict[str, Callable[..., Channels]] = {"sequential": sequential, "chunked": chunked, "associative": associative}


def scan(a: Tensor, x: Channels, start: Tensor | None = None, form: str | None = None) -> Channels:
    """The state after every token, from `start` (None: nothing). Factors of 0 begin anew; of 1, with nothing added, they
    leave the state as it is. Without a `form` the fastest of the device is taken.

    Raises:
        TokensError: factors, inputs and start of different sizes.
        ConfigError: an unknown form.
    """
    if a.shape != x.shape or (start is not None and start.shape != (x.shape[0], x.shape[2])):
        was = "none" if start is None else tuple(start.shape)
        raise TokensError(
            f"A recurrence over inputs {tuple(x.shape)} takes factors {tuple(x.shape)} and a state "
            f"{(x.shape[0], x.shape[2])}; these are {tuple(a.shape)} and {was}.\n"
            "  A state belongs to the rows that it was made from: start a new cache for another batch."
        )
    form = form or _fastest(x)
    if form not in FORMS:
        raise ConfigError(f"form is {form!r}; a scan is {', '.join(FORMS)}.")
    if torch.is_grad_enabled() and (a.requires_grad or x.requires_grad or (start is not None and start.requires_grad)):
        return _scan_with_gradient(a, x, start, form)
    if x.shape[1] == 1:
        return x if start is None else step(a[:, 0], x[:, 0], start)[:, None]
    return FORMS[form](a, x, start)


def _fastest(x: Tensor) -> str:
    """On a CPU a loop over tokens, of few numbers each in chunks; elsewhere few large operations."""
    if x.device.type != "cpu":
        return "associative"
    return "chunked" if x.shape[1] >= 2 * CHUNK and x.shape[0] * x.shape[2] <= _FEW else "sequential"


def back_flow(a: Channels, grad: Channels, form: str | None = None) -> Channels:
    """What a loss changes with each state by way of all later ones, from what it changes with each state directly:
    g_t + a_(t+1) (g_(t+1) + ...)."""
    if grad.shape[1] == 1:
        return grad
    later = torch.cat([a[:, 1:], torch.zeros_like(a[:, :1])], 1)
    form = form or _fastest(grad)
    if form == "sequential":
        total = torch.empty_like(grad)
        factors, direct, totals = later.unbind(1), grad.unbind(1), total.unbind(1)
        after = totals[-1].copy_(direct[-1])
        for t in range(len(totals) - 2, -1, -1):
            after = torch.addcmul(direct[t], factors[t], after, out=totals[t])
        return total
    return FORMS[form](later.flip(1), grad.flip(1)).flip(1)


@torch.compiler.disable
def _scan_with_gradient(a: Channels, x: Channels, start: State | None, form: str) -> Channels:
    """A compiler would unroll the loop over tokens."""
    return _Scan.apply(a, x, start, form)


class _Scan(torch.autograd.Function):
    """`scan`, whose gradient is `back_flow`."""

    @staticmethod
    def forward(ctx, a: Tensor, x: Tensor, start: Tensor | None, form: str) -> Tensor:
        h = FORMS[form](a, x, start)
        ctx.save_for_backward(a, h, start)
        ctx.form = form
        return h

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        a, h, start = ctx.saved_tensors
        total = back_flow(a, grad, ctx.form)
        to_a = torch.empty_like(a)
        torch.mul(total[:, 1:], h[:, :-1], out=to_a[:, 1:])
        to_a[:, 0] = 0 if start is None else total[:, 0] * start
        return to_a, total, None if start is None else total[:, 0] * a[:, 0], None

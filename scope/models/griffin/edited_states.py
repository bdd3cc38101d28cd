"""Hooks on the state of a recurrence: what they change flows on to later tokens, and gradients include that way.

A hook sees the states of all tokens at once, as at every other point, but the state of a token follows from the one before
it, as the hook left it. So a hook E that edits means the states S with

    S = E(p),    p_t = a_t S_(t-1) + w_t,

which for edits of single tokens, additions and replacements is reached in two or three calls, and for any other one in as
many calls as there are tokens that it changes. The last call is with the p of the result; `hook.run.settled` is False in those
before it.
"""

import torch
from torch import Tensor

from scope.models.griffin.scan import Channels, State, back_flow, scan
from scope.models.hooks import HookPoint

_ROUNDING = 16  # units in the last place of the largest state


def run_state_hooks(point: HookPoint, a: Channels, write: Channels, start: State | None) -> Channels:
    """The states of a recurrence, as hooks on `point` leave them."""
    if not point.has_hooks():
        return scan(a, write, start)
    needs_grad = torch.is_grad_enabled() and (a.requires_grad or write.requires_grad)
    with torch.set_grad_enabled(False):
        states = scan(a, write, start)
    shown = _one_step(states, a, write, start) if needs_grad else states
    last = states.shape[1] == 1 or all(hook.only_reads for hook in point.fwd_hooks)
    point.run.settled = last
    try:
        left, unchanged = point.run_hooks(shown)
        if unchanged and not last:
            point.run.settled = True
            left, unchanged = point.run_hooks(shown)
        if unchanged:
            return _FlowingOn.apply(left, a) if needs_grad else left
        return left if last else _edited(point, scan(a, write, start), a, write, start)
    finally:
        point.run.settled = True


def _one_step(states: Channels, a: Channels, write: Channels, start: State | None) -> Channels:
    """The states, with the gradients of one step: earlier states as numbers."""
    earlier = _earlier(states, start).detach()
    through = torch.addcmul(write, a, earlier)
    if start is not None and start.requires_grad:
        through = through + torch.cat([a[:, :1].detach() * (start - start.detach())[:, None], torch.zeros_like(a[:, 1:])], 1)
    return states + (through - through.detach())


def _earlier(states: Channels, start: State | None) -> Channels:
    """The state before each token."""
    first = torch.zeros_like(states[:, :1]) if start is None else start[:, None].to(states.dtype)
    return torch.cat([first, states[:, :-1]], 1)


def _edited(point: HookPoint, states: Channels, a: Channels, write: Channels, start: State | None) -> Channels:
    """The fixed point of the edits of the hooks."""

    def last(before: Channels) -> Channels:
        point.run.settled = True
        return point(before)

    added = point(states) - states
    flowing = scan(a, write + added, start)
    before = torch.addcmul(write, a, _earlier(flowing, start))
    if _agree(point(before), flowing):  # an addition, or edits of single tokens
        last(before)
        return flowing
    replaced = point(states)
    before = torch.addcmul(write, a, _earlier(replaced, start))
    if _agree(point(before), replaced):  # a value in place of the state
        return last(before)
    before, done = states, 0
    while True:
        after = point(before)
        changed = (after != before)[:, done:].any(0).any(-1).nonzero()
        if not len(changed) or (done := done + int(changed[0]) + 1) == before.shape[1]:
            return last(before)
        later = scan(a[:, done:], write[:, done:], after[:, done - 1])
        before = torch.cat([before[:, :done], later], 1)


def _agree(x: Tensor, y: Tensor) -> bool:
    return bool((x - y).abs().max() <= _ROUNDING * torch.finfo(x.dtype).eps * y.abs().max())


class _FlowingOn(torch.autograd.Function):
    """The states as they are; what a loss changes with one includes its way by all later ones."""

    @staticmethod
    def forward(ctx, states: Tensor, a: Tensor) -> Tensor:
        ctx.save_for_backward(a)
        return states.view_as(states)

    @staticmethod
    def backward(ctx, grad: Tensor):
        return back_flow(ctx.saved_tensors[0], grad), None

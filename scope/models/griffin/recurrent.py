"""Griffin's recurrent block: a short convolution and the RG-LRU, gated by a second branch."""

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, softplus

from scope.models.griffin.edited_states import run_state_hooks
from scope.models.griffin.scan import Channels, Earlier
from scope.models.griffin.state import RecurrentState, last_real
from scope.models.hooks import HookPoint
from scope.models.parts.positions import RunPositions
from scope.shapes import Mask, Positions, Resid

_ROWS = 64  # tokens from which it pays to put the weights of both gates side by side
_STEEPEST = 1000.0
"""The derivative of a square root is cut here, as in both published implementations."""


class RecurrentBlock(nn.Module):
    """What a recurrent layer adds to the stream:

        y     = gelu(linear_y x)                          hook_y
        u     = linear_x x                                hook_x
        c_t   = b + sum over s < width of conv_s u_(t-s)  hook_conv      never across a document's start
        i, r  = sigmoid of blockwise linear maps of c     hook_gate_x, hook_gate_a
        log a = -8 r softplus(p)                          hook_log_a
        a     = exp(log a)                                hook_a
        w     = n i c,  n = sqrt(1 - a^2)                 hook_write     n = 1 where a document starts
        h_t   = a_t h_(t-1) + w_t                         hook_state     h_t = w_t where a document starts
        out   = linear_out(h y)                           hook_rec_out

    log a, a, w and h are float32, or float64, whatever the dtype of the activations: in bfloat16 an `a` of 0.999 would be 1.
    An edited state flows on to later tokens (edited_states.py).

    Source: Griffin, section 2.4 and appendix A, arXiv:2402.19427; RecurrentGemma, arXiv:2404.07839.
    """

    def __init__(self, d_model: int, lru_width: int, n_blocks: int, conv_width: int):
        super().__init__()
        width = lru_width // n_blocks
        self.lru_width, self.n_blocks, self.conv_width = lru_width, n_blocks, conv_width
        self.linear_x, self.linear_y = nn.Linear(d_model, lru_width), nn.Linear(d_model, lru_width)
        self.linear_out = nn.Linear(lru_width, d_model)
        self.conv_weight = nn.Parameter(torch.zeros(lru_width, 1, conv_width))
        self.conv_bias = nn.Parameter(torch.zeros(lru_width))
        self.recurrent_param = nn.Parameter(torch.zeros(lru_width))
        self.input_gate_weight = nn.Parameter(torch.zeros(n_blocks, width, width))  # [block in out]
        self.input_gate_bias = nn.Parameter(torch.zeros(n_blocks, width))
        self.recurrent_gate_weight = nn.Parameter(torch.zeros(n_blocks, width, width))
        self.recurrent_gate_bias = nn.Parameter(torch.zeros(n_blocks, width))
        names = "x conv gate_x gate_a log_a a write state y".split()
        for name in names:
            setattr(self, f"hook_{name}", HookPoint(lru_width))
        self.hook_rec_out = HookPoint(d_model)

    def forward(self, x: Resid, at: RunPositions, state: RecurrentState | None = None) -> Resid:
        before = RecurrentState() if state is None else state
        c = self.hook_conv(self.convolved(self.hook_x(self.linear_x(x)), at, before, remember=state is not None))
        a, write = self.gated(c, at)
        h = run_state_hooks(self.hook_state, a, write, before.h)
        if state is not None:
            state.h = h[:, -1]
        y = self.hook_y(gelu(self.linear_y(x), approximate="tanh"))
        return self.hook_rec_out(self.linear_out(h.type_as(y) * y))

    def convolved(self, u: Channels, at: RunPositions, state: RecurrentState, remember: bool) -> Channels:
        """Each token's input and the `conv_width - 1` before it in its document, weighted by channel."""
        n, reach = u.shape[1], self.conv_width - 1
        longer = torch.cat([state.before(u, self.conv_width), u], 1)
        if n == 1 and at.real is None and remember:  # one token more, in few operations
            state.inputs = longer[:, 1:]
            return (longer * self.conv_weight[:, 0].T).sum(1, keepdim=True) + self.conv_bias
        if at.real is None:
            parts = [longer[:, reach - k : reach - k + n] for k in range(self.conv_width)]
        else:
            parts = inputs_back(longer, at.real, at.positions, self.conv_width)
        c = torch.addcmul(self.conv_bias, parts[0], self.conv_weight[:, 0, reach])
        for k in range(1, self.conv_width):
            c = torch.addcmul(c, parts[k], self.conv_weight[:, 0, reach - k])
        if remember:
            real = at.real if at.real is None else torch.cat([at.real.new_ones(len(u), reach), at.real], 1)
            state.inputs = longer[:, n:] if real is None else last_real(longer, real, reach)
        return c

    def gated(self, c: Channels, at: RunPositions) -> tuple[Channels, Channels]:
        """What the state is multiplied with and what is written into it at each token: 0 times the state where a document
        starts, and at padding the state as it is."""
        i, r = self.gates(c)
        i, r = self.hook_gate_x(i), self.hook_gate_a(r)
        log_a = self.hook_log_a(-8.0 * wide(r) * softplus(wide(self.recurrent_param)))
        a = self.hook_a(log_a.exp())
        n = 1 - (2 * log_a).exp()
        n = _BoundedSqrt.apply(n) if n.requires_grad else n.sqrt_()
        starts = at.starts[..., None] if at.may_start else None
        if starts is not None:
            n, a = n.masked_fill(starts, 1.0), a.masked_fill(starts, 0.0)
        write = self.hook_write(wide(c * i) * n)
        if at.real is None:
            return a, write
        padding = ~at.real[..., None]
        return a.masked_fill(padding, 1.0), write.masked_fill(padding, 0.0)

    def gates(self, c: Channels) -> tuple[Channels, Channels]:
        """How much of the input is written and how fast the state decays: maps of each of `n_blocks` parts of the channels."""
        parts = c.reshape(-1, self.n_blocks, self.lru_width // self.n_blocks).transpose(0, 1)
        weights, biases = (self.input_gate_weight, self.recurrent_gate_weight), (self.input_gate_bias, self.recurrent_gate_bias)
        if parts.shape[1] < _ROWS:
            maps = [torch.baddbmm(bias[:, None], parts, weight) for weight, bias in zip(weights, biases, strict=True)]
        else:
            maps = torch.baddbmm(torch.cat(biases, -1)[:, None], parts, torch.cat(weights, -1)).chunk(2, -1)
        i, r = (torch.sigmoid(x.transpose(0, 1).reshape(c.shape)) for x in maps)
        return i, r


class _BoundedSqrt(torch.autograd.Function):
    """sqrt(x), with a derivative of at most `_STEEPEST`."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        root = x.sqrt()
        ctx.save_for_backward(root)
        return root

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        (root,) = ctx.saved_tensors
        return grad / (2 * root).clamp(min=1 / _STEEPEST)


def wide(x: Tensor) -> Tensor:
    """x in float32 where its dtype is narrower."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def inputs_back(longer: Earlier, real: Mask, positions: Positions, width: int) -> list[Channels]:
    """For k = 0 to width-1, the input of the k-th real token before each, 0 before its document. `longer`
    has the inputs of `width - 1` earlier tokens in front."""
    reach, n = width - 1, real.shape[1]
    counted = torch.cat([real.new_ones(len(real), reach), real], 1)
    rank = (counted.long().cumsum(1) - 1).clamp(min=0)
    places = torch.arange(counted.shape[1], device=real.device).expand_as(rank)
    of_rank = torch.zeros_like(rank).scatter_reduce(1, rank, places, "amin", include_self=False)
    parts = [longer[:, reach:]]
    for k in range(1, width):
        index = of_rank.gather(1, (rank[:, reach:] - k).clamp(min=0))
        part = longer.gather(1, index[..., None].expand(-1, n, longer.shape[-1]))
        parts.append(part.masked_fill((positions < k)[..., None], 0.0))
    return parts

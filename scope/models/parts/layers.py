"""RMSNorm, the gated MLP, and the soft cap."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import gelu, rms_norm

from scope.models.hooks import HookPoint, is_watched, with_gradient_of
from scope.shapes import Resid

_FEW = 1 << 17  # numbers; beyond them writing over what is there pays


class RMSNorm(nn.Module):
    """x / rms(x) * (1 + weight): the stored gain is an offset from one, and all of it runs in float32 before the cast.

    `hook_normalized` sees x / rms(x) before the gain, which is what Gemma Scope's transcoders read.
    """

    def __init__(self, d: int, eps: float, heads: int = 1):
        """`heads`: how many vectors of `d` numbers a token has, each normalised on its own."""
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.zeros(d)), eps
        self.hook_scale, self.hook_normalized = HookPoint(heads), HookPoint(heads * d)

    def forward(self, x: Float[Tensor, "*lead d"]) -> Float[Tensor, "*lead d"]:
        x32 = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
        idle = not (torch.is_grad_enabled() or self.hook_scale.has_hooks() or self.hook_normalized.has_hooks())
        if idle and (x.numel() < _FEW or x.device.type != "cpu"):  # on a CPU the same steps, called once
            gain = 1.0 + self.weight.to(x32.dtype)
            return rms_norm(x32, gain.shape, gain, self.eps).type_as(x)
        squares = x32.square()
        inverse = torch.rsqrt(squares.mean(-1, keepdim=True) + self.eps)
        if idle:
            return torch.mul(x32, inverse, out=squares).mul_(1.0 + self.weight.to(x32.dtype)).type_as(x)
        normalized = self.hook_normalized(self._divided(x32, inverse) if self.hook_scale.has_hooks() else x32 * inverse)
        return (normalized * (1.0 + self.weight.to(x32.dtype))).type_as(x)

    def _divided(self, x: Tensor, inverse: Tensor) -> Tensor:
        """x / scale where a hook edits the scale or wants its gradient. The quotient rounds differently in the last bit,
        so where hooks only read it the product is used, with the quotient's gradients: reading changes nothing."""
        scale, unchanged = self.hook_scale.run_hooks(inverse.reciprocal())
        return with_gradient_of(x * inverse, x / scale) if unchanged else x / scale

    w = property(lambda self: 1.0 + self.weight)  # TransformerLens stores the gain itself


class GatedMLP(nn.Module):
    """down(gelu_tanh(gate x) * up x): GeGLU. Gemma has no biases, Griffin has."""

    def __init__(self, d_model: int, d_mlp: int, bias: bool = False):
        super().__init__()
        self.gate_proj, self.up_proj = (nn.Linear(d_model, d_mlp, bias=bias) for _ in range(2))
        self.down_proj = nn.Linear(d_mlp, d_model, bias=bias)
        self.hook_pre, self.hook_pre_linear, self.hook_post = (HookPoint(d_mlp) for _ in range(3))
        self.hook_out = HookPoint(d_model)  # before a post norm

    def forward(self, x: Resid) -> Resid:
        pre = self.hook_pre(self.gate_proj(x))
        gate = gelu_(pre) if self._may_overwrite_pre() else gelu(pre, approximate="tanh")
        linear = self.hook_pre_linear(self.up_proj(x))
        post = gate * linear if torch.is_grad_enabled() else gate.mul_(linear)
        return self.hook_out(self.down_proj(self.hook_post(post)))

    def _may_overwrite_pre(self) -> bool:
        """Whether what gate_proj gave may be written over: no gradient, and nobody who reads it."""
        return not (torch.is_grad_enabled() or self.hook_pre.has_hooks() or is_watched(self.gate_proj))

    # TransformerLens' names, as views.
    W_gate = property(lambda self: self.gate_proj.weight.T)
    W_in = property(lambda self: self.up_proj.weight.T)
    W_out = property(lambda self: self.down_proj.weight.T)
    b_gate = property(lambda self: bias_of(self.gate_proj))
    b_in = property(lambda self: bias_of(self.up_proj))
    b_out = property(lambda self: bias_of(self.down_proj))


def bias_of(linear: nn.Linear) -> Tensor:
    """A linear map's bias, zeros where it has none."""
    return linear.weight.new_zeros(linear.out_features) if linear.bias is None else linear.bias


def gelu_(x: Tensor) -> Tensor:
    """GELU in its tanh form, written over x."""
    return torch.ops.aten.gelu_(x, approximate="tanh")


def soft_cap(x: Tensor, cap: float | None) -> Tensor:
    """cap * tanh(x / cap): squeezes into (-cap, cap); None leaves x as it is."""
    return x if cap is None else torch.tanh(x / cap) * cap


def soft_cap_(x: Tensor, cap: float | None) -> Tensor:
    """The same, written over x."""
    return x if cap is None else x.div_(cap).tanh_().mul_(cap)

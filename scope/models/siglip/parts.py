"""LayerNorm, attention that sees everything, a two-layer MLP, and the block of all three, as in both of SigLIP's towers."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import gelu, layer_norm, scaled_dot_product_attention, softmax

from scope.models.hooks import HookPoint, is_watched, with_gradient_of
from scope.models.parts.layers import gelu_
from scope.models.siglip.config import TowerConfig
from scope.shapes import Heads, Keys, Resid


class LayerNorm(nn.Module):
    """(x - mean) / scale * weight + bias, with scale = sqrt(variance + eps).

    `hook_normalized` sees the quotient before gain and bias, as in TransformerLens. Hooks that only read change nothing: then
    the number is that of torch's kernel to the last bit, whatever is looked at.
    """

    def __init__(self, d: int, eps: float):
        super().__init__()
        self.weight, self.bias, self.eps = nn.Parameter(torch.ones(d)), nn.Parameter(torch.zeros(d)), eps
        self.hook_scale, self.hook_normalized = HookPoint(1), HookPoint(d)

    def forward(self, x: Float[Tensor, "*lead d"]) -> Float[Tensor, "*lead d"]:
        out = layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)
        if not (self.hook_scale.has_hooks() or self.hook_normalized.has_hooks()):
            return out
        wide = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
        centred = wide - wide.mean(-1, keepdim=True)
        scale, scale_unchanged = self.hook_scale.run_hooks((centred.square().mean(-1, keepdim=True) + self.eps).sqrt())
        normalized, unchanged = self.hook_normalized.run_hooks(centred / scale)
        computed = (normalized * self.weight.to(wide.dtype) + self.bias.to(wide.dtype)).to(x.dtype)
        return with_gradient_of(out, computed) if unchanged and scale_unchanged else computed

    w = property(lambda self: self.weight)
    b = property(lambda self: self.bias)


class FullAttention(nn.Module):
    """Attention in which every position sees every other. Scale, softmax in float32.

    Where nobody looks at scores or pattern, torch's fused kernel is used, which rounds differently in the last bits.
    """

    def __init__(self, d_model: int, n_heads: int):
        super().__init__()
        self.n_heads, self.d_head = n_heads, d_model // n_heads
        self.scale = self.d_head**-0.5
        self.make_projections(d_model)
        self.hook_q, self.hook_k, self.hook_v = (HookPoint(d_model) for _ in range(3))
        self.hook_attn_scores, self.hook_pattern, self.hook_z = HookPoint(), HookPoint(), HookPoint(d_model)
        self.hook_result = HookPoint(n_heads * d_model, on_request=True)  # what each head writes

    def make_projections(self, d_model: int) -> None:
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(d_model, d_model) for _ in range(4))

    def forward(self, x: Resid) -> Resid:
        q, k, v = (self.heads(projection(x)) for projection in (self.q_proj, self.k_proj, self.v_proj))
        return self.output(self.hook_z(self.attend(self.hook_q(q), self.hook_k(k), self.hook_v(v))))

    def heads(self, x: Resid) -> Heads:
        return x.unflatten(-1, (self.n_heads, self.d_head))

    def attend(self, q: Heads, k: Keys, v: Keys) -> Heads:
        """What each head reads."""
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        if not (self.hook_attn_scores.has_hooks() or self.hook_pattern.has_hooks()):
            return scaled_dot_product_attention(q, k, v, scale=self.scale).transpose(1, 2)
        scores = self.hook_attn_scores(q @ k.transpose(2, 3) * self.scale)
        wide = torch.float32 if scores.dtype in (torch.bfloat16, torch.float16) else scores.dtype
        pattern = self.hook_pattern(softmax(scores, dim=-1, dtype=wide).to(q.dtype))
        return (pattern @ v).transpose(1, 2)

    def output(self, z: Heads) -> Resid:
        """What the heads write together; head by head only while `hook_result` has hooks."""
        out = self.out_proj(z.flatten(2))
        if not self.hook_result.has_hooks():
            return out
        results, unchanged = self.hook_result.run_hooks(torch.einsum("bphk,hkd->bphd", z, self.W_O))
        total = results.sum(2) + self.out_proj.bias
        return with_gradient_of(out, total) if unchanged else total

    W_O = property(lambda self: self.out_proj.weight.T.unflatten(0, (self.n_heads, self.d_head)))
    b_O = property(lambda self: self.out_proj.bias)


class MLP(nn.Module):
    """fc2(gelu_tanh(fc1 x))."""

    def __init__(self, d_model: int, d_mlp: int):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(d_model, d_mlp), nn.Linear(d_mlp, d_model)
        self.hook_pre, self.hook_post = HookPoint(d_mlp), HookPoint(d_mlp)

    def forward(self, x: Resid) -> Resid:
        pre = self.hook_pre(self.fc1(x))
        overwrite = not (torch.is_grad_enabled() or self.hook_pre.has_hooks() or is_watched(self.fc1))
        return self.fc2(self.hook_post(gelu_(pre) if overwrite else gelu(pre, approximate="tanh")))

    W_in = property(lambda self: self.fc1.weight.T)
    W_out = property(lambda self: self.fc2.weight.T)
    b_in = property(lambda self: self.fc1.bias)
    b_out = property(lambda self: self.fc2.bias)


class Block(nn.Module):
    """Attention, then an MLP, each behind a norm and added to the residual stream. Parts stand in the order in which they run.

    Source: SigLIP, arXiv:2303.15343; the block of ViT, arXiv:2010.11929.
    """

    def __init__(self, c: TowerConfig):
        super().__init__()
        self.hook_resid_pre = HookPoint(c.d_model)
        self.ln1, self.attn = LayerNorm(c.d_model, c.eps), FullAttention(c.d_model, c.n_heads)
        self.hook_attn_out, self.hook_resid_mid = HookPoint(c.d_model), HookPoint(c.d_model)
        self.ln2, self.mlp = LayerNorm(c.d_model, c.eps), MLP(c.d_model, c.d_mlp)
        self.hook_mlp_out, self.hook_resid_post = HookPoint(c.d_model), HookPoint(c.d_model)

    def forward(self, resid: Resid) -> Resid:
        resid_pre = self.hook_resid_pre(resid)
        resid_mid = self.hook_resid_mid(resid_pre + self.hook_attn_out(self.attn(self.ln1(resid_pre))))
        return self.hook_resid_post(resid_mid + self.hook_mlp_out(self.mlp(self.ln2(resid_mid))))

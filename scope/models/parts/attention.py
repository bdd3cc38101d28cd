"""Causal attention with grouped key-value heads; optional: a soft cap on the scores, norms of queries and keys, a window."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from scope.models.hooks import HookPoint, with_gradient_of
from scope.models.parts.cache import LayerCache
from scope.models.parts.layers import RMSNorm, bias_of, soft_cap, soft_cap_
from scope.models.parts.mask import CausalMask
from scope.models.parts.positions import Angles, rotate
from scope.shapes import Heads, Keys, Resid

PerHead = Float[Tensor, "head d_model d_head"]
Results = Float[Tensor, "batch pos head d_model"]
KvInputs = Float[Tensor, "batch pos kv d_model"]
HeadInputs = tuple[Results, KvInputs, KvInputs]
Grouped = Float[Tensor, "batch kv group pos d_head"]
PerKv = Float[Tensor, "batch kv key d_head"]


_SCORES_AT_ONCE = {"cpu": 1 << 19}  # where no hook reads them: as many as fit a CPU's cache
_SCORES_AT_ONCE_ELSEWHERE = 1 << 27


class Attention(nn.Module):
    """Scale, soft cap, mask, softmax in float32: the order matters, and the query scale comes from the config. With
    `qk_norm_eps`, queries and keys are normalised head by head before they are turned.

    Source: Gemma 2 report, section 2, arXiv:2408.00118; Gemma 3 report, section 2, arXiv:2503.19786; hooks are named as in
    TransformerLens.
    """

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        n_kv_heads: int,
        d_head: int,
        scale: float,
        cap: float | None,
        qk_norm_eps: float | None = None,
        qkv_bias: bool = False,
        out_bias: bool = False,
    ):
        super().__init__()
        self.n_heads, self.n_kv_heads, self.d_head, self.scale, self.cap = n_heads, n_kv_heads, d_head, scale, cap
        self.q_proj = nn.Linear(d_model, n_heads * d_head, bias=qkv_bias)
        self.k_proj, self.v_proj = (nn.Linear(d_model, n_kv_heads * d_head, bias=qkv_bias) for _ in range(2))
        self.o_proj = nn.Linear(n_heads * d_head, d_model, bias=out_bias)
        all_heads, all_kv = n_heads * d_head, n_kv_heads * d_head
        self.hook_q, self.hook_k, self.hook_v = HookPoint(all_heads), HookPoint(all_kv), HookPoint(all_kv)
        self.q_norm, self.k_norm = (
            nn.Identity() if qk_norm_eps is None else RMSNorm(d_head, qk_norm_eps, heads=n) for n in (n_heads, n_kv_heads)
        )
        self.hook_rot_q, self.hook_rot_k = HookPoint(all_heads), HookPoint(all_kv)
        self.hook_attn_scores, self.hook_pattern, self.hook_z = HookPoint(), HookPoint(), HookPoint(all_heads)
        self.hook_result = HookPoint(n_heads * d_model, on_request=True)  # what each head writes
        self.hook_out = HookPoint(d_model)  # their sum, before a post norm

    def forward(
        self, x: Resid | HeadInputs, rotary: tuple[Angles, Angles], mask: CausalMask, cache: LayerCache | None = None
    ) -> Resid:
        """`x` is what all heads read, or, where hooks gave heads inputs of their own, those of queries, keys and values."""
        x_q, x_k, x_v = x if isinstance(x, tuple) else (x, x, x)
        q, k = self.hook_q(self.heads(self.q_proj, x_q)), self.hook_k(self.heads(self.k_proj, x_k))
        v = self.hook_v(self.heads(self.v_proj, x_v))
        q, k = self.hook_rot_q(rotate(self.q_norm(q), *rotary)), self.hook_rot_k(rotate(self.k_norm(k), *rotary))
        if cache is not None:
            k, v = cache.append(k, v)
        hooked = self.hook_attn_scores.has_hooks() or self.hook_pattern.has_hooks()
        needs_grad = torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad)
        z = self.hook_z(self.attend(q, k, v, mask) if hooked or needs_grad else self.attend_in_pieces(q, k, v, mask))
        return self.hook_out(self.output(z))

    def attend(self, q: Heads, k: Keys, v: Keys, mask: CausalMask) -> Heads:
        """What each head reads, by way of all its scores."""
        batch, n, n_keys = *q.shape[:2], k.shape[1]
        grouped, k, v = self.grouped(q).flatten(2, 3), self.by_head(k), self.by_head(v)
        scores = soft_cap((grouped @ k.transpose(2, 3)).view(batch, self.n_heads, n, n_keys) * self.scale, self.cap)
        hidden = ~mask.whole(n_keys)[:, None]
        scores = self.hook_attn_scores(scores.masked_fill(hidden, -torch.inf))
        # A query of padding sees nothing, and a softmax of -inf alone is NaN, as are its gradients.
        nothing = torch.isneginf(scores).all(-1, keepdim=True)
        scores = scores.masked_fill(nothing, 0.0)
        wide = torch.float32 if scores.dtype in (torch.bfloat16, torch.float16) else scores.dtype
        pattern = torch.softmax(scores, dim=-1, dtype=wide).to(q.dtype)
        if self.hook_attn_scores.has_hooks():  # which hid every key from a query: it reads nothing, as in TransformerLens
            pattern = pattern.masked_fill(nothing & ~hidden.all(-1, keepdim=True), 0.0)
        pattern = self.hook_pattern(pattern)
        z = pattern.reshape(*grouped.shape[:3], n_keys) @ v
        return z.view(batch, self.n_heads, n, self.d_head).transpose(1, 2)

    def attend_in_pieces(self, q: Heads, k: Keys, v: Keys, mask: CausalMask) -> Heads:
        """The same, some queries at a time and only with the keys that these see: scores that no hook reads are never all in
        memory, and those that the mask would hide are not computed."""
        batch, n_keys = len(q), k.shape[1]
        k, v = self.by_head(k), self.by_head(v)
        if q.shape[1] == 1 and mask.real is None and n_keys <= (mask.window or n_keys):
            return self.attend_to_all(q, k, v)
        grouped, z = self.grouped(q), torch.empty_like(q, memory_format=torch.contiguous_format)
        numbers = _SCORES_AT_ONCE.get(q.device.type, _SCORES_AT_ONCE_ELSEWHERE)
        for piece in mask.pieces(n_keys, numbers, batch * self.n_heads):
            some = grouped[:, :, :, piece.queries]
            scores = some.flatten(2, 3) @ k[:, :, piece.keys].transpose(2, 3)
            soft_cap_(scores.mul_(self.scale), self.cap)
            split = scores.view(*some.shape[:4], -1)
            for columns, hidden in piece.hidden:
                split[..., columns].masked_fill_(hidden[:, None, None], torch.finfo(scores.dtype).min)
            wide = torch.float32 if scores.dtype in (torch.bfloat16, torch.float16) else scores.dtype
            pattern = torch.softmax(scores, dim=-1, dtype=wide).to(q.dtype)
            part = pattern @ v[:, :, piece.keys]
            z[:, piece.queries] = part.view(batch, self.n_heads, -1, self.d_head).transpose(1, 2)
        return z

    def attend_to_all(self, q: Heads, k: PerKv, v: PerKv) -> Heads:
        """The same for one new token, which sees every key: nothing is hidden, nothing to cut."""
        scores = q.reshape(len(q), self.n_kv_heads, -1, self.d_head) @ k.transpose(2, 3)
        soft_cap_(scores.mul_(self.scale), self.cap)
        wide = torch.float32 if scores.dtype in (torch.bfloat16, torch.float16) else scores.dtype
        pattern = torch.softmax(scores, dim=-1, dtype=wide).to(q.dtype)
        return (pattern @ v).reshape(q.shape)

    def grouped(self, q: Heads) -> Grouped:
        """Query head h reads key-value head h // group: heads that share one become more queries of it."""
        return q.transpose(1, 2).unflatten(1, (self.n_kv_heads, self.n_heads // self.n_kv_heads))

    def by_head(self, k: Keys) -> PerKv:
        """[batch kv key d_head], each head contiguous: products of strided matrices are slower and round otherwise."""
        k = k.transpose(1, 2)
        return k if k.stride()[-2:] == (self.d_head, 1) else k.contiguous()

    def heads(self, projection: nn.Linear, x: Resid | Results) -> Heads:
        """[batch pos head d_head]; each head reads its own x where there is one per head."""
        if x.dim() == 4:
            return torch.einsum("bphd,hdk->bphk", x, self._per_head(projection)) + bias_of(projection).view(-1, self.d_head)
        return projection(x).unflatten(-1, (-1, self.d_head))

    def output(self, z: Heads) -> Resid:
        """What the heads write together; head by head only while `hook_result` has hooks."""
        out = self.o_proj(z.reshape(*z.shape[:2], -1))
        if not self.hook_result.has_hooks():
            return out
        results, unchanged = self.hook_result.run_hooks(torch.einsum("bphk,hkd->bphd", z, self.W_O))
        total = results.sum(2) if self.o_proj.bias is None else results.sum(2) + self.o_proj.bias
        return with_gradient_of(out, total) if unchanged else total

    # TransformerLens' names and layouts, as views; W_K and W_V are repeated so that head h finds its own at h.
    W_Q = property(lambda self: self._per_head(self.q_proj))
    W_K = property(lambda self: self._per_head(self.k_proj).repeat_interleave(self.n_heads // self.n_kv_heads, dim=0))
    W_V = property(lambda self: self._per_head(self.v_proj).repeat_interleave(self.n_heads // self.n_kv_heads, dim=0))
    W_O = property(lambda self: self.o_proj.weight.T.unflatten(0, (self.n_heads, self.d_head)))
    b_Q = property(lambda self: bias_of(self.q_proj).view(self.n_heads, self.d_head))
    b_K = property(lambda self: self._repeated_bias(self.k_proj))
    b_V = property(lambda self: self._repeated_bias(self.v_proj))
    b_O = property(lambda self: bias_of(self.o_proj))

    def _repeated_bias(self, projection: nn.Linear) -> Float[Tensor, "head d_head"]:
        return bias_of(projection).view(self.n_kv_heads, -1).repeat_interleave(self.n_heads // self.n_kv_heads, dim=0)

    def _per_head(self, projection: nn.Linear) -> PerHead:
        """[head d_model d_head] from Hugging Face's [head * d_head, d_model]."""
        return projection.weight.unflatten(0, (-1, self.d_head)).transpose(1, 2)

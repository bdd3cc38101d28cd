"""Gemma 1, 2 and 3: attention, then a gated MLP; from Gemma 2 on each between two norms, with alternating windows."""

import torch
from torch import nn

from scope.errors import ConfigError
from scope.models.gemma.config import GemmaConfig
from scope.models.gemma.weights import tensor_names
from scope.models.hooks import HookPoint
from scope.models.parts.attention import Attention, HeadInputs
from scope.models.parts.cache import LayerCache
from scope.models.parts.decoder import Decoder
from scope.models.parts.layers import GatedMLP, RMSNorm
from scope.models.parts.positions import RunPositions
from scope.models.transformer_lens.model_api import TransformerLensApi
from scope.shapes import Resid

BLOCK_PARTS = (
    *("hook_resid_pre", "hook_attn_in", "hook_q_input", "hook_k_input", "hook_v_input", "ln1", "attn", "ln1_post"),
    *("hook_attn_out", "hook_resid_mid", "hook_mlp_in", "ln2", "mlp", "ln2_post", "hook_mlp_out", "hook_resid_post"),
)
"""The parts of a block in the order in which they run."""


class Block(nn.Module):
    """Attention, then a gated MLP, each behind a norm and added to the residual stream; from Gemma 2 on what is added passes
    a second norm.

    Source: Gemma report, section 2, arXiv:2403.08295; Gemma 2 report, section 2, arXiv:2408.00118; Gemma 3 report, section 2,
    arXiv:2503.19786.
    """

    def __init__(self, config: GemmaConfig, layer: int):
        super().__init__()
        c, d = config, config.d_model
        self.window, self.rope = c.local_window(layer), c.rope(layer)
        self.attn = Attention(
            d, c.n_heads, c.n_kv_heads, c.d_head, c.query_scalar**-0.5, c.attn_cap, c.eps if c.use_qk_norm else None
        )
        self.mlp = GatedMLP(d, c.d_mlp)
        self.ln1, self.ln1_post, self.ln2, self.ln2_post = (
            RMSNorm(d, c.eps) if c.post_norms or not post else nn.Identity() for post in (False, True, False, True)
        )
        self.hook_resid_pre, self.hook_resid_mid, self.hook_resid_post = HookPoint(d), HookPoint(d), HookPoint(d)
        self.hook_attn_out, self.hook_mlp_out = HookPoint(d), HookPoint(d)  # after the post norm: what joins the stream
        # Copies of the stream, so that what one head or the MLP reads can be changed alone.
        self.hook_attn_in, self.hook_q_input = (HookPoint(c.n_heads * d, on_request=True) for _ in range(2))
        self.hook_k_input, self.hook_v_input = (HookPoint(c.n_kv_heads * d, on_request=True) for _ in range(2))
        self.hook_mlp_in = HookPoint(d, on_request=True)

    def forward(self, resid: Resid, at: RunPositions, cache: LayerCache | None = None) -> Resid:
        rotary, mask = at.rotary(self.attn.d_head, *self.rope), at.causal_mask(self.window)
        resid_pre = self.hook_resid_pre(resid)
        attn_out = self.hook_attn_out(self.ln1_post(self.attn(self.attn_input(resid_pre), rotary, mask, cache)))
        resid_mid = self.hook_resid_mid(resid_pre + attn_out)
        mlp_in = self.hook_mlp_in(resid_mid.clone()) if self.hook_mlp_in.has_hooks() else resid_mid
        mlp_out = self.hook_mlp_out(self.ln2_post(self.mlp(self.ln2(mlp_in))))
        return self.hook_resid_post(resid_mid + mlp_out)

    def new_cache(self) -> LayerCache:
        return LayerCache(self.window)

    def attn_input(self, resid: Resid) -> Resid | HeadInputs:
        """The stream, normalised. Where hooks change what single heads read, or want its gradient, each head has its own,
        which is normalised on its own too; those that only read it change nothing."""
        points = (self.hook_attn_in, self.hook_q_input, self.hook_k_input, self.hook_v_input)
        if not any(point.has_hooks() for point in points):
            return self.ln1(resid)
        heads, kv = self.attn.n_heads, self.attn.n_kv_heads
        every, unchanged = self.hook_attn_in.run_hooks(resid.unsqueeze(2).repeat(1, 1, heads, 1))
        grouped = every.unflatten(2, (kv, -1))
        if not unchanged and not torch.equal(grouped, grouped[:, :, :, :1].expand_as(grouped)):
            raise ConfigError(
                f"A hook on {self.hook_attn_in.name} gave query heads that share a key-value head different inputs, so the "
                "keys have none.\n  Change hook_q_input, hook_k_input and hook_v_input instead."
            )
        shared = grouped.mean(3) if every.requires_grad else grouped[:, :, :, 0]
        parts = []
        for point, x in zip(points[1:], (every, shared, shared), strict=True):
            part, unchanged_too = point.run_hooks(x.clone())  # its own: writing into one, or its gradient, is not the others'
            parts.append(part)
            unchanged = unchanged and unchanged_too
        if unchanged and not every.requires_grad:
            return self.ln1(resid)
        return tuple(self.ln1(part) for part in parts)


class Gemma(TransformerLensApi, Decoder):
    """A Gemma language model. `model(tokens)` gives logits [batch pos d_vocab]; sites are named as in TransformerLens."""

    block, block_parts = Block, BLOCK_PARTS
    config_from_hf, tensor_names = GemmaConfig.from_hf, staticmethod(tensor_names)

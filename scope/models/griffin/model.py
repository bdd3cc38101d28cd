"""RecurrentGemma and other Griffins: recurrent blocks and local attention in turn, each followed by a gated MLP."""

import torch
from torch import nn

from scope.models.griffin.config import GriffinConfig
from scope.models.griffin.recurrent import RecurrentBlock
from scope.models.griffin.state import RecurrentState
from scope.models.griffin.weights import tensor_names
from scope.models.hooks import HookPoint
from scope.models.parts.attention import Attention
from scope.models.parts.cache import LayerCache
from scope.models.parts.decoder import Decoder
from scope.models.parts.layers import GatedMLP, RMSNorm
from scope.models.parts.positions import RunPositions
from scope.models.parts.sublayer_inputs import SublayerInputs
from scope.models.transformer_lens.model_api import TransformerLensApi
from scope.shapes import Resid

BLOCK_PARTS = (
    *("hook_resid_pre", "hook_attn_in", "hook_q_input", "hook_k_input", "hook_v_input", "ln1", "rec", "attn", "hook_attn_out"),
    *("hook_resid_mid", "hook_mlp_in", "ln2", "mlp", "hook_mlp_out", "hook_resid_post"),
)
"""The parts of a block in the order in which they run; a block has `rec` or `attn`."""


class Block(SublayerInputs):
    """A recurrent block or local attention, then a gated MLP, each behind a norm and added to the residual stream.

    Source: Griffin, section 2, arXiv:2402.19427.
    """

    def __init__(self, config: GriffinConfig, layer: int):
        super().__init__()
        c, d = config, config.d_model
        self.recurrent, self.window, self.rope_theta = c.layer_types[layer] == "recurrent", c.local_window(layer), c.rope_theta
        self.rotary_dim = c.rotary_dim
        if self.recurrent:
            self.rec = RecurrentBlock(d, c.lru_width, c.n_heads, c.conv_width)
        else:
            scale, bias = c.d_head**-0.5, c.attention_bias
            self.attn = Attention(d, c.n_heads, c.n_kv_heads, c.d_head, scale, None, qkv_bias=bias, out_bias=True)
            self.hook_attn_out = HookPoint(d)
        self.mlp = GatedMLP(d, c.d_mlp, bias=True)
        self.ln1, self.ln2 = RMSNorm(d, c.eps), RMSNorm(d, c.eps)
        self.hook_resid_pre, self.hook_resid_mid, self.hook_resid_post = HookPoint(d), HookPoint(d), HookPoint(d)
        self.hook_mlp_out = HookPoint(d)
        self.add_input_points(0 if self.recurrent else c.n_heads, c.n_kv_heads, d)

    def forward(self, resid: Resid, at: RunPositions, cache: LayerCache | RecurrentState | None = None) -> Resid:
        resid_pre = self.hook_resid_pre(resid)
        mixed = self.rec(self.ln1(resid_pre), at, cache) if self.recurrent else self.attend(resid_pre, at, cache)
        resid_mid = self.hook_resid_mid(resid_pre + mixed)
        mlp_out = self.hook_mlp_out(self.mlp(self.ln2(self.mlp_input(resid_mid))))
        return self.hook_resid_post(resid_mid + mlp_out)

    def attend(self, resid: Resid, at: RunPositions, cache: LayerCache | None) -> Resid:
        rotary, mask = at.rotary(self.rotary_dim, self.rope_theta), at.causal_mask(self.window)
        return self.hook_attn_out(self.attn(self.attn_input(resid), rotary, mask, cache))

    def mixer_inputs(self) -> tuple[nn.Linear, ...]:
        """The maps that read what `ln1` gives."""
        if self.recurrent:
            return self.rec.linear_x, self.rec.linear_y
        return self.attn.q_proj, self.attn.k_proj, self.attn.v_proj

    def new_cache(self) -> LayerCache | RecurrentState:
        return RecurrentState() if self.recurrent else LayerCache(self.window)


class Griffin(TransformerLensApi, Decoder):
    """A RecurrentGemma. `model(tokens)` gives logits [batch pos d_vocab]; recurrent blocks have `blocks.N.rec.hook_...`, the
    other sites are named as in TransformerLens."""

    block, block_parts = Block, BLOCK_PARTS
    config_from_hf, tensor_names = GriffinConfig.from_hf, staticmethod(tensor_names)
    embedding_scale_dtype = torch.bfloat16

    def extra_repr(self) -> str:
        """The first line of `print(model)`."""
        return f"window_convention={self.cfg.window_convention!r}, which sees {self.cfg.effective_window} keys"

"""Gemma 1, 2 and 3: attention, then a gated MLP; from Gemma 2 on each between two norms, with alternating windows."""

from torch import nn

from scope.models.gemma.config import GemmaConfig
from scope.models.gemma.weights import tensor_names
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
    *("hook_resid_pre", "hook_attn_in", "hook_q_input", "hook_k_input", "hook_v_input", "ln1", "attn", "ln1_post"),
    *("hook_attn_out", "hook_resid_mid", "hook_mlp_in", "ln2", "mlp", "ln2_post", "hook_mlp_out", "hook_resid_post"),
)
"""The parts of a block in the order in which they run."""


class Block(SublayerInputs):
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
        self.add_input_points(c.n_heads, c.n_kv_heads, d)

    def forward(self, resid: Resid, at: RunPositions, cache: LayerCache | None = None) -> Resid:
        rotary, mask = at.rotary(self.attn.d_head, *self.rope), at.causal_mask(self.window)
        resid_pre = self.hook_resid_pre(resid)
        attn_out = self.hook_attn_out(self.ln1_post(self.attn(self.attn_input(resid_pre), rotary, mask, cache)))
        resid_mid = self.hook_resid_mid(resid_pre + attn_out)
        mlp_out = self.hook_mlp_out(self.ln2_post(self.mlp(self.ln2(self.mlp_input(resid_mid)))))
        return self.hook_resid_post(resid_mid + mlp_out)

    def mixer_inputs(self) -> tuple[nn.Linear, ...]:
        """The maps that read what `ln1` gives."""
        return self.attn.q_proj, self.attn.k_proj, self.attn.v_proj

    def new_cache(self) -> LayerCache:
        return LayerCache(self.window)


class Gemma(TransformerLensApi, Decoder):
    """A Gemma language model. `model(tokens)` gives logits [batch pos d_vocab]; sites are named as in TransformerLens."""

    block, block_parts = Block, BLOCK_PARTS
    config_from_hf, tensor_names = GemmaConfig.from_hf, staticmethod(tensor_names)

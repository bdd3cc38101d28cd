"""Gemma 2: alternating local and global attention, four norms a block, soft caps, tied embeddings."""

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from scope.errors import ConfigError, TokensError
from scope.models.gemma.config import GemmaConfig
from scope.models.hooks import HookedModule, HookPoint
from scope.models.parts.attention import Attention, Visible, visible
from scope.models.parts.cache import LayerCache, ModelCache
from scope.models.parts.layers import GatedMLP, RMSNorm, soft_cap
from scope.models.parts.rope import Angles, rotary_tables
from scope.shapes import Logits, Mask, Positions, Resid, Tokens

FLOW = (
    *("hook_resid_pre", "ln1", "attn", "ln1_post", "hook_attn_out"),
    *("hook_resid_mid", "ln2", "mlp", "ln2_post", "hook_mlp_out", "hook_resid_post"),
)
"""The parts of a block in the order in which they run."""


class Block(nn.Module):
    """Attention, then a gated MLP, each between two norms, each added to the residual stream.

    Source: Gemma 2 report, section 2, arXiv:2408.00118.
    """

    def __init__(self, config: GemmaConfig, layer: int):
        super().__init__()
        c = config
        self.window = c.local_window(layer)
        self.attn = Attention(c.d_model, c.n_heads, c.n_kv_heads, c.d_head, c.query_scalar**-0.5, c.attn_cap)
        self.mlp = GatedMLP(c.d_model, c.d_mlp)
        self.ln1, self.ln1_post, self.ln2, self.ln2_post = (RMSNorm(c.d_model, c.eps) for _ in range(4))
        self.hook_resid_pre, self.hook_resid_mid, self.hook_resid_post = HookPoint(), HookPoint(), HookPoint()
        self.hook_attn_out, self.hook_mlp_out = HookPoint(), HookPoint()  # after the post norm: what joins the stream

    def forward(self, resid: Resid, rotary: tuple[Angles, Angles], mask: Visible, cache: LayerCache | None = None) -> Resid:
        resid_pre = self.hook_resid_pre(resid)
        attn_out = self.hook_attn_out(self.ln1_post(self.attn(self.ln1(resid_pre), rotary, mask, cache)))
        resid_mid = self.hook_resid_mid(resid_pre + attn_out)
        mlp_out = self.hook_mlp_out(self.ln2_post(self.mlp(self.ln2(resid_mid))))
        return self.hook_resid_post(resid_mid + mlp_out)


class Gemma(HookedModule):
    """A Gemma 2 language model. `model(tokens)` gives logits [batch pos d_vocab]; sites are named as in TransformerLens."""

    def __init__(self, config: GemmaConfig, tokenizer=None):
        super().__init__()
        self.cfg, self.tokenizer = config, tokenizer
        self.provenance: dict = {}
        self.embed = nn.Embedding(config.d_vocab, config.d_model)
        self.hook_embed = HookPoint()
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.n_layers))
        self.ln_final = RMSNorm(config.d_model, config.eps)
        self.hook_unembed_in, self.hook_unembed_out = HookPoint("unembed.hook_in"), HookPoint("unembed.hook_out")
        self.setup_hooks(FLOW)

    device = property(lambda self: self.embed.weight.device)
    dtype = property(lambda self: self.embed.weight.dtype)
    W_E = property(lambda self: self.embed.weight)  # unscaled: the stream begins at W_E * sqrt(d_model)
    W_U = property(lambda self: self.embed.weight.T)
    W_Q = property(lambda self: torch.stack([block.attn.W_Q for block in self.blocks]))  # [layer head d_model d_head]
    W_K = property(lambda self: torch.stack([block.attn.W_K for block in self.blocks]))
    W_V = property(lambda self: torch.stack([block.attn.W_V for block in self.blocks]))
    W_O = property(lambda self: torch.stack([block.attn.W_O for block in self.blocks]))  # [layer head d_head d_model]
    W_gate = property(lambda self: torch.stack([block.mlp.W_gate for block in self.blocks]))  # [layer d_model d_mlp]
    W_in = property(lambda self: torch.stack([block.mlp.W_in for block in self.blocks]))
    W_out = property(lambda self: torch.stack([block.mlp.W_out for block in self.blocks]))  # [layer d_mlp d_model]

    def forward(
        self,
        tokens: Tokens | str | list[str],
        return_type: str | None = "logits",
        stop_at_layer: int | None = None,
        attention_mask: Mask | None = None,
        cache: ModelCache | None = None,
    ) -> Tensor | tuple[Tensor, Tensor] | None:
        """Logits, the mean next-token loss ("loss"), "both", or nothing; with `stop_at_layer`, the stream before that block.

        Text is tokenised with <bos>. Positions count real tokens only, so padding on either side changes nothing. Given a
        cache, `tokens` continue it. A negative `stop_at_layer` counts from the last block.

        Raises:
            TokensError: no tokens, ids outside the vocabulary, or more tokens than the context holds.
            ConfigError: an unknown return_type, or a layer that this model does not have.
        """
        if return_type not in ("logits", "loss", "both", None):
            raise ConfigError(f'return_type is {return_type!r}; it can be "logits", "loss", "both" or None.')
        if not isinstance(tokens, Tensor):
            tokens, attention_mask = self.to_tokens(tokens), self.mask_of(tokens)
        self.check(tokens, cache)
        real = torch.ones_like(tokens, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
        seen_before = cache.real.sum(1, keepdim=True) if cache is not None and cache.n_tokens else 0
        positions = (real.long().cumsum(1) - 1).clamp(min=0) + seen_before
        if cache is not None:
            cache.extend(positions, real)
        if not torch.compiler.is_compiling():
            self.run.tokens, self.run.positions, self.run.real = tokens, positions, real
        resid = self.run_blocks(self.embed_tokens(tokens), positions, real, cache, stop_at_layer)
        if stop_at_layer is not None:
            return resid
        if return_type is None:  # only for those who listen there
            if self.hook_unembed_out.has_hooks():
                self.unembed(resid)
            else:
                self.hook_unembed_in(self.ln_final(resid))
            return None
        logits = self.unembed(resid)
        if return_type == "logits":
            return logits
        real_next = real[:, 1:] & real[:, :-1]
        loss = cross_entropy(logits[:, :-1][real_next].float(), tokens[:, 1:][real_next])
        return loss if return_type == "loss" else (logits, loss)

    def embed_tokens(self, tokens: Tokens) -> Resid:
        """The embedding times sqrt(d_model), a factor that takes the dtype of the weights."""
        scale = torch.tensor(math.sqrt(self.cfg.d_model), dtype=self.dtype, device=self.device)
        return self.hook_embed(self.embed(tokens) * scale)

    def run_blocks(
        self,
        resid: Resid,
        positions: Positions,
        real: Mask,
        cache: ModelCache | None = None,
        stop_at_layer: int | None = None,
        start_at_layer: int = 0,
    ) -> Resid:
        """The stream before block `stop_at_layer` (default: after the last), from the stream before `start_at_layer`."""
        rotary = rotary_tables(positions, self.cfg.d_head, self.cfg.rope_theta, resid.dtype)
        key_pos, key_real = (positions, real) if cache is None else (cache.positions, cache.real)
        masks = {w: visible(positions, key_pos, key_real, w) for w in {None, self.cfg.window}}
        n = len(self.blocks)
        stop = n if stop_at_layer is None else stop_at_layer + n if stop_at_layer < 0 else stop_at_layer
        if not 0 <= stop <= n:
            raise ConfigError(f"stop_at_layer is {stop_at_layer}; this model has blocks 0 to {n - 1}.")
        for layer in range(start_at_layer, stop):
            block = self.blocks[layer]
            resid = block(resid, rotary, masks[block.window], cache.layers[layer] if cache else None)
        return resid

    def unembed(self, resid: Resid) -> Logits:
        """Final norm, tied unembedding, soft cap."""
        scores = self.hook_unembed_in(self.ln_final(resid)) @ self.embed.weight.T
        return soft_cap(self.hook_unembed_out(scores), self.cfg.final_cap)

    def new_cache(self) -> ModelCache:
        return ModelCache([LayerCache(block.window) for block in self.blocks])

    def check(self, tokens: Tokens, cache: ModelCache | None = None) -> None:
        if tokens.numel() == 0:
            raise TokensError("There are no tokens to run on. Give at least one.")
        length = tokens.shape[1] + (cache.n_tokens if cache else 0)
        if length > self.cfg.n_ctx:
            raise TokensError(f"{length} tokens do not fit: this model's context holds {self.cfg.n_ctx}. Cut the text.")
        if not torch.compiler.is_compiling():
            low, high = torch.aminmax(tokens)
            if low < 0 or high >= self.cfg.d_vocab:
                raise TokensError(
                    f"Token ids run from {low} to {high}; this model's vocabulary ends at {self.cfg.d_vocab - 1}."
                )

    def to_tokens(self, text: str | list[str], prepend_bos: bool = True) -> Tokens:
        """Ids [batch pos]; texts of unequal length are padded on the right.

        Raises:
            TokensError: the model was made without a tokenizer.
        """
        rows = [self.words.encode(t, bos=prepend_bos) for t in ([text] if isinstance(text, str) else text)]
        longest = max(map(len, rows))
        padded = [row + [self.cfg.pad] * (longest - len(row)) for row in rows]
        return torch.tensor(padded, dtype=torch.long, device=self.device)

    def mask_of(self, texts: str | list[str], prepend_bos: bool = True) -> Mask:
        """Where `to_tokens` of the same texts holds text rather than padding."""
        texts = [texts] if isinstance(texts, str) else texts
        lengths = torch.tensor([len(self.words.encode(text, bos=prepend_bos)) for text in texts], device=self.device)
        return torch.arange(int(lengths.max()), device=self.device)[None] < lengths[:, None]

    def to_single_token(self, text: str) -> int:
        """The id of a text that is one token.

        Raises:
            TokensError: it is several, or none.
        """
        ids = self.words.encode(text, bos=False)
        if len(ids) != 1:
            raise TokensError(f"{text!r} is {len(ids)} tokens, not one: {self.words.pieces(ids)}. Mind the leading space.")
        return ids[0]

    def to_string(self, tokens) -> str | list[str]:
        tokens = torch.as_tensor(tokens)
        if tokens.dim() == 2:
            return [self.words.decode(row, skip_special=False) for row in tokens]
        return self.words.decode(tokens.reshape(-1), skip_special=False)

    def to_str_tokens(self, text, prepend_bos: bool = True) -> list[str]:
        ids = self.words.encode(text, bos=prepend_bos) if isinstance(text, str) else torch.as_tensor(text).reshape(-1).tolist()
        return self.words.pieces(ids)

    @property
    def words(self):
        if self.tokenizer is None:
            raise TokensError("This model has no tokenizer; give it token ids, or load it with load_model.")
        return self.tokenizer

    def sites(self) -> dict[str, int]:
        """Every site that can be recorded, with its width (heads concatenated), in the order in which they are passed."""
        c = self.cfg
        heads, kv = c.n_heads * c.d_head, c.n_kv_heads * c.d_head
        widths = {"hook_q": heads, "hook_k": kv, "hook_v": kv, "hook_z": heads, "hook_rot_q": heads, "hook_rot_k": kv}
        widths |= {"hook_pre": c.d_mlp, "hook_pre_linear": c.d_mlp, "hook_post": c.d_mlp, "hook_scale": 1}
        widths |= {"hook_out": c.d_vocab}
        skipped = ("hook_attn_scores", "hook_pattern")  # as wide as the text is long
        names = {name: name.rsplit(".", 1)[-1] for name in self.hook_dict}
        return {name: widths.get(last, c.d_model) for name, last in names.items() if last not in skipped}

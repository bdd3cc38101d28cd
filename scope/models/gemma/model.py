"""Gemma 2: alternating local and global attention, four norms a block, soft caps, tied embeddings."""

from dataclasses import replace

import torch
from torch import Tensor, nn

from scope.errors import ConfigError, TokensError
from scope.models.direct_logits import DirectLogits
from scope.models.gemma.config import GemmaConfig
from scope.models.hook_point import HookPoint
from scope.models.parts.attention import Attention, Inputs
from scope.models.parts.cache import LayerCache, ModelCache
from scope.models.parts.layers import GatedMLP, RMSNorm, soft_cap, soft_cap_
from scope.models.parts.mask import Sight
from scope.models.parts.rope import Angles, rotary_tables
from scope.models.text.generate import Generates
from scope.models.text.prompts import Side, TakesText
from scope.models.transformer_lens.model_api import Habits, next_token_loss
from scope.models.transformer_lens.weight_names import Embedding, NamedWeights, Unembed
from scope.shapes import Logits, Mask, Positions, Resid, Tokens

FLOW = (
    *("hook_resid_pre", "hook_attn_in", "hook_q_input", "hook_k_input", "hook_v_input", "ln1", "attn", "ln1_post"),
    *("hook_attn_out", "hook_resid_mid", "hook_mlp_in", "ln2", "mlp", "ln2_post", "hook_mlp_out", "hook_resid_post"),
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
        self.hook_attn_in, self.hook_q_input, self.hook_k_input, self.hook_v_input, self.hook_mlp_in = (
            HookPoint(on_request=True) for _ in range(5)
        )  # copies of the stream, so that what one head or the MLP reads can be changed alone

    def forward(self, resid: Resid, rotary: tuple[Angles, Angles], sight: Sight, cache: LayerCache | None = None) -> Resid:
        resid_pre = self.hook_resid_pre(resid)
        attn_out = self.hook_attn_out(self.ln1_post(self.attn(self.attn_input(resid_pre), rotary, sight, cache)))
        resid_mid = self.hook_resid_mid(resid_pre + attn_out)
        mlp_in = self.hook_mlp_in(resid_mid.clone()) if self.hook_mlp_in.has_hooks() else resid_mid
        mlp_out = self.hook_mlp_out(self.ln2_post(self.mlp(self.ln2(mlp_in))))
        return self.hook_resid_post(resid_mid + mlp_out)

    def attn_input(self, resid: Resid) -> Resid | Inputs:
        """The stream, normalised. Where hooks change what single heads read, or want its gradient, each head has its own,
        which is normalised on its own too; those that only look change nothing."""
        points = (self.hook_attn_in, self.hook_q_input, self.hook_k_input, self.hook_v_input)
        if not any(point.has_hooks() for point in points):
            return self.ln1(resid)
        heads, kv = self.attn.n_heads, self.attn.n_kv_heads
        every, looked = self.hook_attn_in.looked(resid.unsqueeze(2).repeat(1, 1, heads, 1))
        grouped = every.unflatten(2, (kv, -1))
        if not looked and not torch.equal(grouped, grouped[:, :, :, :1].expand_as(grouped)):
            raise ConfigError(
                f"A hook on {self.hook_attn_in.name} gave query heads that share a key-value head different inputs, so the "
                "keys have none.\n  Change hook_q_input, hook_k_input and hook_v_input instead."
            )
        shared = grouped.mean(3) if every.requires_grad else grouped[:, :, :, 0]
        parts = []
        for point, x in zip(points[1:], (every, shared, shared), strict=True):
            seen, only_looked = point.looked(x.clone())  # its own: writing into one, or its gradient, is not the others'
            parts.append(seen)
            looked = looked and only_looked
        if looked and not every.requires_grad:
            return self.ln1(resid)
        return tuple(self.ln1(part) for part in parts)


class Gemma(NamedWeights, Habits, DirectLogits, TakesText, Generates):
    """A Gemma 2 language model. `model(tokens)` gives logits [batch pos d_vocab]; sites are named as in TransformerLens."""

    def __init__(self, config: GemmaConfig, tokenizer=None):
        super().__init__()
        self.cfg, self.tokenizer = replace(config), tokenizer
        self.provenance: dict = {}
        self.embed = Embedding(config.d_vocab, config.d_model)
        self.hook_embed = HookPoint()
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.n_layers))
        self.ln_final = RMSNorm(config.d_model, config.eps)
        self.unembed = Unembed(self.embed)
        self.setup_hooks(FLOW)
        self.cfg.note_place(self.dtype, self.device)

    device = property(lambda self: self.embed.weight.device)
    dtype = property(lambda self: self.embed.weight.dtype)
    streamed = property(lambda self: False)

    def forward(
        self,
        tokens: Tensor | str | list[str],
        return_type: str | None = "logits",
        stop_at_layer: int | None = None,
        attention_mask: Tensor | None = None,
        cache: ModelCache | None = None,
        *,
        start_at_layer: int | None = None,
        loss_per_token: bool = False,
        prepend_bos: bool | None = True,
        padding_side: Side | None = "right",
    ) -> Tensor | tuple[Tensor, Tensor] | None:
        """Logits, the mean next-token loss ("loss"), "both", or nothing; with `stop_at_layer`, the stream before that block.

        Text is tokenised with <bos>. Positions count real tokens only, so padding on either side changes nothing. Given a
        cache, `tokens` continue it. A negative `stop_at_layer` counts from the last block. With `start_at_layer`, what comes
        first is not tokens but the stream [batch pos d_model] before that block. `loss_per_token` gives the loss of each
        next token [batch pos-1], in nats, 0 where it or the token before it is padding.

        Raises:
            TokensError: no tokens, ids outside the vocabulary, or more tokens than the context holds.
            ConfigError: an unknown return_type, a layer that this model does not have, or a loss without tokens.
        """
        if return_type not in ("logits", "loss", "both", None):
            raise ConfigError(f'return_type is {return_type!r}; it can be "logits", "loss", "both" or None.')
        if not isinstance(tokens, Tensor):
            attention_mask = self.mask_of(tokens, prepend_bos, padding_side)
            tokens = self.to_tokens(tokens, prepend_bos, padding_side)
        if tokens.dim() == 1:
            tokens = tokens[None]
        if start_at_layer is not None:
            if return_type in ("loss", "both"):
                raise ConfigError("A run that starts at a stream has no tokens to take a loss of. Ask for logits.")
            if not tokens.is_floating_point():
                raise ConfigError(f"A run that starts at layer {start_at_layer} takes the stream there; these are tokens.")
            stream, tokens = tokens, tokens.new_zeros(tokens.shape[:2], dtype=torch.long)
        self.check(tokens, cache)
        if attention_mask is not None and attention_mask.dim() == 1:
            attention_mask = attention_mask[None]
        if attention_mask is not None and attention_mask.shape != tokens.shape:
            raise TokensError(f"attention_mask is {tuple(attention_mask.shape)}; the tokens are {tuple(tokens.shape)}.")
        padded = attention_mask is not None or (cache is not None and cache.padded)
        real = torch.ones_like(tokens, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
        positions = self.positions_of(real, cache, padded)
        if cache is not None:
            cache.extend(positions, real)
            cache.padded = padded
        if not torch.compiler.is_compiling():
            self.run.tokens, self.run.positions, self.run.real = None if start_at_layer is not None else tokens, positions, real
        resid = self.embed_tokens(tokens) if start_at_layer is None else stream
        start = 0 if start_at_layer is None else self.stop_of(start_at_layer)
        resid = self.run_blocks(resid, positions, real if padded else None, cache, stop_at_layer, start)
        if stop_at_layer is not None:
            return resid
        if return_type is None:
            return self.read_out(resid)
        logits = self.logits_of(resid)
        if return_type == "logits":
            return logits
        loss = next_token_loss(logits, tokens, real, loss_per_token)
        return loss if return_type == "loss" else (logits, loss)

    def positions_of(self, real: Mask, cache: ModelCache | None = None, padded: bool = True) -> Positions:
        """Where each token stands, counting real tokens only; padding stands where the last real token does, or at 0."""
        before = cache.n_tokens if cache is not None else 0
        if not padded:
            return torch.arange(before, before + real.shape[1], device=real.device).expand(len(real), -1)
        seen_before = cache.real.sum(1, keepdim=True) if before else 0
        return (real.long().cumsum(1) - 1).clamp(min=0) + seen_before

    def embed_tokens(self, tokens: Tokens) -> Resid:
        """The embedding times sqrt(d_model), a factor that takes the dtype of the weights."""
        return self.hook_embed(self.embed(tokens))

    def run_blocks(
        self,
        resid: Resid,
        positions: Positions,
        real: Mask | None,
        cache: ModelCache | None = None,
        stop_at_layer: int | None = None,
        start_at_layer: int = 0,
    ) -> Resid:
        """The stream before block `stop_at_layer` (default: after the last), from the stream before `start_at_layer`.

        `real` None says that there is no padding and no gap: every row of positions counts on by one.
        """
        turned = positions if real is not None else positions[:1]
        rotary = rotary_tables(turned, self.cfg.d_head, self.cfg.rope_theta, resid.dtype)
        key_pos, key_real = (positions, real) if cache is None else (cache.positions, cache.real)
        key_real = None if real is None else key_real
        sights = {w: Sight(positions, key_pos, key_real, w) for w in {None, self.cfg.window}}
        for layer in range(start_at_layer, self.stop_of(stop_at_layer)):
            block = self.blocks[layer]
            resid = block(resid, rotary, sights[block.window], cache.layers[layer] if cache else None)
        return resid

    def stop_of(self, stop_at_layer: int | None) -> int:
        """How many blocks a run passes; a negative number counts from the last, None means all.

        Raises:
            ConfigError: a layer that this model does not have.
        """
        n = len(self.blocks)
        stop = n if stop_at_layer is None else stop_at_layer + n if stop_at_layer < 0 else stop_at_layer
        if not 0 <= stop <= n:
            raise ConfigError(f"stop_at_layer is {stop_at_layer}; this model has blocks 0 to {n - 1}.")
        return stop

    def read_out(self, resid: Resid) -> None:
        """What follows the last block, as far as somebody listens there."""
        normalized = self.ln_final(resid)
        (self.unembed if self.unembed.hook_out.has_hooks() else self.unembed.hook_in)(normalized)

    def logits_of(self, resid: Resid) -> Logits:
        """Final norm, tied unembedding, soft cap: the logits of a stream that left the last block."""
        scores = self.unembed(self.ln_final(resid))
        kept = torch.is_grad_enabled() or self.unembed.hook_out.has_hooks()
        return soft_cap(scores, self.cfg.final_cap) if kept else soft_cap_(scores, self.cfg.final_cap)

    def logits_from(self, layer: int, resid: Resid, tokens: Tokens, attention_mask: Mask | None = None) -> Logits:
        """The logits of a run in which `resid` is the stream before block `layer`. The blocks before it do not run."""
        positions = self.positions_of(torch.ones_like(tokens).bool() if attention_mask is None else attention_mask)
        return self.logits_of(self.run_blocks(resid, positions, attention_mask, start_at_layer=layer))

    @torch.no_grad()
    def through_final_norm(self, directions: Tensor) -> Tensor:
        """Directions [... d_model] as the unembedding meets them, but for the norm's division: times its gain. Float32."""
        directions = directions.detach().float()
        return (1.0 + self.ln_final.weight.detach().float()).to(directions.device) * directions

    def _apply(self, fn, recurse: bool = True):  # what .to(), .half() and .cuda() come to
        moved = super()._apply(fn, recurse)
        self.cfg.note_place(self.dtype, self.device)
        return moved

    def new_cache(self) -> ModelCache:
        return ModelCache([LayerCache(block.window) for block in self.blocks], padded=False)

    def check(self, tokens: Tensor, cache: ModelCache | None = None) -> None:
        if tokens.numel() == 0:
            raise TokensError("There are no tokens to run on. Give at least one.")
        if tokens.dim() != 2 or tokens.is_floating_point():
            kind = str(tokens.dtype).removeprefix("torch.")
            raise TokensError(f"Tokens are whole numbers [batch pos]; these are {kind} of shape {tuple(tokens.shape)}.")
        length = tokens.shape[1] + (cache.n_tokens if cache else 0)
        if length > self.cfg.n_ctx:
            raise TokensError(f"{length} tokens do not fit: this model's context holds {self.cfg.n_ctx}. Cut the text.")
        if not torch.compiler.is_compiling():
            low, high = torch.aminmax(tokens)
            if low < 0 or high >= self.cfg.d_vocab:
                raise TokensError(
                    f"Token ids run from {low} to {high}; this model's vocabulary ends at {self.cfg.d_vocab - 1}."
                )

    def sites(self) -> dict[str, int]:
        """Every site that can be recorded, with its width (heads concatenated), in the order in which they are passed."""
        c = self.cfg
        heads, kv = c.n_heads * c.d_head, c.n_kv_heads * c.d_head
        widths = {"hook_q": heads, "hook_k": kv, "hook_v": kv, "hook_z": heads, "hook_rot_q": heads, "hook_rot_k": kv}
        widths |= {"hook_pre": c.d_mlp, "hook_pre_linear": c.d_mlp, "hook_post": c.d_mlp, "hook_scale": 1}
        widths |= {"unembed.hook_out": c.d_vocab}
        widths |= dict.fromkeys(("hook_result", "hook_attn_in", "hook_q_input"), c.n_heads * c.d_model)
        widths |= dict.fromkeys(("hook_k_input", "hook_v_input"), c.n_kv_heads * c.d_model)
        skipped = ("hook_attn_scores", "hook_pattern")  # as wide as the text is long
        names = {name: name.rsplit(".", 1)[-1] for name in self.match(None)}
        return {name: widths.get(name, widths.get(last, c.d_model)) for name, last in names.items() if last not in skipped}

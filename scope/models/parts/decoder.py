"""The decoder that every family configures: embedding, loop over blocks, positions, cache, sites, checks, reading out.

A family gives it a config, a block and the names of its tensors in a checkpoint:

    class Gemma(TransformerLensApi, Decoder):
        block, block_parts = Block, BLOCK_PARTS
        config_from_hf, tensor_names = GemmaConfig.from_hf, staticmethod(tensor_names)

What a block remembers of earlier tokens (keys and values, a recurrent state) and what it may attend to (a causal mask, a
window) are the block's own affair: it makes its cache entry, and asks `RunPositions` for the mask of its kind.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from scope.errors import ConfigError, TokensError
from scope.models.hooks import HookedModule, HookPoint, is_watched
from scope.models.parts.cache import CacheEntry, ModelCache
from scope.models.parts.embedding import DirectLogits, Embedding, Unembed
from scope.models.parts.layers import RMSNorm, soft_cap, soft_cap_
from scope.models.parts.mask import as_mask
from scope.models.parts.positions import RunPositions
from scope.models.stored import language_name
from scope.shapes import Logits, Mask, Positions, Resid, Tokens


class DecoderBlock(Protocol):
    """What a family's block does, an nn.Module made by `block(config, layer)`."""

    def forward(self, resid: Resid, at: RunPositions, cache: CacheEntry | None = None) -> Resid: ...

    def new_cache(self) -> CacheEntry:
        """An empty entry for what this block remembers of earlier tokens."""
        ...


class Decoder(DirectLogits, HookedModule):
    """A language model. `cfg` is a frozen dataclass with at least d_model, n_layers, d_vocab, n_ctx, eps, final_cap (None: no
    soft cap on the logits), bos, eos,
    pad and family_name, which refusals name."""

    block: Callable[[Any, int], nn.Module]
    """Makes the block of a layer: `block(config, layer)`."""

    block_parts: tuple[str, ...] = ()
    """The parts of a block in the order in which they run."""

    embedding_scale_dtype: torch.dtype | None = None
    """What the factor of the embedding is rounded to; None: the dtype of the weights."""

    config_from_hf: Callable[[dict[str, Any], str], Any]
    """The config, from what config.json holds and the name of the checkpoint for refusals."""

    tensor_names: Callable[[Any], dict[str, str]]
    """Our parameter names -> those in a checkpoint, for a config."""

    canonical_name: Callable[[str], str | None] = staticmethod(language_name)
    """The name in `tensor_names` of a tensor, whichever way its checkpoint spells it; None for what is no part of the model."""

    streams = True
    """Whether it can run with the weights on the disk (scope/models/streamed.py)."""

    has_unembedding = True

    def __init__(self, config, tokenizer=None):
        super().__init__()
        self.cfg, self.tokenizer = replace(config), tokenizer
        self.provenance: dict = {}
        self.embed = Embedding(config.d_vocab, config.d_model, self.embedding_scale_dtype)
        self.hook_embed = HookPoint(config.d_model)
        self.blocks = nn.ModuleList(self.block(config, layer) for layer in range(config.n_layers))
        self.ln_final = RMSNorm(config.d_model, config.eps)
        self.unembed = Unembed(self.embed)
        self.setup_hooks(self.block_parts)
        self.on_placed()

    device = property(lambda self: self.embed.weight.device)
    dtype = property(lambda self: self.embed.weight.dtype)
    streamed = property(lambda self: False)
    adapter = None
    """What `load_model` applied to the weights, if anything."""

    def forward(
        self,
        tokens: Tensor,
        attention_mask: Tensor | None = None,
        cache: ModelCache | None = None,
        *,
        position_ids: Tensor | None = None,
        start_at_layer: int | None = None,
        stop_at_layer: int | None = None,
        logits: bool = True,
    ) -> Tensor | None:
        """Logits; with `stop_at_layer` the stream before that block, and without `logits` nothing, for hooks alone.

        Positions count real tokens only, so padding on either side changes nothing. Given a cache, `tokens` continue it. A
        negative `stop_at_layer` counts from the last block. With `start_at_layer`, what comes first is not tokens but the
        stream [batch pos d_model] before that block.

        `position_ids` [batch pos] pack several documents into a row: they count on by one, and each 0 starts a document, which
        sees nothing of those before it.

        Raises:
            TokensError: no tokens, ids outside the vocabulary, more tokens than the context holds, a cache of another batch, or
                positions that do not count on.
            ConfigError: a layer that this model does not have, or tokens where a stream is meant.
        """
        if start_at_layer is not None:
            if not tokens.is_floating_point():
                raise ConfigError(f"A run that starts at layer {start_at_layer} takes the stream there; these are tokens.")
            stream, tokens = tokens, tokens.new_zeros(tokens.shape[:2], dtype=torch.long)
        self.check(tokens, cache)
        if attention_mask is not None and attention_mask.shape != tokens.shape:
            raise TokensError(f"attention_mask is {tuple(attention_mask.shape)}; the tokens are {tuple(tokens.shape)}.")
        gaps = attention_mask is not None or position_ids is not None
        padded = gaps or (cache is not None and cache.padded)
        real = torch.ones_like(tokens, dtype=torch.bool) if attention_mask is None else as_mask(attention_mask)
        positions = self.positions_of(real, cache, padded)
        if position_ids is not None:
            positions = counted_on(position_ids.expand_as(positions), real, positions)
        if cache is not None:
            cache.extend(positions, real, padded)
        if not torch.compiler.is_compiling():
            self.run.tokens, self.run.positions, self.run.real = None if start_at_layer is not None else tokens, positions, real
        resid = self.embed_tokens(tokens) if start_at_layer is None else stream
        start = 0 if start_at_layer is None else self.stop_of(start_at_layer)
        resid = self.run_blocks(resid, positions, real if padded else None, cache, stop_at_layer, start)
        if stop_at_layer is not None:
            return resid
        return self.logits_of(resid) if logits else self.read_out(resid)

    def positions_of(self, real: Mask, cache: ModelCache | None = None, padded: bool = True) -> Positions:
        """Where each token stands, counting real tokens only; padding stands where the last real token does, or at 0."""
        before = cache.n_tokens if cache is not None else 0
        if not padded:
            return torch.arange(before, before + real.shape[1], device=real.device).expand(len(real), -1)
        seen_before = torch.where(cache.real.any(1, keepdim=True), cache.positions[:, -1:] + 1, 0) if before else 0
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
        at = self.run_positions(positions, real, cache, resid.dtype)
        for layer in range(start_at_layer, self.stop_of(stop_at_layer)):
            resid = self.blocks[layer](resid, at, cache.layers[layer] if cache else None)
        return resid

    def run_positions(
        self, positions: Positions, real: Mask | None, cache: ModelCache | None, dtype: torch.dtype
    ) -> RunPositions:
        """What blocks ask for rotary angles and masks."""
        return RunPositions(positions, real, cache, dtype)

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
        """What follows the last block, for the hooks there, without the logits where none reads them."""
        normalized = self.ln_final(resid)
        (self.unembed if self._scores_read() else self.unembed.hook_in)(normalized)

    def logits_of(self, resid: Resid) -> Logits:
        """Final norm, tied unembedding, soft cap: the logits of a stream that left the last block."""
        scores = self.unembed(self.ln_final(resid))
        in_use = torch.is_grad_enabled() or self._scores_read()
        return soft_cap(scores, self.cfg.final_cap) if in_use else soft_cap_(scores, self.cfg.final_cap)

    def _scores_read(self) -> bool:
        """Whether anyone reads the scores before the soft cap, so that they are computed and not written over."""
        return self.unembed.hook_out.has_hooks() or is_watched(self.unembed)

    def logits_from(self, layer: int, resid: Resid, tokens: Tokens, attention_mask: Mask | None = None) -> Logits:
        """The logits of a run in which `resid` is the stream before block `layer`. The blocks before it do not run."""
        attention_mask = None if attention_mask is None else as_mask(attention_mask)
        positions = self.positions_of(torch.ones_like(tokens).bool() if attention_mask is None else attention_mask)
        return self.logits_of(self.run_blocks(resid, positions, attention_mask, start_at_layer=layer))

    @torch.no_grad()
    def through_final_norm(self, directions: Tensor) -> Tensor:
        """Directions [... d_model] as the unembedding meets them, but for the norm's division: times its gain. In float32, or
        in float64 if the directions are."""
        directions = directions.detach().to(torch.promote_types(directions.dtype, torch.float32))
        return (1.0 + self.ln_final.weight.detach().to(directions)) * directions

    def _apply(self, fn, recurse: bool = True):  # what .to(), .half() and .cuda() come to
        moved = super()._apply(fn, recurse)
        self.on_placed()
        return moved

    def on_placed(self) -> None:
        """Called when the weights have come to another dtype or device."""

    def new_cache(self) -> ModelCache:
        return ModelCache([block.new_cache() for block in self.blocks], padded=False)

    def check(self, tokens: Tensor, cache: ModelCache | None = None) -> None:
        if tokens.numel() == 0:
            raise TokensError("There are no tokens to run on. Give at least one.")
        if tokens.dim() != 2 or tokens.is_floating_point():
            kind = str(tokens.dtype).removeprefix("torch.")
            raise TokensError(f"Tokens are whole numbers [batch pos]; these are {kind} of shape {tuple(tokens.shape)}.")
        if cache and cache.n_tokens and len(cache.positions) != len(tokens):
            raise TokensError(
                f"The cache holds {len(cache.positions)} rows, and the tokens have {len(tokens)}: what is remembered of one "
                "batch does not continue another.\n  Give as many rows, or start a new cache: model.new_cache()."
            )
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
        widths = {name: self.hook_dict[name].width for name in self.match(None)}
        return {name: width for name, width in widths.items() if width}


def counted_on(position_ids: Tensor, real: Mask, expected: Positions) -> Positions:
    """Positions that were given, checked: at each real token 0, which starts a document, or one more than at the real token
    before it, at the first as `expected`; padding stands where the last real token does.

    Raises:
        TokensError: they do not count on.
    """
    if position_ids.is_floating_point() or position_ids.dtype == torch.bool:
        raise TokensError(f"position_ids are whole numbers; these are {str(position_ids.dtype).removeprefix('torch.')}.")
    index = torch.arange(real.shape[1], device=real.device).expand_as(real)
    last_start = torch.where(real & (position_ids == 0), index, -1).cummax(1).values  # -1: before any start in this row
    counted = real.long().cumsum(1)
    before = counted.gather(1, last_start.clamp(min=0))
    positions = torch.where(last_start < 0, expected, counted - before)
    if not bool((positions == position_ids)[real].all()):
        row, at = (real & (positions != position_ids)).nonzero()[0].tolist()
        raise TokensError(
            f"position_ids has {int(position_ids[row, at])} in row {row} at token {at}, where {int(positions[row, at])} counts "
            "on. They count on by one within a document, and start a new one at 0."
        )
    return positions

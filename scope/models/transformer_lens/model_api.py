"""Methods beyond those of a decoder, so that code written for TransformerLens runs on a model: text, loss, switches."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from scope.errors import ConfigError
from scope.models.face import TextTokenizer
from scope.models.parts.cache import ModelCache
from scope.models.parts.embedding import next_token_loss
from scope.models.parts.mask import as_mask
from scope.models.text.encodings import read_encoding
from scope.models.text.infill import InfillMethods
from scope.models.text.prompts import Side, TextMethods
from scope.models.transformer_lens.generate_api import GenerateApi
from scope.models.transformer_lens.hook_api import HookApi
from scope.models.transformer_lens.kv_cache import continued, extend, refuse_recurrent
from scope.models.transformer_lens.tokenizer import LensTokenizer
from scope.models.transformer_lens.weight_names import NamedWeights
from scope.shapes import Logits, Resid, Tokens

_SWITCHES = {
    "use_attn_result": ("hook_result",),
    "use_split_qkv_input": ("hook_q_input", "hook_k_input", "hook_v_input"),
    "use_attn_in": ("hook_attn_in",),
    "use_hook_mlp_in": ("hook_mlp_in",),
}


class Output(NamedTuple):
    """What `return_type="both"` gives."""

    logits: Logits
    loss: Tensor


class TransformerLensApi(NamedWeights, HookApi, TextMethods, GenerateApi, InfillMethods):
    """Comes before Decoder among a family's bases. Points on request work by name without any switch; a switch adds them to
    what is cached without a filter."""

    def forward(
        self,
        input: Tensor | str | list[str] | Mapping[str, Any],
        return_type: str | None = "logits",
        loss_per_token: bool = False,
        prepend_bos: bool | None = None,
        padding_side: Side | None = None,
        start_at_layer: int | None = None,
        tokens: Tensor | None = None,
        shortformer_pos_embed: None = None,
        attention_mask: Tensor | None = None,
        stop_at_layer: int | None = None,
        past_kv_cache: Any = None,
        *,
        cache: ModelCache | None = None,
        position_ids: Tensor | None = None,
    ) -> Tensor | Output | None:
        """As Decoder.forward, with TransformerLens' arguments: logits, the mean next-token loss ("loss"), "both", or nothing.

        Text is tokenised with <bos>. `loss_per_token` gives the loss of each next token [batch pos-1], in nats, 0 where it or
        the token before it is padding. With `start_at_layer` the input is the stream before that block, and `tokens` are what
        a loss is taken of. Where the tokenizer pads on the left, the pads that begin a row of ids are no text. `past_kv_cache`
        is TransformerLens' TransformerLensKeyValueCache, continued and, unless it is frozen, extended. `position_ids` pack
        documents into rows (see Decoder.forward).

        Raises:
            TokensError: no tokens, ids outside the vocabulary, or more tokens than the context holds.
            ConfigError: an unknown return_type, a layer that this model does not have, or a loss without tokens.
        """
        if return_type not in ("logits", "loss", "both", None):
            raise ConfigError(f'return_type is {return_type!r}; it can be "logits", "loss", "both" or None.')
        if start_at_layer is None:
            input, attention_mask = self.read_input(input, prepend_bos, padding_side, attention_mask, past_kv_cache is not None)
            tokens = input
        elif return_type in ("loss", "both") and tokens is None:
            raise ConfigError(
                "A run that starts at a stream has no tokens to take a loss of. Give tokens=..., or ask for logits."
            )
        if past_kv_cache is not None:
            refuse_recurrent(self)
            cache = continued(past_kv_cache)
            if attention_mask is not None:  # TransformerLens gives the mask of all tokens to a run that starts at a stream
                attention_mask = attention_mask[:, -input.shape[1] :]
        out = super().forward(
            input,
            attention_mask,
            cache,
            position_ids=position_ids,
            start_at_layer=start_at_layer,
            stop_at_layer=stop_at_layer,
            logits=return_type is not None,
        )
        if past_kv_cache is not None:
            extend(past_kv_cache, cache)
        if stop_at_layer is not None or return_type in ("logits", None):
            return out
        loss = self.loss_fn(out, tokens, attention_mask, loss_per_token)
        return loss if return_type == "loss" else Output(out, loss)

    def read_input(
        self,
        input: Tensor | str | list[str] | Mapping[str, Any],
        prepend_bos: bool | None = None,
        padding_side: Side | None = None,
        attention_mask: Tensor | None = None,
        cached: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """(ids [batch pos], not yet checked, and which of them are text); None where none is padding that matters."""
        attention_mask = None if attention_mask is None else as_mask(attention_mask)
        if (encoding := read_encoding(input, self.cfg.pad)) is not None:
            tokens, mask = self.placed(*encoding, attention_mask)
            return tokens, None if mask is None else as_mask(mask)
        if not isinstance(input, Tensor):
            mask = self.mask_of(input, prepend_bos, padding_side)
            return self.to_tokens(input, prepend_bos, padding_side), mask if attention_mask is None else attention_mask
        tokens = input[None] if input.dim() == 1 else input
        if attention_mask is not None:
            return tokens, attention_mask[None] if attention_mask.dim() == 1 else attention_mask
        if (
            self.tokenizer is not None
            and tokens.dim() == 2
            and tokens.numel()
            and (cached or self.side_of(padding_side) == "left")
        ):
            mask = self.mask_of_tokens(tokens, prepend_bos, padding_side)
            return tokens, None if bool(mask.all()) else mask
        return tokens, None

    def input_to_embed(
        self,
        input: Tensor | str | list[str] | Mapping[str, Any],
        prepend_bos: bool | None = None,
        padding_side: Side | None = None,
        attention_mask: Tensor | None = None,
        past_kv_cache: Any = None,
    ) -> tuple[Resid, Tokens, None, Tensor | None]:
        """TransformerLens' (stream before the first block, tokens, None, mask), for a run with `start_at_layer`. The mask spans
        the tokens of `past_kv_cache` too, to which it is added."""
        tokens, mask = self.read_input(input, prepend_bos, padding_side, attention_mask, past_kv_cache is not None)
        self.check(tokens)
        if past_kv_cache is not None:
            mask = past_kv_cache.append_attention_mask(torch.ones_like(tokens) if mask is None else mask.long())
        return self.embed_tokens(tokens), tokens, None, mask

    def set_tokenizer(self, tokenizer: Any, default_padding_side: Side | None = None) -> None:
        """Text is read with another tokenizer from now on: ours, or one of transformers."""
        self.tokenizer = tokenizer if isinstance(tokenizer, TextTokenizer) else LensTokenizer(tokenizer)
        if default_padding_side is not None:
            self.tokenizer.padding_side = self.side_of(default_padding_side)

    def on_placed(self) -> None:
        self.cfg.note_place(self.dtype, self.device)

    def set_use_attn_result(self, use_attn_result: bool) -> None:
        self._switch("use_attn_result", use_attn_result)

    def set_use_split_qkv_input(self, use_split_qkv_input: bool) -> None:
        self._switch("use_split_qkv_input", use_split_qkv_input)

    def set_use_attn_in(self, use_attn_in: bool) -> None:
        self._switch("use_attn_in", use_attn_in)

    def set_use_hook_mlp_in(self, use_hook_mlp_in: bool) -> None:
        self._switch("use_hook_mlp_in", use_hook_mlp_in)

    def _switch(self, name: str, on: bool) -> None:
        for path, point in self.hook_dict.items():
            if path.rsplit(".", 1)[-1] in _SWITCHES[name]:
                point.on_request = not on
        setattr(self.cfg, name, on)

    def set_ungroup_grouped_query_attention(self, ungroup_grouped_query_attention: bool) -> None:
        """Raises ConfigError where it is switched on: keys and values stay one for each key-value head here."""
        if ungroup_grouped_query_attention:
            raise ConfigError(
                "hook_k and hook_v have one row for each key-value head here, so that a site has one width.\n"
                "  Use W_K and W_V, which are repeated for each head, or cache['k', layer].repeat_interleave(n, dim=2)."
            )

    def computed_unasked(self, name: str) -> bool:
        """Whether a run without a filter passes this point: it does not wait for a request, or its switch is on."""
        switch = next((switch for switch, ends in _SWITCHES.items() if name.rsplit(".", 1)[-1] in ends), None)
        return super().computed_unasked(name) if switch is None else getattr(self.cfg, switch)

    def all_composition_scores(self, mode: str) -> Tensor:
        """[layer head layer head] TransformerLens' Q-, K- or V-composition of each head with those of earlier layers."""
        from transformer_lens import HookedTransformer

        return HookedTransformer.all_composition_scores(self, mode)

    @property
    def n_params_total(self) -> int:
        """Numbers in all weights; the tied embedding counts once."""
        return sum(p.numel() for p in self.parameters())

    @property
    def QK(self) -> Any:
        """TransformerLens' FactoredMatrix [layer head d_model d_model] of W_Q and W_K, before rotary positions and scale."""
        from transformer_lens import FactoredMatrix

        return FactoredMatrix(self.W_Q, self.W_K.transpose(-2, -1))

    @property
    def OV(self) -> Any:
        """TransformerLens' FactoredMatrix [layer head d_model d_model] of W_V and W_O."""
        from transformer_lens import FactoredMatrix

        return FactoredMatrix(self.W_V, self.W_O)

    def loss_fn(self, logits: Logits, tokens: Tokens, attention_mask: Tensor | None = None, per_token: bool = False) -> Tensor:
        """The next-token loss in nats of logits that are there already; as `model(tokens, return_type="loss")` otherwise."""
        real = tokens.new_ones(tokens.shape).bool() if attention_mask is None else as_mask(attention_mask)
        return next_token_loss(logits, tokens, real, per_token)

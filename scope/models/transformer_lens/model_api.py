"""Methods beyond those of a decoder, so that code written for TransformerLens runs on a model: text, loss, switches."""

from typing import Any

from torch import Tensor

from scope.errors import ConfigError
from scope.models.parts.cache import ModelCache
from scope.models.parts.embedding import next_token_loss
from scope.models.text.infill import InfillMethods
from scope.models.text.prompts import Side, TextMethods
from scope.models.transformer_lens.generate_api import GenerateApi
from scope.models.transformer_lens.hook_api import HookApi
from scope.models.transformer_lens.weight_names import NamedWeights
from scope.shapes import Logits, Mask, Tokens

_SWITCHES = {
    "use_attn_result": ("hook_result",),
    "use_split_qkv_input": ("hook_q_input", "hook_k_input", "hook_v_input"),
    "use_attn_in": ("hook_attn_in",),
    "use_hook_mlp_in": ("hook_mlp_in",),
}


class TransformerLensApi(NamedWeights, HookApi, TextMethods, GenerateApi, InfillMethods):
    """Comes before Decoder among a family's bases. Points on request work by name without any switch; a switch adds them to
    what is cached without a filter."""

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
        """As Decoder.forward, with TransformerLens' arguments: logits, the mean next-token loss ("loss"), "both", or nothing.

        Text is tokenised with <bos>. `loss_per_token` gives the loss of each next token [batch pos-1], in nats, 0 where it or
        the token before it is padding.

        Raises:
            TokensError: no tokens, ids outside the vocabulary, or more tokens than the context holds.
            ConfigError: an unknown return_type, a layer that this model does not have, or a loss without tokens.
        """
        if return_type not in ("logits", "loss", "both", None):
            raise ConfigError(f'return_type is {return_type!r}; it can be "logits", "loss", "both" or None.')
        if start_at_layer is not None and return_type in ("loss", "both"):
            raise ConfigError("A run that starts at a stream has no tokens to take a loss of. Ask for logits.")
        if not isinstance(tokens, Tensor):
            attention_mask = self.mask_of(tokens, prepend_bos, padding_side)
            tokens = self.to_tokens(tokens, prepend_bos, padding_side)
        tokens = tokens[None] if tokens.dim() == 1 else tokens
        if attention_mask is not None and attention_mask.dim() == 1:
            attention_mask = attention_mask[None]
        out = super().forward(
            tokens,
            attention_mask,
            cache,
            start_at_layer=start_at_layer,
            stop_at_layer=stop_at_layer,
            logits=return_type is not None,
        )
        if stop_at_layer is not None or return_type in ("logits", None):
            return out
        loss = self.loss_fn(out, tokens, attention_mask, loss_per_token)
        return loss if return_type == "loss" else (out, loss)

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
        object.__setattr__(self.cfg, name, on)

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

    def loss_fn(self, logits: Logits, tokens: Tokens, attention_mask: Mask | None = None, per_token: bool = False) -> Tensor:
        """The next-token loss in nats of logits that are there already; as `model(tokens, return_type="loss")` otherwise."""
        real = tokens.new_ones(tokens.shape).bool() if attention_mask is None else attention_mask.bool()
        return next_token_loss(logits, tokens, real, per_token)

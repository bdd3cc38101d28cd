"""What notebooks written for TransformerLens call besides hooks and weights: its switches, products of weights, the loss."""

from typing import Any

from torch import Tensor
from torch.nn.functional import cross_entropy

from scope.shapes import Logits, Mask, Tokens

_SWITCHES = {
    "use_attn_result": ("hook_result",),
    "use_split_qkv_input": ("hook_q_input", "hook_k_input", "hook_v_input"),
    "use_attn_in": ("hook_attn_in",),
    "use_hook_mlp_in": ("hook_mlp_in",),
}


class Habits:
    """For a Gemma. Points on request work by name without any switch; a switch adds them to what is cached without a filter."""

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


def next_token_loss(logits: Logits, tokens: Tokens, real: Mask, per_token: bool = False) -> Tensor:
    """Cross-entropy in nats of each real token after a real one: the mean, or [batch pos-1] with 0 elsewhere."""
    counted = real[:, 1:] & real[:, :-1]
    losses = cross_entropy(logits[:, :-1][counted].float(), tokens[:, 1:][counted], reduction="none" if per_token else "mean")
    return losses.new_zeros(counted.shape).masked_scatter(counted, losses) if per_token else losses

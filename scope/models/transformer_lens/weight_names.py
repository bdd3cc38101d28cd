"""TransformerLens' names for the weights of a Gemma: views of what is stored, or computed on each call, never stored twice."""

import torch
from jaxtyping import Float
from torch import Tensor

_ABSENT = {
    "W_pos": "Positions turn queries and keys (rotary); no matrix of them is added to the stream.",
    "W_E_pos": "Positions turn queries and keys (rotary); use W_E.",
    "pos_embed": "Positions turn queries and keys (rotary); nothing of them is added to the stream.",
}


def _stacked(part: str, name: str) -> property:
    return property(lambda self: torch.stack([getattr(getattr(block, part), name) for block in self.blocks]))


class NamedWeights:
    """For a model with `cfg`, `embed`, `unembed` and `blocks`. What is stacked over layers is a copy, made on each call."""

    W_E = property(lambda self: self.embed.W_E)  # times sqrt(d_model), so not the transpose of W_U
    W_U = property(lambda self: self.unembed.W_U)
    b_U = property(lambda self: self.unembed.b_U)
    W_Q, W_K, W_V = (_stacked("attn", name) for name in ("W_Q", "W_K", "W_V"))  # [layer head d_model d_head]
    W_O = _stacked("attn", "W_O")  # [layer head d_head d_model]
    b_Q, b_K, b_V, b_O = (_stacked("attn", name) for name in ("b_Q", "b_K", "b_V", "b_O"))
    W_gate, W_in = _stacked("mlp", "W_gate"), _stacked("mlp", "W_in")  # [layer d_model d_mlp]
    W_out = _stacked("mlp", "W_out")  # [layer d_mlp d_model]
    b_in, b_out = _stacked("mlp", "b_in"), _stacked("mlp", "b_out")

    def __getattr__(self, name: str):
        if name in _ABSENT:
            raise AttributeError(f"A Gemma has no {name}. {_ABSENT[name]}")
        return super().__getattr__(name)

    def tokens_to_residual_directions(self, tokens: str | int | Tensor) -> Float[Tensor, "*lead d_model"]:
        """The column of W_U of each token: what the normalised stream is multiplied with to give its score."""
        ids = self.to_single_token(tokens) if isinstance(tokens, str) else tokens
        ids = torch.as_tensor(ids, device=self.device)
        return self.W_U.T[ids.reshape(()) if ids.numel() == 1 else ids]

    def accumulated_bias(self, layer: int, mlp_input: bool = False, include_mlp_biases: bool = True) -> Tensor:
        """What biases add to the stream before `layer`: nothing, in a Gemma."""
        return self.W_U.new_zeros(self.cfg.d_model)

    def all_head_labels(self) -> list[str]:
        return [f"L{layer}H{head}" for layer in range(self.cfg.n_layers) for head in range(self.cfg.n_heads)]

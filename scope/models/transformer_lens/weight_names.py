"""TransformerLens' names for the weights of a Gemma: views of what is stored, or computed on each call, never stored twice."""

import torch
from jaxtyping import Float
from torch import Tensor

from scope.errors import ConfigError

_ABSENT = {
    "W_pos": "Positions turn queries and keys (rotary); no matrix of them is added to the stream.",
    "W_E_pos": "Positions turn queries and keys (rotary); use W_E.",
    "pos_embed": "Positions turn queries and keys (rotary); nothing of them is added to the stream.",
}


def _stacked(part: str, name: str) -> property:
    def stack(self) -> Tensor:
        without = [n for n, block in enumerate(self.blocks) if not hasattr(block, part)]
        if without:
            raise ConfigError(
                f"Blocks {', '.join(map(str, without))} have no attention, so {name} cannot be stacked over layers.\n"
                f"  Use model.blocks[n].{part}.{name} of a block that has."
            )
        return torch.stack([getattr(getattr(block, part), name) for block in self.blocks])

    return property(stack)


def _fold(norm: torch.nn.Module, *maps: torch.nn.Module) -> None:
    """The gain of a norm into the maps [out d_model] that read it."""
    for each in maps:
        each.weight.copy_(each.weight.float() * (1.0 + norm.weight.float()))
    norm.weight.zero_()


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

    @torch.no_grad()
    def process_weights_(
        self,
        fold_ln: bool = True,
        center_writing_weights: bool = True,
        center_unembed: bool = True,
        refactor_factored_attn_matrices: bool = False,
    ) -> None:
        """Folds each norm's gain into the weights behind it, in place, as TransformerLens' method of this name does: the
        activations stay what they were, up to rounding, and `W_U` gets a matrix of its own. `center_unembed` takes the mean
        over the vocabulary from `W_U`, unless a soft cap follows, which is not blind to it. `center_writing_weights` changes
        nothing: a Gemma's norms do not take the mean away. The gains of Gemma 2's post norms stay where they are.

        Raises:
            ConfigError: a streamed model, whose weights stay on disk, or factored matrices, which rotary positions rule out.
        """
        if self.streamed:
            raise ConfigError("The weights of a streamed model stay on disk as they are. Load it without streamed=True.")
        if refactor_factored_attn_matrices:
            raise ConfigError("Rotary positions turn queries and keys, so W_Q W_K^T cannot be refactored. Leave it out.")
        if fold_ln:
            for block in self.blocks:
                _fold(block.ln1, *block.mixer_inputs())
                _fold(block.ln2, block.mlp.gate_proj, block.mlp.up_proj)
        centred = center_unembed and self.cfg.final_cap is None
        if (fold_ln or centred) and self.unembed.weight is None:
            self.unembed.weight = torch.nn.Parameter(self.embed.weight.clone(), self.embed.weight.requires_grad)
        if fold_ln:
            _fold(self.ln_final, self.unembed)
        if centred:
            self.unembed.weight.sub_(self.unembed.weight.float().mean(0).to(self.dtype))

    def tokens_to_residual_directions(self, tokens: str | int | Tensor) -> Float[Tensor, "*lead d_model"]:
        """The column of W_U of each token: what the normalised stream is multiplied with to give its score."""
        ids = self.to_single_token(tokens) if isinstance(tokens, str) else tokens
        ids = torch.as_tensor(ids, device=self.device)
        return self.W_U.T[ids.reshape(()) if ids.numel() == 1 else ids]

    def accumulated_bias(self, layer: int, mlp_input: bool = False, include_mlp_biases: bool = True) -> Tensor:
        """What biases add to the stream before `layer`, with `mlp_input` before its MLP: nothing, in a Gemma."""
        total = self.W_U.new_zeros(self.cfg.d_model)
        for n, block in enumerate(self.blocks[: layer + mlp_input]):
            mixer = block.rec.linear_out.bias if hasattr(block, "rec") else block.attn.b_O
            total = total + mixer + (block.mlp.b_out if include_mlp_biases and n < layer else 0)
        return total

    def all_head_labels(self) -> list[str]:
        return [f"L{layer}H{head}" for layer in range(self.cfg.n_layers) for head in range(self.cfg.n_heads)]

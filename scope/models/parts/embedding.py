"""Embedding, unembedding, the effect of directions on logits by the weights alone, and the next-token loss."""

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from scope.models.hooks import HookPoint
from scope.shapes import Acts, Logits, Mask, Resid, Tokens


class Embedding(nn.Embedding):
    """The tied matrix [d_vocab d_model]. What enters the stream is a row times sqrt(d_model), in the dtype of the weights, or
    rounded to `scale_dtype` whatever that is, as in RecurrentGemma."""

    def __init__(self, d_vocab: int, d_model: int, scale_dtype: torch.dtype | None = None):
        super().__init__(d_vocab, d_model)
        self.scale_dtype = scale_dtype

    @property
    def scale(self) -> Tensor:
        return self.scale_in(self.weight.dtype, self.weight.device)

    def scale_in(self, dtype: torch.dtype, device: torch.device) -> Tensor:
        return torch.tensor(math.sqrt(self.embedding_dim), dtype=self.scale_dtype or dtype, device=device).to(dtype)

    def forward(self, tokens: Tokens) -> Resid:
        return super().forward(tokens) * self.scale

    W_E = property(lambda self: self.weight * self.scale)  # TransformerLens folds the factor in; ours is made on each call


class Unembed(nn.Module):
    """From what the final norm gives to scores before the soft cap, by the embedding's matrix, or by one of its own [d_vocab
    d_model] once weights were folded into it (`process_weights_`)."""

    def __init__(self, embed: Embedding):
        super().__init__()
        self._embed = (embed,)  # in a tuple, so that the weights belong to one module
        self.register_parameter("weight", None)
        self.hook_in, self.hook_out = HookPoint(embed.embedding_dim), HookPoint(embed.num_embeddings)

    matrix = property(lambda self: self._embed[0].weight if self.weight is None else self.weight)

    def forward(self, normalized: Resid) -> Logits:
        return self.hook_out(nn.functional.linear(self.hook_in(normalized), self.matrix))

    W_U = property(lambda self: self.matrix.T)
    b_U = property(lambda self: self.W_U.new_zeros(self.W_U.shape[1]))


class DirectLogits:
    """For a model with `W_U` and `through_final_norm`."""

    @torch.no_grad()
    def direct_logits(self, directions: Acts, tokens: Tensor | None = None) -> Tensor:
        """What directions [n d_model] add to the scores, [n d_vocab] or [n tokens] for some ids, before the norm's division
        and any soft cap; centred over the vocabulary, for no softmax sees a constant."""
        pushed, unembedding = self.through_final_norm(directions), self.W_U.detach().float()
        if tokens is None:
            logits = pushed.to(unembedding.device) @ unembedding
            return logits.sub_(logits.mean(-1, keepdim=True))
        columns = unembedding[:, tokens.to(unembedding.device)] - unembedding.mean(1, keepdim=True)
        return pushed.to(unembedding.device) @ columns


def next_token_loss(logits: Logits, tokens: Tokens, real: Mask, per_token: bool = False) -> Tensor:
    """Cross-entropy in nats of each real token after a real one: the mean, or [batch pos-1] with 0 elsewhere."""
    counted = real[:, 1:] & real[:, :-1]
    losses = cross_entropy(logits[:, :-1][counted].float(), tokens[:, 1:][counted], reduction="none" if per_token else "mean")
    return losses.new_zeros(counted.shape).masked_scatter(counted, losses) if per_token else losses

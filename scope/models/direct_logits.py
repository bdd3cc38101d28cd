"""How a direction of the stream reaches the scores of tokens by the weights alone: through the final norm's gain."""

import torch
from torch import Tensor

from scope.shapes import Acts


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

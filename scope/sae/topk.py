"""TopK: on each token the k greatest pre-activations are the latents, where they are positive, and the others are zero.

BatchTopK: in training the k x n greatest of a batch of n tokens; afterwards a latent fires above a threshold, as JumpReLU's do,
so that a token's latents do not depend on its neighbours. It is written for others as a JumpReLU.

While training, decoder rows may have any norm. Latents then compete by what they add, pre-activation times norm, so that a
row's length decides nothing. At the end the lengths go into the encoder.

Sources: Gao et al. 2024, arXiv:2406.04093; Bussmann et al. 2024, arXiv:2412.06410.
"""

from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor, nn

from scope.sae.base import SAE
from scope.sae.configs.topk import BatchTopKConfig, TopKConfig


class TopKSAE(SAE):
    """The four arrays of every SAE."""

    kind = "topk"
    config: TopKConfig

    def __init__(self, config: TopKConfig, site: str = ""):
        super().__init__(config, site)
        self.free = False
        """Whether rows have any norm just now, and latents compete by what they add."""

    def encode(self, x: Tensor) -> Tensor:
        return self.compete(self.pre_activations(x), self.greatest)

    def greatest(self, sizes: Tensor) -> Tensor:
        """The k greatest of each token, zeros elsewhere."""
        values, ids = sizes.topk(self.config.k, dim=-1, sorted=False)
        return torch.zeros_like(sizes).scatter(-1, ids, torch.relu(values))

    def compete(self, pre: Tensor, choose: Callable[[Tensor], Tensor]) -> Tensor:
        """Pre-activations -> latents, where `choose` keeps the greatest and sets the others to zero."""
        if not self.free:
            return choose(pre)
        norms = self.norms().detach()  # what a latent is does not depend on it: it cancels, in the gradient too
        return choose(pre * norms) / norms

    def norms(self) -> Tensor:
        """[d_sae], of the decoder's rows."""
        return self.W_dec.norm(dim=1).clamp_min(1e-12)

    @torch.no_grad()
    def unit_decoder(self) -> None:
        """At the end of training with free rows: exact, for the lengths were part of the competition. Of any other TopK
        nothing is changed, as scaling its latents would choose others on a token (P24)."""
        if self.free:
            super().unit_decoder()
            self.free = False


class BatchTopKSAE(TopKSAE):
    """A TopK dictionary whose k holds over a batch, with the threshold [d_sae] that stands for it after training."""

    kind = "batch_topk"
    config: BatchTopKConfig
    latent_dims: ClassVar[dict[str, int]] = {**SAE.latent_dims, "threshold": 0}

    def __init__(self, config: BatchTopKConfig, site: str = ""):
        super().__init__(config, site)
        # Followed, not learnt: the same for all latents until decoder norms are folded into it.
        self.threshold = nn.Parameter(torch.zeros(config.d_sae), requires_grad=False)

    def encode(self, x: Tensor) -> Tensor:
        """By the threshold, one token at a time."""
        pre = self.pre_activations(x)
        return torch.relu(pre) * (pre > self.threshold)

    @torch.no_grad()
    def fold(self, mean: Tensor, scale: float) -> None:
        super().fold(mean, scale)
        self.threshold.mul_(scale)

    @torch.no_grad()
    def unit_decoder(self) -> None:
        """Exact, unlike TopK's: with a threshold of its own, scaling a latent changes no decision."""
        self.threshold.mul_(self.norms())
        SAE.unit_decoder(self)
        self.free = False

"""Reads a few latents of a dictionary without computing the rest."""

from collections.abc import Sequence

import torch
from torch import Tensor

from scope.sae.base import SAE
from scope.sae.jumprelu import JumpReLUSAE


class LatentReader:
    """Activations of a few latents, [... d_in] -> [... len(ids)], in float32.

    The other latents of a JumpReLU dictionary are not computed at all; kinds whose latents compete are encoded whole.
    """

    def __init__(self, sae: SAE, ids: Sequence[int]):
        self.sae, self.ids = sae, list(ids)
        self.alone = type(sae) is JumpReLUSAE
        if self.alone and self.ids:
            self.W = sae.W_enc.detach()[:, self.ids].float().contiguous()
            self.b, self.threshold = (p.detach()[self.ids].float() for p in (sae.b_enc, sae.threshold))

    def __call__(self, x: Tensor) -> Tensor:
        if not self.ids:
            return x.new_zeros(*x.shape[:-1], 0)
        if not self.alone:
            return self.sae.encode(x.to(self.sae.W_enc.dtype))[..., self.ids].float()
        pre = x.float() @ self.W.to(x.device) + self.b.to(x.device)
        return torch.relu(pre) * (pre > self.threshold.to(x.device))

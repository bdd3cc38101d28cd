"""Reads a residual stream: a few latents without computing the rest, and the FVU of a dictionary on it."""

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


class Unexplained:
    """Fraction of variance unexplained of a dictionary, over all streams added to it."""

    def __init__(self, sae: SAE):
        self.sae, self.n, self.sum, self.squares, self.errors = sae, 0, torch.zeros(sae.d_in).double(), 0.0, 0.0

    @torch.no_grad()
    def add(self, x: Tensor) -> None:
        """Streams [tok d_in] of tokens other than <bos>, whose norm alone would decide the result."""
        error = x.float() - self.sae.decode(self.sae.encode(x.to(self.sae.W_enc.dtype))).float()
        self.n, self.sum = self.n + len(x), self.sum + x.double().sum(0).cpu()
        self.squares += float(x.double().square().sum())
        self.errors += float(error.double().square().sum())

    def fvu(self) -> float | None:
        """None where fewer than two tokens, or equal ones, were seen."""
        variance = self.squares - float(self.sum.square().sum()) / max(1, self.n)
        return self.errors / variance if self.n > 1 and variance > 0 else None

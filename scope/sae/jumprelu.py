"""JumpReLU: a latent is its pre-activation where that exceeds the latent's own threshold, and zero elsewhere.

Source: Rajamanoharan et al. 2024, arXiv:2407.14435. Training, with the gradient of the threshold: `objectives/jumprelu.py`.
"""

from typing import ClassVar

import torch
from torch import Tensor, nn

from scope.sae.base import SAE
from scope.sae.configs.jumprelu import JumpReLUConfig


class JumpReLUSAE(SAE):
    """The five arrays of a JumpReLU dictionary: those of every SAE, and threshold [d_sae]."""

    kind = "jumprelu"
    config: JumpReLUConfig
    latent_dims: ClassVar[dict[str, int]] = {**SAE.latent_dims, "threshold": 0}

    def __init__(self, config: JumpReLUConfig, site: str = ""):
        super().__init__(config, site)
        self.threshold = nn.Parameter(torch.zeros(config.d_sae))

    def encode(self, x: Tensor) -> Tensor:
        pre = self.pre_activations(x)
        return torch.relu(pre) * (pre > self.threshold)

    @torch.no_grad()
    def fold(self, mean: Tensor, scale: float) -> None:
        super().fold(mean, scale)
        self.threshold.mul_(scale)

    @torch.no_grad()
    def unit_decoder(self) -> None:
        self.threshold.mul_(self.W_dec.norm(dim=1).clamp_min(1e-12))
        super().unit_decoder()

"""Gated: one path decides whether a latent fires, another, with the same encoder directions, how strongly.

    gate = x @ W_enc + b_enc        latents = relu(exp(r_mag) * (x @ W_enc) + b_mag) where gate > 0, else 0

Source: Rajamanoharan et al. 2024, arXiv:2404.16014.
"""

from typing import ClassVar

import torch
from torch import Tensor, nn

from scope.sae.base import SAE
from scope.sae.configs.gated import GatedConfig


class GatedSAE(SAE):
    """`b_enc` is the gate's bias (elsewhere b_gate); `r_mag` and `b_mag` [d_sae] make the magnitude."""

    kind = "gated"
    config: GatedConfig
    latent_dims: ClassVar[dict[str, int]] = {**SAE.latent_dims, "r_mag": 0, "b_mag": 0}

    def __init__(self, config: GatedConfig, site: str = ""):
        super().__init__(config, site)
        self.r_mag = nn.Parameter(torch.zeros(config.d_sae))
        self.b_mag = nn.Parameter(torch.zeros(config.d_sae))

    def encode(self, x: Tensor) -> Tensor:
        magnitude = torch.relu(x @ (self.W_enc * self.r_mag.exp()) + self.b_mag)
        return magnitude * (self.pre_activations(x) > 0)

    @torch.no_grad()
    def fold(self, mean: Tensor, scale: float) -> None:
        super().fold(mean, scale)
        self.b_mag.mul_(scale).sub_((mean @ self.W_enc) * self.r_mag.exp())

    @torch.no_grad()
    def unit_decoder(self) -> None:
        self.b_mag.mul_(self.W_dec.norm(dim=1).clamp_min(1e-12))
        super().unit_decoder()

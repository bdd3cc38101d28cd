"""A transcoder reads one site and predicts another, as an MLP's input and its output; some add an affine map of the input.

It is read and measured here, not trained, and refused wherever a dictionary has to reconstruct what it reads.

Source: Dunefsky et al. 2024, arXiv:2406.11944; with thresholds and a skip, Gemma Scope, arXiv:2408.05147, and its successor.
"""

from typing import ClassVar

import torch
from torch import Tensor, nn

from scope.sae.base import SAE
from scope.sae.configs.transcoder import TranscoderConfig


class Transcoder(SAE):
    """W_enc [d_in d_sae], b_enc and threshold [d_sae], W_dec [d_sae d_out], b_dec [d_out]; with a skip, W_skip [d_out d_in]."""

    kind = "transcoder"
    autoencodes = False
    config: TranscoderConfig
    latent_dims: ClassVar[dict[str, int]] = {**SAE.latent_dims, "threshold": 0}

    def __init__(self, config: TranscoderConfig, site: str = ""):
        super().__init__(config, site)
        self.threshold = nn.Parameter(torch.zeros(config.d_sae))
        if self.d_out != config.d_in:
            self.W_dec = nn.Parameter(torch.empty(config.d_sae, self.d_out))
            self.b_dec = nn.Parameter(torch.zeros(self.d_out))
        if config.skip:
            self.W_skip = nn.Parameter(torch.zeros(self.d_out, config.d_in))

    @property
    def d_out(self) -> int:
        return self.config.d_out or self.config.d_in

    @property
    def site_out(self) -> str:
        return self.config.site_out

    @property
    def writes(self) -> dict[str, int]:
        return {self.site_out: self.d_out}

    def encode(self, x: Tensor) -> Tensor:
        pre = self.pre_activations(x)
        if not self.config.k:
            return torch.relu(pre) * (pre > self.threshold)
        values, ids = pre.topk(self.config.k, dim=-1, sorted=False)
        return torch.zeros_like(pre).scatter(-1, ids, torch.relu(values))

    def forward(self, x: Tensor) -> Tensor:
        """[... d_in] -> what is predicted at `site_out` [... d_out]."""
        predicted = self.decode(self.encode(x))
        return predicted + x @ self.W_skip.T if self.config.skip else predicted

    def fold(self, mean: Tensor, scale: float) -> None:
        raise NotImplementedError("A transcoder has two scales, of what it reads and of what it predicts; none is folded here.")

    @torch.no_grad()
    def unit_decoder(self) -> None:
        if self.config.k:
            return  # scaling latents would choose others on a token
        self.threshold.mul_(self.W_dec.norm(dim=1).clamp_min(1e-12))
        super().unit_decoder()

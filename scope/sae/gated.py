"""Gated: one path decides whether a latent fires, another, with the same encoder directions, how strongly.

    gate = x @ W_enc + b_enc        latents = relu(exp(r_mag) * (x @ W_enc) + b_mag) where gate > 0, else 0

The decision has no gradient; the gate learns from a penalty on relu(gate) and from an auxiliary reconstruction by relu(gate)
through the decoder, which itself does not learn from it. So the penalty does not shrink the latents.

Source: Rajamanoharan et al. 2024, arXiv:2404.16014.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from scope.errors import ConfigError
from scope.sae.base import SAE, drop_lengthening, start_tied, unit_rows
from scope.sae.config import SAEConfig
from scope.sae.control import Control
from scope.shapes import Acts, Scalar


@dataclass(frozen=True, kw_only=True)
class GatedConfig(SAEConfig):
    """A Gated dictionary."""

    target_l0: float = 32.0
    """Latents meant to fire per token. The weight of the penalty is moved during training until this is so."""

    l1_weight: float | None = None
    """A fixed weight of the penalty on the gates, warmed up linearly, instead of a target."""

    start_l0: float = 4.0
    """Latents that fire per token at the start, as a multiple of the target."""

    anneal: float = 0.3
    """Share of the run over which the number of latents per token falls to its target (or a fixed l1_weight rises)."""

    def __post_init__(self):
        super().__post_init__()
        if not 0 < self.target_l0 <= self.d_sae:
            raise ConfigError(f"target_l0 is {self.target_l0:g}; {self.d_sae} latents have an L0 between 0 and {self.d_sae}.")
        if self.l1_weight is not None and self.l1_weight < 0:
            raise ConfigError(f"l1_weight is {self.l1_weight:g}; a negative penalty would reward firing. Give 0 or more.")
        if self.start_l0 < 1 or not 0 <= self.anneal <= 1:
            raise ConfigError("start_l0 must be at least 1, and anneal between 0 and 1.")


class GatedSAE(SAE):
    """`b_enc` is the gate's bias (elsewhere b_gate); `r_mag` and `b_mag` [d_sae] make the magnitude."""

    kind = "gated"
    config: GatedConfig

    def __init__(self, config: GatedConfig, site: str = ""):
        super().__init__(config, site)
        self.r_mag = nn.Parameter(torch.zeros(config.d_sae))
        self.b_mag = nn.Parameter(torch.zeros(config.d_sae))
        self.control = Control(config.target_l0, 0.1, config.start_l0, config.anneal, config.l1_weight)

    def encode(self, x: Tensor) -> Tensor:
        magnitude = torch.relu(x @ (self.W_enc * self.r_mag.exp()) + self.b_mag)
        return magnitude * (self.pre_activations(x) > 0)

    def losses(self, x: Acts) -> dict[str, Scalar]:
        """Squared error per token, the present weight times the sum of the gates, and the squared error by the gates alone."""
        seen = x @ self.W_enc
        gate = seen + self.b_enc
        latents = torch.relu(seen * self.r_mag.exp() + self.b_mag) * (gate > 0)
        opened = torch.relu(gate)
        by_gate = opened @ self.W_dec.detach() + self.b_dec.detach()
        return self.errors(latents, x) | {
            "sparsity": self.control.weight * opened.sum(1).mean(),
            "auxiliary": (by_gate - x).square().sum(1).mean(),
        }

    @torch.no_grad()
    def initialise(self, sample: Acts, seed: int = 0) -> None:
        """Tied unit rows, and gates that open equally often for every latent."""
        c = self.config
        start_tied(self, seed)
        kth = max(1, round(min(0.5, c.start_l0 * c.target_l0 / c.d_sae) * len(sample)))
        for start in range(0, c.d_sae, 1024):  # a slice of latents at a time: the sample times all latents may be large
            pre = sample @ self.W_enc[:, start : start + 1024]
            self.b_enc[start : start + 1024] = -pre.topk(kth, dim=0).values[-1]

    def before_step(self) -> None:
        drop_lengthening(self.W_dec)

    def after_step(self, l0: float, progress: float) -> None:
        unit_rows(self.W_dec)
        self.control.update(l0, progress)

    def training_state(self) -> dict[str, Any]:
        return self.control.state()

    def load_training_state(self, state: dict[str, Any]) -> None:
        self.control.load_state(state)

    def watched(self) -> dict[str, float]:
        return {"l1_weight": self.control.weight}

    @torch.no_grad()
    def fold(self, mean: Tensor, scale: float) -> None:
        super().fold(mean, scale)
        self.b_mag.mul_(scale).sub_((mean @ self.W_enc) * self.r_mag.exp())

    @torch.no_grad()
    def unit_decoder(self) -> None:
        self.b_mag.mul_(self.W_dec.norm(dim=1).clamp_min(1e-12))
        super().unit_decoder()

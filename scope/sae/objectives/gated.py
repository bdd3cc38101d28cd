"""Training of Gated SAEs.

The decision has no gradient; the gate learns from a penalty on relu(gate) and from an auxiliary reconstruction by relu(gate)
through the decoder, which itself does not learn from it. So the penalty does not shrink the latents.

Source: Rajamanoharan et al. 2024, arXiv:2404.16014.
"""

from typing import Any

import torch

from scope.sae.configs.gated import GatedConfig
from scope.sae.gated import GatedSAE
from scope.sae.objectives.base import Objective, drop_lengthening, kth_pre_activation, start_tied, unit_rows
from scope.sae.objectives.l0_control import L0Control
from scope.shapes import Acts, Scalar


class GatedObjective(Objective):
    """The weight of the penalty on the gates is moved until `target_l0` latents fire per token."""

    sae: GatedSAE
    config: GatedConfig
    one_path = False

    def __init__(self, sae: GatedSAE):
        super().__init__(sae)
        c = sae.config
        self.control = L0Control(c.target_l0, 0.1, c.start_l0, c.anneal, c.l1_weight)
        if c.l1_weight is None:
            self.control.weight = self.control.base

    def losses(self, x: Acts) -> dict[str, Scalar]:
        """Squared error per token, the present weight times the sum of the gates, and the squared error by the gates alone."""
        sae = self.sae
        seen = x @ sae.W_enc
        gate = seen + sae.b_enc
        latents = torch.relu(seen * sae.r_mag.exp() + sae.b_mag) * (gate > 0)
        opened = torch.relu(gate)
        by_gate = opened @ sae.W_dec.detach() + sae.b_dec.detach()
        return self.errors(latents, x) | {
            "sparsity": self.control.weight * opened.sum(1).mean(),
            "auxiliary": (by_gate - x).square().sum(1).mean(),
        }

    @torch.no_grad()
    def start(self, sample: Acts, seed: int = 0) -> None:
        """Tied unit rows, and gates that open equally often for every latent."""
        c = self.config
        start_tied(self.sae, seed)
        self.sae.b_enc.copy_(-kth_pre_activation(self.sae, sample, c.start_l0 * c.target_l0 / c.d_sae))

    def before_step(self) -> None:
        drop_lengthening(self.sae.W_dec)

    def after_step(self, l0: float, progress: float) -> None:
        unit_rows(self.sae.W_dec)
        self.control.update(l0, progress)

    def state(self) -> dict[str, Any]:
        return self.control.state()

    def load_state(self, state: dict[str, Any]) -> None:
        self.control.load_state(state)

    def watched(self) -> dict[str, float]:
        return {"l1_weight": self.control.weight}

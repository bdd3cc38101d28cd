"""The reference engine: `objective.losses(x)` and a backward pass. It serves every kind; tests hold the faster ones to it."""

from typing import Any

import torch

from scope.sae.engines.base import Batch, Losses
from scope.shapes import Acts


class Autograd:
    def __init__(self, objective: Losses):
        self.objective, self.sae = objective, objective.sae

    def gradients(self, x: Acts) -> Batch:
        self.sae.zero_grad(set_to_none=True)
        terms = self.objective.losses(x)
        torch.stack(list(terms.values())).sum().backward()
        with torch.no_grad():
            latents = self.sae.encode(x)
            fired, surplus = (latents > 0).sum(0), self.sae.decode(latents) - x
            error = surplus.square().sum(1).mean().item()
            self.objective.observe(x, surplus, fired)
        l0 = fired.sum().item() / len(x)
        return Batch({name: term.item() for name, term in terms.items()}, error, l0, fired)

    def state(self) -> dict[str, Any]:
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        pass

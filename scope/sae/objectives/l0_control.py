"""The weight of a sparsity penalty, moved until the wanted number of latents fires."""

import math
from typing import Any

GAIN = 20.0
"""How fast the weight follows: e-folds per run and e-fold of L0 away from the target."""

_STATE = ("weight", "base", "mean_l0", "progress", "centre", "lead")


class L0Control:
    """`weight` for the next step.

    Towards a target L0, `base` grows while the running mean of L0 lies above the target of the moment and falls while below,
    and the weight answers at once too. That target falls geometrically from `start` times the final one over the first
    `anneal` of the run. `usual` is a weight of the right order. A quadratic penalty pulls by itself, to a little above its
    centre; so there the centre is moved instead, and the weight stays `usual`. A fixed weight rises linearly over `anneal`.
    """

    def __init__(
        self, target: float, usual: float, start: float, anneal: float, fixed: float | None = None, quadratic: bool = False
    ):
        self.target, self.usual, self.start, self.anneal = target, usual, start, anneal
        self.fixed, self.quadratic = fixed, quadratic
        self.weight, self.base, self.mean_l0, self.progress = 0.0, usual / 10, 0.0, 0.0
        self.centre = target
        self.lead = 0.0
        """Distance of the centre from the target, as a share of it."""

    def update(self, l0: float, progress: float) -> None:
        """After a step on a batch of this L0, at this share of the run."""
        done, self.progress = progress - self.progress, progress
        self.mean_l0 = l0 if self.mean_l0 == 0.0 else 0.9 * self.mean_l0 + 0.1 * l0
        annealed = min(1.0, progress / self.anneal) if self.anneal else 1.0
        if self.fixed is not None:
            self.weight = self.fixed * annealed
            return
        target = self.target * self.start ** (1.0 - annealed)
        off = max(-1.0, min(1.0, math.log(max(self.mean_l0, 1e-3) / target)))
        gain = max(0.003, min(0.1, GAIN * done))
        if self.quadratic:
            self.lead = max(-10.0, min(1.0, self.lead - gain * off))
            self.centre, self.weight = target * (1.0 + self.lead), self.usual
            return
        self.base = max(1e-3 * self.usual, min(1e3 * self.usual, self.base * math.exp(gain * off)))
        self.weight = self.base * math.exp(off)

    def state(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in _STATE}

    def load_state(self, state: dict[str, Any]) -> None:
        for name in _STATE:
            setattr(self, name, state.get(name, getattr(self, name)))  # 0.1.0 wrote no centre and lead where they do not move

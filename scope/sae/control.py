"""The weight of a sparsity penalty, moved until the wanted number of latents fires."""

import math
from typing import Any

GAIN = 20.0
"""How fast the weight follows: e-folds per run and e-fold of L0 away from the target."""


class Control:
    """`weight` for the next step. Towards a target L0 it grows while the running mean of L0 lies above the target of the
    moment and falls while below; that target falls geometrically from `start` times the final one over the first `anneal` of
    the run. A fixed weight rises linearly over the same share.
    """

    def __init__(self, target: float, usual: float, start: float, anneal: float, fixed: float | None = None):
        self.target, self.usual, self.start, self.anneal, self.fixed = target, usual, start, anneal, fixed
        self.base, self.mean_l0, self.progress = usual / 10, 0.0, 0.0
        self.weight = 0.0 if fixed is not None else self.base

    def update(self, l0: float, progress: float) -> None:
        done, self.progress = progress - self.progress, progress
        self.mean_l0 = l0 if self.mean_l0 == 0.0 else 0.9 * self.mean_l0 + 0.1 * l0
        annealed = min(1.0, progress / self.anneal) if self.anneal else 1.0
        if self.fixed is not None:
            self.weight = self.fixed * annealed
            return
        target = self.target * self.start ** (1.0 - annealed)
        off = max(-1.0, min(1.0, math.log(max(self.mean_l0, 1e-3) / target)))
        self.base *= math.exp(max(0.003, min(0.1, GAIN * done)) * off)
        self.base = max(1e-3 * self.usual, min(1e3 * self.usual, self.base))
        self.weight = self.base * math.exp(off)

    def state(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("weight", "base", "mean_l0", "progress")}

    def load_state(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            setattr(self, name, value)

"""An engine fills `.grad` of every parameter for one batch and says what the batch looked like."""

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from scope.shapes import Acts


@dataclass
class Batch:
    """What one batch looked like. `error` is the mean squared error per token; `fired` counts tokens per latent."""

    terms: dict[str, float]
    error: float
    l0: float
    fired: Tensor
    candidates: float = 0.0
    """Latents per token that took part in the gradients."""


@runtime_checkable
class Engine(Protocol):
    def gradients(self, x: Acts) -> Batch:
        """Fill `.grad` of every parameter with the gradient of the summed losses for this batch."""
        ...

    def state(self) -> dict[str, Any]:
        """What the next call depends on beside the dictionary; saved with every checkpoint."""
        ...

    def load_state(self, state: dict[str, Any]) -> None: ...

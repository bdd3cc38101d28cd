"""An engine fills `.grad` of every parameter for one batch and says what the batch looked like."""

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from scope.sae.base import SAE
from scope.shapes import Acts, Scalar


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
class Losses(Protocol):
    """The part of a training objective that an engine reads: a dictionary and the terms to minimise (`objectives/base.py`)."""

    sae: SAE

    def losses(self, x: Acts) -> dict[str, Scalar]: ...

    def observe(self, x: Acts, surplus: Acts, fired: Tensor) -> None: ...


@runtime_checkable
class Engine(Protocol):
    def gradients(self, x: Acts) -> Batch:
        """Fill `.grad` of every parameter with the gradient of the summed losses for this batch."""
        ...

    def state(self) -> dict[str, Any]:
        """What the next call depends on beside the dictionary; saved with every checkpoint."""
        ...

    def load_state(self, state: dict[str, Any]) -> None: ...

"""Batches of activations for a trainer, from anywhere, with a position that can be saved."""

import warnings
from collections.abc import Iterator
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from scope.errors import ConfigError
from scope.shapes import Acts


@runtime_checkable
class Batches(Protocol):
    """Endless or not, each iteration continues after the last batch; `state_dict` is that position.

    Of several sites a batch is a tuple, in the order of the attribute `sites`, whose rows belong to the same tokens. A method
    `where(row, n)`, if there is one, says in words where row `row` of the last batch, of n, comes from.
    """

    def __iter__(self) -> Iterator[Acts | tuple[Acts, ...]]: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class OutliersWarning(UserWarning):
    """Rows of huge norm are left out of the training."""


class TensorBatches:
    """Rows of a tensor in memory, in a new seeded order each time through, without end. A remainder joins no batch.

    Rows whose norm exceeds `outlier_times` the median norm are left out, as of a recording, and counted in `left_out`; 0 leaves
    out none. One such row can decide a mean, a variance or a step.
    """

    def __init__(self, rows: Tensor, batch_size: int, seed: int = 0, outlier_times: float = 10.0):
        norms = rows.float().norm(dim=1)
        outliers = norms > outlier_times * norms.median() if outlier_times and norms.median() > 0 else norms < 0
        self.left_out = int(outliers.sum())
        if self.left_out:
            share = f"{self.left_out:,} of {len(rows):,} rows have norms above {outlier_times:g} x the median"
            warnings.warn(f"{share}: they are not trained on. outlier_times=0 keeps them.", OutliersWarning, stacklevel=2)
            rows = rows[~outliers]
        if batch_size > len(rows):
            raise ConfigError(f"batch_size is {batch_size}, and there are only {len(rows)} activations to take it from.")
        self.rows, self.batch_size, self.seed = rows, batch_size, seed
        self.epoch, self.at = 0, 0

    @property
    def n_rows(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Acts]:
        while True:
            order = torch.randperm(len(self.rows), generator=torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch))
            while self.at + self.batch_size <= len(self.rows):
                picked = order[self.at : self.at + self.batch_size]
                self.at += self.batch_size
                yield self.rows[picked]
            self.epoch, self.at = self.epoch + 1, 0

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self.epoch, "at": self.at, "seed": self.seed, "batch_size": self.batch_size}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if (state["seed"], state["batch_size"]) != (self.seed, self.batch_size):
            raise ConfigError(
                f"This checkpoint's data position was saved with seed {state['seed']} and batch_size {state['batch_size']}; "
                f"now they are {self.seed} and {self.batch_size}.\n  Resume with the saved settings."
            )
        self.epoch, self.at = state["epoch"], state["at"]

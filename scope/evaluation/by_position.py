"""Scores by position in the context: the first tokens of a text are reconstructed worse than later ones (pitfall P8)."""

from typing import Any

import torch
from torch import Tensor

from scope.evaluation.tally import Resampled

SINGLE = 4
"""Positions up to this one are groups of one; each later group is twice as wide as the one before."""


def group_of(positions: Tensor) -> Tensor:
    """0, 1, 2, 3, 4, then 5 for 5-8, 6 for 9-16, and so on."""
    later = SINGLE + (positions.double().clamp_min(1) / SINGLE).log2().ceil().long()
    return torch.where(positions <= SINGLE, positions, later)


def ends_of(group: int) -> tuple[int, int]:
    """First and last position of a group."""
    return (group, group) if group <= SINGLE else (SINGLE * 2 ** (group - SINGLE - 1) + 1, SINGLE * 2 ** (group - SINGLE))


class PositionSums:
    """Sums of scores by unit and by group of positions."""

    def __init__(self, n_units: int, context: int):
        self.n_units = n_units
        self.n_groups = int(group_of(torch.tensor([max(0, context - 1)])).item()) + 1
        self.sums: dict[str, Tensor] = {}

    def add(self, positions: Tensor, units: Tensor, **values: Tensor) -> None:
        """Values [tok] by name, of tokens at positions [tok]."""
        at = (units * self.n_groups + group_of(positions)).cpu()
        for name, value in values.items():
            if name not in self.sums:
                self.sums[name] = torch.zeros(self.n_units * self.n_groups, dtype=torch.float64)
            self.sums[name].index_add_(0, at, value.double().cpu())

    def result(self, resampled: Resampled) -> list[dict[str, Any]]:
        """A row a group: FVU (about the mean of all counted tokens), L0, delta loss, intervals, how many tokens."""
        table = {name: value.view(self.n_units, self.n_groups) for name, value in self.sums.items()}
        drawn = {name: resampled.sums(value) for name, value in table.items()}
        rows = []
        for group in range(self.n_groups):
            total = {name: value[:, group].sum().item() for name, value in table.items()}
            if not total["tokens"]:
                continue
            first, last = ends_of(group)
            row: dict[str, Any] = {"from": first, "to": last, "tokens": int(total["tokens"]), "interval": {}}
            for name, over, under in (("fvu", "error", "spread"), ("l0", "l0", "tokens"), ("delta_loss", "loss", "predicted")):
                row[name] = total[over] / total[under] if total[under] else None
                row["interval"][name] = resampled.interval(drawn[over][:, group] / drawn[under][:, group])
            rows.append(row | {"counted": group > 0})
        return rows

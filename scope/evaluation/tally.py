"""Sums of scores by document, so that every score has an interval over documents.

Tokens of one document are not independent, so the bootstrap draws documents, not tokens (pitfall P40). All sums are float64.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from scope.errors import ConfigError
from scope.shapes import Acts

Interval = tuple[float, float] | None
_LARGEST = 20_000_000  # numbers that an interval's table may hold; without one beyond that


class Resampled:
    """Bootstrap: units drawn with replacement, `draws` times. A row of `weights` counts how often each unit was drawn."""

    def __init__(self, n_units: int, seed: int = 0, draws: int = 1000, level: float = 0.95):
        if n_units < 2:
            raise ConfigError(f"There are {n_units} documents or contexts; an interval needs two at least.")
        drawn = torch.randint(n_units, (draws, n_units), generator=torch.Generator().manual_seed(seed))
        ones = torch.ones(drawn.shape, dtype=torch.float64)
        self.weights = torch.zeros(draws, n_units, dtype=torch.float64).scatter_add_(1, drawn, ones)
        self.level = level

    def sums(self, by_unit: Tensor) -> Tensor:
        """[unit ...] -> [draw ...]."""
        return torch.tensordot(self.weights, by_unit.double(), dims=1)

    def ratio(self, numerators: Tensor, denominators: Tensor) -> Interval:
        return self.interval(self.sums(numerators) / self.sums(denominators))

    def interval(self, values: Tensor) -> Interval:
        """The middle `level` of one value a draw; None where no draw has a value."""
        values = values[torch.isfinite(values)]
        if not len(values):
            return None
        ends = torch.tensor([(1 - self.level) / 2, (1 + self.level) / 2], dtype=torch.float64)
        low, high = values.quantile(ends).tolist()
        return low, high


@dataclass
class Tally:
    """The sums from which FVU, cosine and the other scores of one reconstruction follow, by unit.

    `centre` is subtracted from activations while summing. FVU, pooled and by dimension, is about the true mean of the tokens
    whatever the centre; FVU by token is about the centre.
    """

    centre: Tensor
    n_units: int = 1
    by_dimension: bool = True
    sums: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self):
        self.centre = self.centre.double()
        self.by_dimension = self.by_dimension and self.n_units * len(self.centre) <= _LARGEST

    def add(self, x: Acts, x_hat: Acts, units: Tensor | None = None, l0: Tensor | None = None) -> None:
        """Add tokens. `units` [tok] are the indices of their documents; 0 without."""
        if units is None:
            units = torch.zeros(len(x), dtype=torch.long, device=x.device)
        wide, wide_hat = x.double(), x_hat.double()
        d, e = wide - self.centre.to(x.device), wide - wide_hat
        spread, error = d.square().sum(1), e.square().sum(1)
        length, own = wide_hat.square().sum(1), wide.square().sum(1)
        new = {
            "n": torch.ones_like(error),
            "spread": spread,
            "error": error,
            "per_token": error / spread.clamp_min(1e-30),
            "cosine": cosine_similarity(wide, wide_hat, dim=1),
            "norm_ratio": (length / own.clamp_min(1e-30)).sqrt(),
            "length": length,
            "dot": (wide * wide_hat).sum(1),
            "x_d": d,
            "xx_d": d.square(),
            "error_d": e.square(),
        }
        if l0 is not None:
            new["l0"] = l0.double()
        for name, values in new.items():
            self._add(name, values, units)

    def _add(self, name: str, values: Tensor, units: Tensor) -> None:
        apart = values.dim() == 1 or self.by_dimension
        if name not in self.sums:
            self.sums[name] = torch.zeros(self.n_units if apart else 1, *values.shape[1:], dtype=torch.float64)
        self.sums[name].index_add_(0, units.cpu() if apart else torch.zeros_like(units, device="cpu"), values.cpu())

    @property
    def n(self) -> int:
        return int(self.sums["n"].sum()) if self.sums else 0

    def result(self) -> dict[str, float | None]:
        """The scores over all tokens. `length_bias` is None where every reconstruction is zero.

        Raises:
            ConfigError: all tokens are equal, so that there is no variance to explain.
        """
        total = {name: value.sum(0) for name, value in self.sums.items()}
        scores = {name: _value(made) for name, made in self._scores(total).items()}
        if scores["fvu"] is None:
            raise ConfigError(f"All {self.n} tokens are equal, so there is no variance to explain.")
        return scores

    def intervals(self, resampled: Resampled) -> dict[str, Interval]:
        """95 % intervals of the same scores. Without room for a table by dimension, pooled FVU is about the centre alone."""
        drawn = {name: resampled.sums(s) for name, s in self.sums.items() if s.dim() == 1 or self.by_dimension}
        return {name: resampled.interval(made) for name, made in self._scores(drawn).items()}

    def _scores(self, s: dict[str, Tensor]) -> dict[str, Tensor]:
        """Scores from sums, over all units or one value a draw."""
        n = s["n"]
        spread = s["spread"] - s["x_d"].square().sum(-1) / n if "x_d" in s else s["spread"]
        scores = {
            "fvu": s["error"] / torch.where(spread > 1e-12 * s["spread"], spread, torch.nan),
            "fvu_per_token": s["per_token"] / n,
            "cosine": s["cosine"] / n,
            "norm_ratio": s["norm_ratio"] / n,
            "length_bias": s["length"] / torch.where(s["dot"] != 0, s["dot"], torch.nan),
        }
        if "xx_d" in s:
            by_d = s["xx_d"] - s["x_d"].square() / n[..., None]
            kept = by_d > 1e-12 * s["xx_d"]
            ratios = torch.where(kept, s["error_d"] / by_d, 0.0)
            scores["fvu_per_dimension"] = ratios.sum(-1) / kept.sum(-1)
        if "l0" in s:
            scores["l0"] = s["l0"] / n
        return scores


def _value(score: Tensor) -> float | None:
    number = score.item()
    return number if number == number else None  # NaN: there is none


class Histogram:
    """How often each whole number was seen, by unit: what quantiles, and their intervals, are read from."""

    def __init__(self, n_units: int):
        self.n_units = n_units
        self.values: list[Tensor] = []
        self.units: list[Tensor] = []

    def add(self, values: Tensor, units: Tensor) -> None:
        self.values.append(values.cpu())
        self.units.append(units.cpu())

    def quantiles(self, shares: tuple[float, ...], resampled: Resampled) -> list[tuple[float, Interval]]:
        """For each share, the least number that so many tokens do not exceed, and its interval."""
        levels, where = torch.cat(self.values).unique(return_inverse=True)
        total = torch.bincount(where, minlength=len(levels)).double()
        drawn = None
        if self.n_units * len(levels) <= _LARGEST:
            at = torch.cat(self.units) * len(levels) + where
            table = torch.bincount(at, minlength=self.n_units * len(levels)).view(self.n_units, -1)
            drawn = resampled.sums(table)
        found = []
        for share in shares:
            interval = None if drawn is None else resampled.interval(_quantile(levels, drawn, share))
            found.append((_quantile(levels, total[None], share).item(), interval))
        return found


def _quantile(levels: Tensor, counts: Tensor, share: float) -> Tensor:
    """One value a row of counts."""
    reached = counts.cumsum(-1)
    return levels[(reached < share * reached[:, -1:] - 1e-9).sum(-1)].double()


def by_unit(values: Tensor, units: Tensor, n_units: int) -> Tensor:
    """Sums [unit] of values [tok]."""
    return torch.zeros(n_units, dtype=torch.float64).index_add_(0, units.cpu(), values.double().cpu())

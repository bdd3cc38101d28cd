"""Breakdowns for the evaluated SAE only (not for the baselines): without outlier tokens, by position, firing statistics."""

from typing import Any

import torch
from torch import Tensor

from scope.evaluation.by_position import PositionSums
from scope.evaluation.contexts import Text
from scope.evaluation.latent_statistics import Firing
from scope.evaluation.metrics import OUTLIER_TIMES, l0
from scope.evaluation.tally import Histogram, Interval, Resampled, Tally
from scope.sae.base import SAE
from scope.shapes import Mask

"""Norm of an outlier token, in medians of the counted tokens. Scores are given with and without outliers (P2)."""


def variants_of(real: Mask, mask: Mask) -> dict[str, Mask]:
    """The masks with position 0 counted as well, and with special tokens too; `real` is False for padding."""
    with_bos = mask.clone()
    with_bos[:, 0] = True
    return {"with_bos": with_bos, "with_special": real}


class SaeBreakdown:
    """Sums of the breakdowns. `centres` are the means of the tokens that each variant counts; `above` is an outlier's norm."""

    def __init__(self, sae: SAE, mean: Tensor, centres: dict[str, Tensor], above: float, text: Text):
        self.sae, self.mean, self.above, self.n = sae, mean, above, 0
        self.variants = {name: Tally(centre, text.n_units) for name, centre in centres.items()}
        self.usual = Tally(mean, text.n_units)
        self.firing = Firing(sae.d_sae)
        self.l0s = Histogram(text.n_units)
        self.curve = PositionSums(text.n_units, text.tokens.shape[1])

    def add(self, x: Tensor, real: Mask, mask: Mask, units: Tensor) -> tuple[Tensor, Tensor]:
        """Add activations [batch pos d_in]; `real` is False for padding, `mask` True where a token counts, `units` documents.

        Returns reconstructions [tok d_in] and L0 [tok] of the counted tokens.
        """
        latents = self.sae.encode(x[real])
        x_hat, firing, of, counted = self.sae.decode(latents), l0(latents), units[real], mask[real]
        for name, wanted in variants_of(real, mask).items():
            kept = wanted[real]
            self.variants[name].add(x[wanted], x_hat[kept], of[kept], firing[kept])
        found = x[real]
        error = (found.double() - x_hat.double()).square().sum(1)
        spread = (found.double() - self.mean.to(x.device)).square().sum(1)
        where = torch.arange(x.shape[1], device=x.device).expand_as(mask)[real]
        with_bos = variants_of(real, mask)["with_bos"][real]  # position 0 appears in the scores by position alone
        sums = {"tokens": torch.ones_like(error), "error": error, "spread": spread, "l0": firing}
        self.curve.add(where[with_bos], of[with_bos], **{name: value[with_bos] for name, value in sums.items()})
        usual = counted & (found.norm(dim=1) <= self.above)
        if usual.any():
            self.usual.add(found[usual], x_hat[usual], of[usual], firing[usual])
        self.n += int(counted.sum())
        self.firing.add(latents[counted], of[counted])
        self.l0s.add(firing[counted], of[counted])
        return x_hat[counted], firing[counted]

    def add_losses(self, target: Mask, units: Tensor, delta: Tensor) -> None:
        """Add the rise of the loss at each position [batch pos-1] whose prediction counts."""
        where = torch.arange(target.shape[1], device=target.device).expand_as(target)[target]
        self.curve.add(where, units[:, :-1][target], predicted=torch.ones_like(delta), loss=delta)

    def scores(self, resampled: Resampled) -> dict[str, Any]:
        (half, _), (most, _) = self.l0s.quantiles((0.5, 0.95), resampled)
        found: dict[str, Any] = {"l0_median": half, "l0_p95": most}
        for name, tally in self.variants.items():
            found[name] = _scores_of(tally, resampled)
        usual = _scores_of(self.usual, resampled) if self.usual.n > 1 else {}
        rule = f"norm > {OUTLIER_TIMES:g} x the median of the counted tokens"
        found["without_outliers"] = usual | {"left_out": self.n - self.usual.n, "rule": rule, "above": self.above}
        return found

    def intervals(self, resampled: Resampled) -> dict[str, Interval]:
        (_, half), (_, most) = self.l0s.quantiles((0.5, 0.95), resampled)
        return {"l0_median": half, "l0_p95": most}


def _scores_of(tally: Tally, resampled: Resampled) -> dict[str, Any]:
    return tally.result() | {"tokens": tally.n, "interval": tally.intervals(resampled)}

"""Firing statistics of latents on a text, and the geometry of their directions."""

from typing import Any

import torch
from torch import Tensor

from scope.evaluation.tally import Interval, Resampled
from scope.null_seeds import generator
from scope.sae.base import SAE


class Firing:
    """Counts of the tokens on which each latent fired, by unit (document)."""

    def __init__(self, d_sae: int):
        self.counts = torch.zeros(d_sae, dtype=torch.long)
        self.keys = torch.empty(0, dtype=torch.long)  # unit * d_sae + latent, sorted
        self.times = torch.empty(0, dtype=torch.long)

    def add(self, latents: Tensor, units: Tensor) -> None:
        """Add latents [tok d_sae]; `units` [tok] is the document of each token."""
        token, latent = (latents > 0).nonzero(as_tuple=True)
        self.counts += torch.bincount(latent, minlength=len(self.counts)).cpu()
        keys = torch.cat([self.keys, units.cpu()[token.cpu()] * len(self.counts) + latent.cpu()])
        times = torch.cat([self.times, torch.ones(len(token), dtype=torch.long)])
        self.keys, where = keys.unique(return_inverse=True)
        self.times = torch.zeros(len(self.keys), dtype=torch.long).index_add_(0, where, times)

    def result(self, tokens: Tensor, dense_above: float, resampled: Resampled) -> dict[str, Any]:
        """Shares and a histogram of density. `tokens` [unit] are those counted in each unit."""
        density = self.counts.double() / tokens.sum()
        fired = density[density > 0].log10()
        edges = torch.arange(-6, 0.51, 0.5, dtype=torch.float64)
        histogram = torch.histogram(fired.clamp(-6, 0), edges).hist.long().tolist() if len(fired) else []
        return {
            "d_sae": len(density),
            "never_fired": (self.counts == 0).double().mean().item(),
            "dense": (density > dense_above).double().mean().item(),
            "dense_above": dense_above,
            "interval": {"never_fired": self._unseen(len(tokens)), "dense": self._dense(tokens, dense_above, resampled)},
            "density_log10_edges": edges.tolist(),
            "density_log10_counts": histogram,
        }

    def _unseen(self, n_units: int) -> Interval:
        """Interval of the share of silent latents: from what much more text would leave to what this text leaves.

        Drawing documents anew only ever hides latents, so a bootstrap says nothing here. Chao (1984): of the kinds not seen,
        at least once^2 / (2 twice) exist, by how many were seen in one unit and in two.
        """
        units = torch.bincount(self.keys % len(self.counts), minlength=len(self.counts))
        once, twice = int((units == 1).sum()), int((units == 2).sum())
        yet = (n_units - 1) / n_units * (once * once / (2 * twice) if twice else once * (once - 1) / 2)
        silent = int((units == 0).sum())
        return max(0.0, silent - yet) / len(units), silent / len(units)

    def _dense(self, tokens: Tensor, dense_above: float, resampled: Resampled) -> Interval:
        near = (self.counts.double() / tokens.sum() > dense_above / 4).nonzero().flatten()  # others never come to it
        place = torch.full((len(self.counts),), -1).index_copy_(0, near, torch.arange(len(near)))
        latent, unit = self.keys % len(self.counts), self.keys // len(self.counts)
        kept = place[latent] >= 0
        table = torch.zeros(len(tokens), len(near), dtype=torch.float64)
        table.index_put_((unit[kept], place[latent[kept]]), self.times[kept].double())
        drawn = resampled.sums(table) / resampled.sums(tokens)[:, None]
        return resampled.interval((drawn > dense_above).double().sum(1) / len(self.counts))


def geometry(sae: SAE) -> dict[str, Any]:
    """Cosines between decoder rows and with the encoder, beside those of random rows; without intervals, since the weights
    alone decide them."""
    rows = _unit(sae.W_dec.detach().float().cpu())
    norms = sae.W_dec.detach().float().norm(dim=1)
    near = nearest(rows, rows, itself=True)
    random = _unit(torch.randn(rows.shape, generator=generator("directions")))
    chance = nearest(random[:2048], random, itself=True)
    encoder = sae.W_enc.detach().float().cpu()
    return {
        "nearest_cosine_median": near.median().item(),
        "nearest_cosine_median_random": chance.median().item(),
        "nearest_cosine_above_0.9": (near > 0.9).double().mean().item(),
        "encoder_decoder_cosine_median": torch.cosine_similarity(encoder.T, rows, dim=1).median().item(),
        "decoder_norm": {"min": norms.min().item(), "median": norms.median().item(), "max": norms.max().item()},
    }


def shared(sae: SAE, other: SAE) -> dict[str, float]:
    """How many directions two SAEs share: the greatest cosine of each decoder row with the other's rows, beside random rows."""
    rows, theirs = (_unit(s.W_dec.detach().float().cpu()) for s in (sae, other))
    random = _unit(torch.randn(theirs.shape, generator=generator("directions")))
    found, chance = nearest(rows, theirs), nearest(rows[:2048], random)
    return {
        "cosine_median": found.median().item(),
        "cosine_median_random": chance.median().item(),
        "cosine_above_0.7": (found > 0.7).double().mean().item(),
        "cosine_above_0.7_random": (chance > 0.7).double().mean().item(),
    }


def nearest(rows: Tensor, others: Tensor, itself: bool = False) -> Tensor:
    """Greatest cosine of each unit row with one of the others; `itself` leaves out the row's own place among them."""
    if itself and len(others) < 2:
        return torch.zeros(len(rows))
    found = []
    for start in range(0, len(rows), 1024):
        cosines = rows[start : start + 1024] @ others.T
        if itself:
            own = torch.arange(len(cosines))
            cosines[own, own + start] = -1.0
        found.append(cosines.amax(1))
    return torch.cat(found)


def _unit(rows: Tensor) -> Tensor:
    return rows / rows.norm(dim=1, keepdim=True).clamp_min(1e-12)

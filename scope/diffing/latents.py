"""Tests which latents of the base's SAE moved more than they do when only the text is drawn anew.

The statistic of a latent is its mean activation over all tokens; it moved by `tuned - base` on the same text. The null draws
the documents of the text twice with replacement and takes the base's mean on the one minus that on the other. Each latent's
moves are divided by the null's root mean square (at least what one firing more or less would do); a latent moved where this
z exceeds what the largest |z| of all latents exceeds in a share `level` of the redraws. That is the max-T correction of
Westfall and Young (1993) for testing every latent: the chance of any false one at all is `level`, whatever depends on what.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from scope.null_seeds import generator

_BLOCK = 100


@dataclass(frozen=True, kw_only=True)
class MovedLatents:
    """A value for each latent, and the threshold that |z| is held against."""

    base: Float[np.ndarray, " latent"]
    """Mean activation over all tokens in the base."""

    tuned: Float[np.ndarray, " latent"]
    spread: Float[np.ndarray, " latent"]
    """Root mean square of the move when only the text is drawn anew."""

    z: Float[np.ndarray, " latent"]
    p: Float[np.ndarray, " latent"]
    """Share of the redraws in which any latent moves as far (family-wise)."""

    threshold: float
    by_chance: float
    """Latents beyond the threshold in further redraws, in the mean: what a base against itself on other text gives."""

    any_by_chance: float
    """Share of further redraws with any latent beyond the threshold."""


def moved_latents(
    base: Float[Tensor, "unit latent"],
    tuned: Float[Tensor, "unit latent"],
    firing: Float[Tensor, " latent"],
    tokens: Float[Tensor, " unit"],
    redraws: int,
    level: float,
    seed: int = 0,
) -> MovedLatents:
    """The move of every latent beside the null; `base` and `tuned` are sums of activations by document, `firing` counts the
    tokens on which a latent fires in either."""
    before, after, n = base.double(), tuned.double(), tokens.double()
    total = n.sum()
    move = (after.sum(0) - before.sum(0)) / total
    squares = sum(block.square().sum(0) for block in _redrawn(before, n, redraws, "diff latents", seed))
    one_firing = (before.sum(0) + after.sum(0)) / firing.double().clamp_min(1) / total
    spread = torch.maximum((squares / redraws).sqrt(), one_firing * 2**0.5).clamp_min(1e-30)
    z = move / spread
    largest = torch.cat([(block / spread).abs().amax(1) for block in _redrawn(before, n, redraws, "diff latents", seed)])
    threshold = largest.quantile(1 - level).item()
    further = _redrawn(before, n, redraws, "diff latents again", seed)
    beyond = torch.cat([((block / spread).abs() > threshold).sum(1) for block in further])
    at_least = redraws - torch.searchsorted(largest.sort().values, z.abs().contiguous())
    return MovedLatents(
        base=(before.sum(0) / total).numpy(),
        tuned=(after.sum(0) / total).numpy(),
        spread=spread.numpy(),
        z=z.numpy(),
        p=((1 + at_least) / (1 + redraws)).numpy(),
        threshold=threshold,
        by_chance=beyond.double().mean().item(),
        any_by_chance=(beyond > 0).double().mean().item(),
    )


def _redrawn(sums: Tensor, tokens: Tensor, redraws: int, null: str, seed: int) -> Iterator[Tensor]:
    """Blocks [redraw latent] of the mean activation on documents drawn with replacement, minus that on others drawn so."""
    numbers, n = generator(null, seed), len(tokens)
    for at in range(0, redraws, _BLOCK):
        some = min(_BLOCK, redraws - at)
        drawn = torch.randint(n, (2 * some, n), generator=numbers)
        weights = torch.zeros(2 * some, n, dtype=torch.float64).scatter_add_(
            1, drawn, torch.ones_like(drawn, dtype=torch.float64)
        )
        means = weights @ sums / (weights @ tokens)[:, None]
        yield means[:some] - means[some:]

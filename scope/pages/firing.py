"""On which share of an index's pages and vectors each latent fires: those that never do, and those that fire everywhere."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from scope.circuits.tables import html_table
from scope.pages.head import check_sae, encode, rows_of_pages
from scope.progress import OnProgress
from scope.result import Result
from scope.sae.base import SAE
from scope.shapes import Acts, PerToken

PerLatent = Float[np.ndarray, "d_sae"]
EVERYWHERE = 0.95
"""Share of pages from which on a latent counts as everywhere, where no other is given."""


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Firing(Result):
    """How often the latents of an SAE fire in an index."""

    bars = ("latent", "pages")

    site: str
    n_pages: int
    n_vectors: int
    pages: PerLatent
    """Share of the pages on which each latent fires at least once."""

    vectors: PerLatent
    """Share of the vectors at which each latent fires."""

    mean: PerLatent
    """The mean activation where it fires; 0 where it never does."""

    everywhere_from: float = EVERYWHERE

    @property
    def dead(self) -> list[int]:
        """Latents that fire nowhere in the index."""
        return np.flatnonzero(self.vectors == 0).tolist()

    @property
    def everywhere(self) -> list[int]:
        """Latents that fire on nearly every page: they tell no page from another."""
        return np.flatnonzero(self.pages >= self.everywhere_from).tolist()

    def like(self, latents: list[int], draws: int, seed: int) -> list[list[int]]:
        """Random sets of other latents, each member of about the firing rate of the one in its place."""
        from scope.null_seeds import null_seed

        rng = np.random.default_rng(null_seed("latents of equal firing rate", seed))
        others = np.setdiff1d(np.flatnonzero(self.vectors > 0), latents)
        sets = []
        for _ in range(draws):
            chosen: list[int] = []
            for latent in latents:
                free = np.setdiff1d(others, chosen)
                if not len(free):
                    break
                distance = np.abs(np.log(self.vectors[free] / max(self.vectors[latent], 1 / self.n_vectors)))
                chosen.append(int(rng.choice(free[np.argsort(distance, kind="stable")[:8]])))
            sets.append(chosen)
        return sets

    def rarity(self, sae: SAE, x: Acts) -> PerToken:
        """For each row of a page, the sum over its latents of activation x log 1 / share of the pages on which they fire."""
        weights = -torch.log(torch.from_numpy(self.pages).clamp_min(1 / max(1, self.n_pages)))
        return (encode(sae, x) @ weights).float()

    def to_frame(self) -> Any:
        """A row per latent."""
        import pandas as pd

        return pd.DataFrame(
            {"latent": range(len(self.pages)), "pages": self.pages, "vectors": self.vectors, "mean activation": self.mean}
        )

    def _lines(self) -> list[str]:
        n = len(self.pages)
        return [
            f"{n:,} latents of {self.site} on {self.n_pages:,} pages ({self.n_vectors:,} vectors)",
            f"{len(self.dead):,} fire nowhere ({len(self.dead) / n:.1%}); {len(self.everywhere):,} fire on at least "
            f"{self.everywhere_from:.0%} of the pages ({len(self.everywhere) / n:.1%})",
        ]

    def _rows(self) -> list[tuple[str, ...]]:
        order = np.lexsort((-self.vectors, -self.pages))[:12]
        return [(str(i), f"{self.pages[i]:.1%}", f"{self.vectors[i]:.2%}", f"{self.mean[i]:.3g}") for i in order.tolist()]

    _COLUMNS = ("latent", "pages", "vectors", "mean activation")

    def __str__(self) -> str:
        rows = [self._COLUMNS, *self._rows()]
        return "\n".join([*self._lines(), *("".join(f"{cell:>17}" for cell in row) for row in rows)])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return html_table(self._lines(), self._COLUMNS, self._rows(), [])


def far_from_mean(vectors: Acts) -> PerToken:
    """For each vector of a page, how little it is like the page's mean."""
    return -(vectors @ torch.nn.functional.normalize(vectors.mean(0), dim=0))


def largest(key: PerToken, share: float) -> torch.Tensor:
    """The places of the share of a page's vectors with the largest keys, in their order."""
    n = max(1, round(share * len(key)))
    return torch.sort(key, descending=True, stable=True).indices[:n].sort().values


def firing(
    index: Any,
    sae: SAE,
    everywhere: float = EVERYWHERE,
    any_model: bool = False,
    on_progress: OnProgress | None = None,
) -> Firing:
    """How often each latent fires on the pages of an index. An SAE of a site before the head runs the model on every page.

    Raises:
        DictionaryError: an SAE of another model or site.
        PagesError: an SAE of a site that the vectors do not follow from linearly.
    """
    check_sae(index, sae, any_model)
    pages, vectors, sums = (torch.zeros(sae.d_sae, dtype=torch.float64) for _ in range(3))
    n = 0
    for number, x in rows_of_pages(index, sae.site):
        acts = encode(sae, x)
        fires = acts > 0
        pages += fires.any(0)
        vectors += fires.sum(0)
        sums += acts.sum(0)
        n += len(x)
        if on_progress is not None:
            on_progress(number + 1, len(index), {})
    return Firing(
        site=sae.site,
        n_pages=len(index),
        n_vectors=n,
        pages=(pages / max(1, len(index))).numpy(),
        vectors=(vectors / max(1, n)).numpy(),
        mean=(sums / vectors.clamp_min(1)).numpy(),
        everywhere_from=everywhere,
    )

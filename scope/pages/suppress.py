"""Takes latents out of every page of an index and searches again: which ranks move, beside random latents of equal rate.

The contribution of a latent is subtracted at the SAE's site, the head runs anew, and vectors are brought to length 1 again.
The index on disk is not changed.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int

from scope.circuits.tables import html_table
from scope.escape import visible
from scope.models.paligemma.late_interaction import max_sim
from scope.pages.errors import PagesError
from scope.pages.firing import Firing, firing
from scope.pages.head import check_sae, encode, rows_of_pages
from scope.progress import OnProgress
from scope.result import Result
from scope.sae.base import SAE

Ranks = Int[np.ndarray, "page"]
PageScores = Float[np.ndarray, "page"]
DrawnRanks = Int[np.ndarray, "draw page"]


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Suppressed(Result):
    """Ranks and scores of all pages for a query, as they are and with latents taken out of the pages."""

    bars = ("name", "score", "score after")

    query: str
    latents: tuple[int, ...]
    site: str
    names: tuple[str, ...]
    before: PageScores
    after: PageScores
    random_ranks: DrawnRanks
    """Ranks with random latents of equal firing rate in place of the chosen ones, a row a draw."""

    random_latents: tuple[tuple[int, ...], ...]
    rates: tuple[float, ...]
    """Share of vectors at which each latent fires."""

    seed: int

    @property
    def ranks_before(self) -> Ranks:
        return ranks(self.before)

    @property
    def ranks_after(self) -> Ranks:
        return ranks(self.after)

    def to_frame(self) -> Any:
        """A row per page, by rank before: ranks, scores, and the least and greatest rank with random latents."""
        import pandas as pd

        table = pd.DataFrame(
            {
                "page": range(len(self.names)),
                "name": self.names,
                "rank": self.ranks_before,
                "rank after": self.ranks_after,
                "random, least": self.random_ranks.min(0) if len(self.random_ranks) else self.ranks_before,
                "random, greatest": self.random_ranks.max(0) if len(self.random_ranks) else self.ranks_before,
                "score": self.before,
                "score after": self.after,
            }
        )
        return table.sort_values("rank", ignore_index=True)

    @property
    def moved(self) -> float:
        """By how many ranks a page moves on average."""
        return float(np.abs(self.ranks_after - self.ranks_before).mean())

    @property
    def moved_by_random(self) -> tuple[float, ...]:
        """The same for each draw of random latents."""
        return tuple(np.abs(self.random_ranks - self.ranks_before).mean(1).tolist())

    def _lines(self) -> list[str]:
        rates = ", ".join(f"{latent} (fires at {rate:.2%})" for latent, rate in zip(self.latents, self.rates, strict=True))
        draws = self.moved_by_random
        null = f"{np.mean(draws):.2f} ({min(draws):.2f} to {max(draws):.2f} in {len(draws)} draws)" if draws else "not drawn"
        silent = [str(latent) for latent, rate in zip(self.latents, self.rates, strict=True) if rate == 0]
        return [
            f"{visible(self.query)!r} without {rates}, {self.site}",
            f"A page moves by {self.moved:.2f} ranks on average; with random latents of equal rate by {null}.",
            *([f"Latents that fire nowhere in this index change nothing: {', '.join(silent)}."] if silent else []),
        ]

    _COLUMNS = ("rank", "after", "random", "score", "after", "page")

    def _rows(self, top: int) -> list[tuple[str, ...]]:
        return [
            (
                str(row["rank"]),
                str(row["rank after"]),
                f"{row['random, least']} to {row['random, greatest']}",
                f"{row['score']:.3f}",
                f"{row['score after']:.3f}",
                visible(row["name"]),
            )
            for _, row in self.to_frame().head(top).iterrows()
        ]

    def text(self, top: int = 10) -> str:
        """The `top` pages before, with their ranks after."""
        rows = [self._COLUMNS, *self._rows(top)]
        widths = [max(len(row[i]) for row in rows) for i in range(len(self._COLUMNS))]
        lines = ["  ".join(f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True)) for row in rows]
        return "\n".join([*self._lines(), *lines])

    def __str__(self) -> str:
        return self.text()

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return html_table(self._lines(), self._COLUMNS, self._rows(10), [])


def ranks(scores: PageScores) -> Ranks:
    """Ranks from 1 by falling score; of equal scores the first page comes first."""
    order = np.argsort(-scores, kind="stable")
    places = np.empty(len(scores), dtype=np.int64)
    places[order] = np.arange(1, len(scores) + 1)
    return places


@torch.no_grad()
def suppress(
    index: Any,
    queries: list[str],
    latents: list[int],
    sae: SAE,
    draws: int = 5,
    seed: int = 0,
    rates: Firing | None = None,
    any_model: bool = False,
    on_progress: OnProgress | None = None,
) -> list[Suppressed]:
    """For each query the ranks of all pages with `latents` taken out of the pages, beside `draws` random sets of equal rate.

    Raises:
        PagesError: no latents, one that the SAE does not have, an empty query, or a site that is not near the end.
        DictionaryError: an SAE of another model or width.
    """
    latents = list(dict.fromkeys(latents))
    if not latents or (wrong := [i for i in latents if not 0 <= i < sae.d_sae]):
        raise PagesError(
            f"The SAE has latents 0 to {sae.d_sae - 1:,}; {'none is given' if not latents else f'{wrong[0]} is none of them'}."
        )
    head = check_sae(index, sae, any_model)
    rows = index.queries(queries)
    total = len(index) * (2 if rates is None else 1)
    if rates is None:
        count = None if on_progress is None else (lambda done, _, numbers: on_progress(done, total, numbers))
        rates = firing(index, sae, any_model=any_model, on_progress=count)
    sets = [latents, *rates.like(latents, draws, seed)]
    decoder = sae.W_dec.detach().cpu().double()
    before, after = [], [[] for _ in sets]
    for number, x in rows_of_pages(index, sae.site):
        acts, exact = encode(sae, x), x.double()
        before.append(max_sim(rows, [head.vectors(exact).float()]))
        for chosen, columns in zip(sets, after, strict=True):
            columns.append(max_sim(rows, [head.vectors(exact - acts[:, chosen] @ decoder[chosen]).float()]))
        if on_progress is not None:
            on_progress(total - len(index) + number + 1, total, {})
    whole, (edited, *nulls) = torch.cat(before, 1).numpy(), [torch.cat(columns, 1).numpy() for columns in after]
    return [
        Suppressed(
            query=query,
            latents=tuple(latents),
            site=sae.site,
            names=tuple(page.name for page in index.pages),
            before=whole[i],
            after=edited[i],
            random_ranks=np.array([ranks(null[i]) for null in nulls], dtype=np.int64).reshape(len(nulls), len(index)),
            random_latents=tuple(tuple(chosen) for chosen in sets[1:]),
            rates=tuple(float(rates.vectors[latent]) for latent in latents),
            seed=seed,
        )
        for i, query in enumerate(queries)
    ]

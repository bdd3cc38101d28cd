"""Scores an index with parts left out: nDCG@5 beside bytes, with patches or latents left out, beside random choices.

all vectors         as they are stored
far from the mean   in each page only the vectors that are least like the page's mean
rare latents        in each page only the vectors whose latents fire on few pages (activation x log 1 / share)
latents             vectors as the SAE rebuilds them; bytes are those of each active latent's number and value
not everywhere      the same without the latents that fire on nearly every page
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from scope.circuits.tables import html_table
from scope.models.paligemma.late_interaction import Vectors, max_sim
from scope.null_seeds import generator, null_seed
from scope.pages.errors import PagesError
from scope.pages.firing import EVERYWHERE, Firing, far_from_mean, firing, largest
from scope.pages.head import check_sae, encode, rows_of_pages
from scope.pages.judgements import Judgements
from scope.progress import OnProgress, size
from scope.result import Result
from scope.sae.base import SAE

_DRAWS_OF_CHANCE = 20
Keys = Float[np.ndarray, "draw"]


@dataclass(frozen=True, kw_only=True)
class Weight:
    """An index with something left out."""

    condition: str
    share: float
    """Share of the vectors, or of the active latents, that remain."""

    nbytes: int
    ndcg: float
    random: tuple[float, ...] = ()
    """nDCG@5 where as much is left out at random, a number a draw; nothing where nothing is left out."""


@dataclass(frozen=True, kw_only=True, repr=False)
class Weights(Result):
    """nDCG@5 beside bytes."""

    bars = ("condition", "ndcg@5", "random")

    rows: tuple[Weight, ...]
    chance: float
    """nDCG@5 of pages in random order."""

    n_pages: int
    n_queries: int
    unanswered: int
    everywhere: tuple[int, ...]
    dead: int
    seed: int

    def to_frame(self) -> Any:
        """A row per condition; `random` is the mean over the draws."""
        import pandas as pd

        return pd.DataFrame(
            [
                {
                    "condition": r.condition,
                    "share": r.share,
                    "bytes": r.nbytes,
                    "ndcg@5": r.ndcg,
                    "random": float(np.mean(r.random)) if r.random else None,
                }
                for r in self.rows
            ]
        )

    def _lines(self) -> list[str]:
        left_out = f"; {self.unanswered} queries without a relevant page left out" if self.unanswered else ""
        chance = f"pages in random order have nDCG@5 {self.chance:.3f}"
        lines = [f"{self.n_queries:,} queries on {self.n_pages:,} pages{left_out}; {chance}"]
        if any(row.condition.startswith("latents") for row in self.rows):
            lines.append(f"{len(self.everywhere):,} latents fire on nearly every page, {self.dead:,} on none")
        return lines

    _COLUMNS = ("condition", "kept", "size", "nDCG@5", "random, as much left out")

    def _cells(self) -> list[tuple[str, ...]]:
        return [
            (
                row.condition,
                f"{row.share:.0%}",
                size(row.nbytes),
                f"{row.ndcg:.3f}",
                f"{np.mean(row.random):.3f} ({min(row.random):.3f} to {max(row.random):.3f})" if row.random else "",
            )
            for row in self.rows
        ]

    def __str__(self) -> str:
        rows = [self._COLUMNS, *self._cells()]
        widths = [max(len(row[i]) for row in rows) for i in range(len(self._COLUMNS))]
        lines = ["  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        return "\n".join([*self._lines(), *lines])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return html_table(self._lines(), self._COLUMNS, self._cells(), [])


class _Sums:
    """Scores of every query with every page, and bytes, of one condition."""

    def __init__(self, n_queries: int, n_pages: int):
        self.scores = torch.full((n_queries, n_pages), -torch.inf)
        self.nbytes, self.left, self.of = 0, 0, 0

    def add(self, page: int, queries: list[Vectors], vectors: Vectors, nbytes: int, left: int, of: int) -> None:
        if bool((vectors != 0).any()):  # of a page of which nothing is left nothing is found
            self.scores[:, page] = max_sim(queries, [vectors.float()])[:, 0]
        self.nbytes, self.left, self.of = self.nbytes + nbytes, self.left + left, self.of + of


@torch.no_grad()
def weigh(
    index: Any,
    judged: Judgements,
    sae: SAE | None = None,
    keep: Sequence[float] = (0.5, 0.25, 0.1),
    everywhere: float = EVERYWHERE,
    draws: int = 3,
    seed: int = 0,
    any_model: bool = False,
    on_progress: OnProgress | None = None,
) -> Weights:
    """nDCG@5 and bytes of an index as it is, with the share `keep` of each page's vectors, and with latents alone.

    Raises:
        PagesError: a share that is none, or an SAE of a site that the vectors do not follow from linearly.
        DictionaryError: an SAE of another model or width.
    """
    if wrong := [share for share in keep if not 0 < share < 1]:
        raise PagesError(f"keep holds {wrong[0]:g}; a share of vectors to keep lies between 0 and 1.")
    if draws < 1:
        raise PagesError(f"draws is {draws}; a random choice needs at least one.")
    head = None if sae is None else check_sae(index, sae, any_model)
    rates = None if sae is None else firing(index, sae, everywhere, any_model)
    queries = index.queries(list(judged.queries))
    numbers = torch.Generator().manual_seed(null_seed("vectors left out of a page", seed))
    table: dict[tuple[str, float, int], _Sums] = {}

    def sums(condition: str, share: float = 1.0, draw: int = -1) -> _Sums:
        return table.setdefault((condition, share, draw), _Sums(len(queries), len(index)))

    streams = None if sae is None else rows_of_pages(index, sae.site)
    for page in range(len(index)):
        vectors, n = index.vectors(page), index.pages[page].vectors
        each = index.manifest.d_embed * (2 if index.manifest.dtype == "float16" else 4)
        sums("all vectors").add(page, queries, vectors, n * each, n, n)
        keys = {"far from the mean": far_from_mean(vectors)}
        if streams is not None:
            x = next(streams)[1]
            keys["rare latents"] = rates.rarity(sae, x)
            _add_latents(sums, page, queries, head, sae, encode(sae, x), rates, draws, seed)
        for share in keep:
            n_kept = max(1, round(share * n))
            for condition, key in keys.items():
                sums(condition, share).add(page, queries, vectors[largest(key, share)], n_kept * each, n_kept, n)
            for draw in range(draws):
                chosen = torch.randperm(n, generator=numbers)[:n_kept]
                sums("random", share, draw).add(page, queries, vectors[chosen], n_kept * each, n_kept, n)
        if on_progress is not None:
            on_progress(page + 1, len(index), {})
    return Weights(
        rows=tuple(_weights(table, judged, draws)),
        chance=_chance(judged, len(index), seed),
        n_pages=len(index),
        n_queries=len(judged.queries),
        unanswered=judged.unanswered,
        everywhere=() if rates is None else tuple(rates.everywhere),
        dead=0 if rates is None else len(rates.dead),
        seed=seed,
    )


def _add_latents(
    sums: Any,
    page: int,
    queries: list[Vectors],
    head: Any,
    sae: SAE,
    acts: Float[torch.Tensor, "tok d_sae"],
    rates: Firing,
    draws: int,
    seed: int,
) -> None:
    """The conditions in which a vector is what latents rebuild: all of them, those not everywhere, and without random
    ones that fire as often together."""
    decoder, b_dec = sae.W_dec.detach().cpu().double(), sae.b_dec.detach().cpu().double()
    each = 2 + (2 if sae.d_sae <= 2**16 else 4)  # a value in half precision, and the number of a latent
    of = int((acts > 0).sum())
    alive = np.flatnonzero(rates.vectors > 0)
    left_out = [("latents", -1, []), ("latents, not everywhere", -1, rates.everywhere)]
    for draw in range(draws):
        rng = np.random.default_rng(null_seed("latents left out of an index", seed * 1000 + draw))
        order = rng.permutation(alive)
        as_many = np.cumsum(rates.vectors[order]) <= rates.vectors[rates.everywhere].sum() + 1e-9  # activations, not latents
        left_out.append(("random latents", draw, order[as_many]))
    for condition, draw, latents in left_out:
        rest = acts.clone()
        rest[:, torch.as_tensor(np.asarray(latents, dtype=np.int64))] = 0
        n = int((rest > 0).sum())
        sums(condition, 1.0, draw).add(page, queries, head.vectors(rest @ decoder + b_dec).float(), n * each, n, of)


def _weights(table: dict[tuple[str, float, int], _Sums], judged: Judgements, draws: int) -> list[Weight]:
    rows = []
    for (condition, share, draw), total in table.items():
        if draw >= 0:
            continue
        null = "random latents" if condition == "latents, not everywhere" else "random"
        nulls = [table[null, share, i] for i in range(draws) if (null, share, i) in table]
        rows.append(
            Weight(
                condition=condition,
                share=total.left / max(1, total.of),
                nbytes=total.nbytes,
                ndcg=judged.ndcg(total.scores.double().numpy()),
                random=tuple(judged.ndcg(other.scores.double().numpy()) for other in nulls),
            )
        )
    order = ["all vectors", "far from the mean", "rare latents", "latents", "latents, not everywhere"]
    return sorted(rows, key=lambda row: (order.index(row.condition), -row.share))


def _chance(judged: Judgements, n_pages: int, seed: int) -> float:
    numbers = generator("pages in random order", seed)
    draws = [torch.rand(len(judged.queries), n_pages, generator=numbers) for _ in range(_DRAWS_OF_CHANCE)]
    return float(np.mean([judged.ndcg(draw.double().numpy()) for draw in draws]))

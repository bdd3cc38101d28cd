"""Which latents make up a text: ranked at a token or over all of it, as a matrix, and one text against another."""

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from scope.errors import PackError

if TYPE_CHECKING:
    from scope.features.reading.read_text import TokenView

ORDERS = ("surprise", "value", "share")
POOLS = ("largest", "mean")


def ranked(
    view: "TokenView",
    position: int | None = None,
    by: str = "surprise",
    k: int = 20,
    *,
    dense: bool = False,
    least: float = 0.0,
) -> pd.DataFrame:
    """The k foremost latents at a token, or anywhere in the text (then by their strongest token).

    Columns: value; share (of the latent's maximum in the pack); quantile (share of its firings that are weaker); surprise
    (-log10 of the share of all tokens on which it fires at least so strongly); token; label.

    Args:
        by: surprise, value or share.
        dense: whether latents that fire on more than a tenth of all tokens are told.
        least: smallest quantile told.

    Raises:
        PackError: an unknown order, or a token that the text does not have.
    """
    if by not in ORDERS:
        raise PackError(f"Latents cannot be ranked by {by!r}; there are {', '.join(ORDERS)}.")
    if position is not None and not 0 <= position < len(view.pieces):
        raise PackError(f"There is no token {position}; this text has tokens 0 to {len(view.pieces) - 1}.")
    index, table = view.store.index, view.store.table
    values = view.latents.max(0) if position is None else view.latents[position]
    fired = np.flatnonzero(values > 0)
    if not dense:
        fired = fired[~index.flagged(("dense",))[fired]]
    rows = pd.DataFrame({"value": values[fired].astype(float)}, index=pd.Index(fired, name="id"))
    rows["share"] = rows["value"] / np.maximum(index.column("max")[fired], 1e-12)
    rows["quantile"] = [view.quantile(int(f), float(values[f])) for f in fired]
    stronger = np.maximum((1 - rows["quantile"]) * index.column("count")[fired], 0.5)
    rows["surprise"] = np.log10(max(view.store.n_tokens, 1) / stronger)
    rows["token"] = [view.pieces[int(view.latents[:, f].argmax()) if position is None else position] for f in fired]
    rows["label"] = table["label"].to_numpy()[fired]
    rows = rows[rows["quantile"] >= least]
    return rows.sort_values(by, ascending=False, kind="stable").head(k)


def matrix(
    view: "TokenView", k: int = 20, by: str = "surprise", *, dense: bool = False, latents: np.ndarray | None = None
) -> tuple[list[int], np.ndarray]:
    """(latents, shares of their maximum [latent token]) of the k foremost in the text, or of those given, all of which fire in
    it; in the order of their first firing."""
    if latents is None:
        latents = ranked(view, by=by, k=k, dense=dense).index.to_numpy()
    first = [int(np.flatnonzero(view.latents[:, i] > 0)[0]) for i in latents]
    latents = latents[np.argsort(first, kind="stable")]
    largest = np.maximum(view.store.index.column("max")[latents], 1e-12)
    return latents.tolist(), (view.latents[:, latents] / largest).T


def compared(a: "TokenView", b: "TokenView", pool: str = "largest", k: int = 30) -> pd.DataFrame:
    """Latents whose pooled activation differs most between two texts, as shares of each one's maximum in the pack.

    Columns: first, second, change (second - first, in shares), label. `mean` pools over all tokens but control tokens;
    `largest` takes the strongest one.

    Raises:
        PackError: an unknown pooling, or texts read with different packs.
    """
    if pool not in POOLS:
        raise PackError(f"Activations cannot be pooled by {pool!r}; there are {', '.join(POOLS)}.")
    if a.store is not b.store and a.store.folder != b.store.folder:
        raise PackError("The two texts were read with different packs, so their latents are different things.")
    largest = np.maximum(a.store.index.column("max"), 1e-12)
    first, second = (_pooled(view, pool) / largest for view in (a, b))
    change = second - first
    seen = np.flatnonzero((first > 0) | (second > 0))
    order = seen[np.argsort(-np.abs(change[seen]), kind="stable")][:k]
    labels = a.store.table["label"].to_numpy()[order]
    columns = {"first": first[order], "second": second[order], "change": change[order], "label": labels}
    return pd.DataFrame(columns, index=pd.Index(order, name="id"))


def _pooled(view: "TokenView", pool: str) -> np.ndarray:
    if pool == "largest":
        return view.latents.max(0)
    counted = view.latents[view.counted] if view.counted.any() else view.latents[:0]
    return counted.mean(0) if len(counted) else np.zeros(view.latents.shape[1], np.float32)

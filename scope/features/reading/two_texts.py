"""Latents that change from one text to another: pooled over each text, or at aligned tokens."""

from difflib import SequenceMatcher

import numpy as np
import pandas as pd

from scope.errors import PackError
from scope.features.reading.view import TokenView

POOLS = ("largest", "mean")


def compared(a: TokenView, b: TokenView, pool: str = "largest", k: int = 30) -> pd.DataFrame:
    """Latents whose pooled activation differs most between two texts, as shares of each one's maximum in the pack.

    Columns: first, second, change (second - first, in shares), label. `mean` pools over all tokens but control tokens;
    `largest` takes the strongest one.

    Raises:
        PackError: an unknown pooling, or texts read with different packs.
    """
    if pool not in POOLS:
        raise PackError(f"Activations cannot be pooled by {pool!r}; there are {', '.join(POOLS)}.")
    if a.pack is not b.pack and a.pack.folder != b.pack.folder:
        raise PackError("The two texts were read with different packs, so their latents are different things.")
    largest = np.maximum(a.pack.index.column("max"), 1e-12)
    first, second = (_pooled(view, pool) / largest for view in (a, b))
    change = second - first
    seen = np.flatnonzero((first > 0) | (second > 0))
    order = seen[np.argsort(-np.abs(change[seen]), kind="stable")][:k]
    labels = a.pack.table["label"].to_numpy()[order]
    columns = {"first": first[order], "second": second[order], "change": change[order], "label": labels}
    return pd.DataFrame(columns, index=pd.Index(order, name="id"))


def _pooled(view: TokenView, pool: str) -> np.ndarray:
    if pool == "largest":
        return view.latents.max(0)
    counted = view.latents[view.counted] if view.counted.any() else view.latents[:0]
    return counted.mean(0) if len(counted) else np.zeros(view.latents.shape[1], np.float32)


def alignment(first: list[int], second: list[int]) -> list[tuple[int, int]]:
    """(place in the first text, place in the second) of tokens that stand for each other, in order: equal ones, and between
    them stretches of equal length that were exchanged, place by place. All others stand alone and are in no pair."""
    pairs = []
    for kind, a, a_end, b, b_end in SequenceMatcher(None, first, second, autojunk=False).get_opcodes():
        if kind == "equal" or (kind == "replace" and a_end - a == b_end - b):
            pairs += zip(range(a, a_end), range(b, b_end), strict=True)
    return pairs


def compared_by_token(a: TokenView, b: TokenView, k: int = 40) -> tuple[pd.DataFrame, int, int]:
    """(the latents that change most at a pair of aligned tokens, tokens of the first text and of the second without a partner).

    Columns: first, second (shares of the latent's maximum in the pack, at the pair where it changes most), change (second -
    first), at, at_second (the places), token (as in the second text), label.

    Raises:
        PackError: texts read with different packs, or texts that share no token to hold on to.
    """
    if a.pack is not b.pack and a.pack.folder != b.pack.folder:
        raise PackError("The two texts were read with different packs, so their latents are different things.")
    pairs = np.array(alignment(a.ids, b.ids), int).reshape(-1, 2)
    if not (a.counted[pairs[:, 0]] & b.counted[pairs[:, 1]]).any():
        raise PackError("The two texts share no stretch by which they could be laid together: compare them pooled.")
    largest = np.maximum(a.pack.index.column("max"), 1e-12)
    first, second = a.latents[pairs[:, 0]] / largest, b.latents[pairs[:, 1]] / largest
    at, every = np.abs(second - first).argmax(0), np.arange(first.shape[1])
    change = second[at, every] - first[at, every]
    seen = np.flatnonzero(change != 0)
    order = seen[np.argsort(-np.abs(change[seen]), kind="stable")][:k]
    places = pairs[at[order]]
    columns = {
        "first": first[at[order], order],
        "second": second[at[order], order],
        "change": change[order],
        "at": places[:, 0],
        "at_second": places[:, 1],
        "token": [b.pieces[place] for place in places[:, 1]],
        "label": a.pack.table["label"].to_numpy()[order],
    }
    alone = [len(view.ids) - len(pairs) for view in (a, b)]
    return pd.DataFrame(columns, index=pd.Index(order, name="id")), alone[0], alone[1]

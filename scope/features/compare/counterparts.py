"""Latents of one pack and their counterparts in another, matched by the tokens that both promote."""

import numpy as np
import pandas as pd

from scope.errors import PackError
from scope.features.pack.data import PackData
from scope.null_seeds import null_seed


def counterparts(a: PackData, b: PackData, most: int = 4096, seed: int = 0) -> pd.DataFrame:
    """For each living latent of `a`, the living latent of `b` that shares most of its ten most promoted tokens.

    Decoder directions do not lie in a pack; the tokens that they promote do, and two latents that promote the same ones write
    the same thing. Columns: other (-1 for none), shared (tokens in both lists), by_chance (the same after the tokens that `b`
    promotes changed places at random: what lists of this many common and rare tokens share without meaning the same).

    Args:
        most: latents of `a` that are looked at, evenly taken over their numbers.

    Raises:
        PackError: packs of different vocabularies, or one that holds no promoted tokens.
    """
    if a.vocab != b.vocab:
        raise PackError("These packs have different vocabularies, so what their latents promote cannot be compared.")
    lists = []
    for pack in (a, b):
        ids = pack.relation("promoted_id")
        if not ids.shape[1]:
            raise PackError(f"{pack.folder} holds no promoted tokens: its site does not lie in the residual stream.")
        living = np.flatnonzero(pack.index.column("count") > 0)
        lists.append((living, ids[living].astype(np.int64)))
    (mine, wanted), (theirs, given) = lists
    some = np.arange(0, len(mine), max(1, -(-len(mine) // most)))
    mine, wanted = mine[some], wanted[some]
    used = np.unique(given[given >= 0])
    elsewhere = np.arange(-1, len(a.vocab))  # the last place is that of -1, "none"
    elsewhere[1 + used] = np.random.default_rng(null_seed("counterparts", seed)).permutation(used)
    place, shared = _best(wanted, given)
    _, by_chance = _best(wanted, elsewhere[1 + given])
    other = np.where(place >= 0, theirs[np.maximum(place, 0)] if len(theirs) else -1, -1)
    columns = {"other": other, "shared": shared, "by_chance": by_chance}
    return pd.DataFrame(columns, index=pd.Index(mine, name="id"))


def _best(rows_a: np.ndarray, rows_b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(row of `rows_b` that shares most with each row of `rows_a`, -1 for none; the number of tokens shared)."""
    order = np.argsort(rows_b, axis=None, kind="stable")
    tokens, rows = rows_b.ravel()[order], order // max(rows_b.shape[1], 1)
    best, most = np.full(len(rows_a), -1), np.zeros(len(rows_a), int)
    for n, row in enumerate(rows_a):
        row = row[row >= 0]
        first, last = np.searchsorted(tokens, row), np.searchsorted(tokens, row, side="right")
        held = [rows[i:j] for i, j in zip(first, last, strict=True) if j > i]
        if held:
            found, counts = np.unique(np.concatenate(held), return_counts=True)
            best[n], most[n] = found[counts.argmax()], counts.max()
    return best, most

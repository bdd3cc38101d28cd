"""Two texts laid token by token against each other, as far as they run alike: where which latent changes."""

from difflib import SequenceMatcher
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from scope.errors import PackError

if TYPE_CHECKING:
    from scope.features.reading.read_text import TokenView


def alignment(first: list[int], second: list[int]) -> list[tuple[int, int]]:
    """(place in the first text, place in the second) of tokens that stand for each other, in order: equal ones, and between
    them stretches of equal length that were exchanged, place by place. All others stand alone and are in no pair."""
    pairs = []
    for kind, a, a_end, b, b_end in SequenceMatcher(None, first, second, autojunk=False).get_opcodes():
        if kind == "equal" or (kind == "replace" and a_end - a == b_end - b):
            pairs += zip(range(a, a_end), range(b, b_end), strict=True)
    return pairs


def compared_by_token(a: "TokenView", b: "TokenView", k: int = 40) -> tuple[pd.DataFrame, int, int]:
    """(the latents that change most at a pair of aligned tokens, tokens of the first text and of the second without a partner).

    Columns: first, second (shares of the latent's maximum in the pack, at the pair where it changes most), change (second -
    first), at, at_second (the places), token (as in the second text), label.

    Raises:
        PackError: texts read with different packs, or texts that share no token to hold on to.
    """
    if a.store is not b.store and a.store.folder != b.store.folder:
        raise PackError("The two texts were read with different packs, so their latents are different things.")
    pairs = np.array(alignment(a.ids, b.ids), int).reshape(-1, 2)
    if not (a.counted[pairs[:, 0]] & b.counted[pairs[:, 1]]).any():
        raise PackError("The two texts share no stretch by which they could be laid together: compare them pooled.")
    largest = np.maximum(a.store.index.column("max"), 1e-12)
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
        "label": a.store.table["label"].to_numpy()[order],
    }
    alone = [len(view.ids) - len(pairs) for view in (a, b)]
    return pd.DataFrame(columns, index=pd.Index(order, name="id")), alone[0], alone[1]

"""Finding latents: by words in what is known of them, by the token they fire on, by the token they promote."""

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from scope.errors import PackError

if TYPE_CHECKING:
    from scope.features.pack.store import FeatureStore

_SHOWN = ["label", "label_source", "density", "max", "top_token", "top_token_share", "promotes", "out_score", "flags"]


def find(store: "FeatureStore", text: str) -> pd.DataFrame:
    """Rows of the table that hold `text`, whatever its case, in label, top token or promoted tokens.

    Ranked: top token or a word of the label equal to the text, then contained in them, then promoted. Within a rank the
    latent with the larger share of its top token comes first. `found_in` says where.
    """
    wanted = text.strip().casefold()
    if not wanted:
        raise PackError("Nothing to look for: the text is empty. Give a word, as in find('dogs').")
    table, index = store.table, store.index
    label, token = index.text("label"), index.text("top_token")
    exact = token.equal(wanted) | label.with_word(wanted)
    inside = label.containing(wanted) | token.containing(wanted)
    promoted = _among(store.relation("promoted_id"), store.words_with(wanted), len(store.vocab))
    rank = np.select([exact, inside, promoted], [0, 1, 2], 3)
    latents = np.flatnonzero(rank < 3)
    order = np.lexsort((-index.column("top_token_share")[latents], rank[latents]))
    latents = latents[order]
    where = np.where(rank[latents] < 2, "label", "promotes")
    hits = table.iloc[latents][_SHOWN]
    hits.insert(0, "found_in", where)
    return hits


def _among(ids: np.ndarray, wanted: np.ndarray, d_vocab: int) -> np.ndarray:
    """[d_sae] whether one of the latent's ids is wanted."""
    listed = np.zeros(d_vocab + 1, bool)
    listed[wanted] = True
    return listed[ids].any(1)  # the empty place -1 reads the last one, which is never wanted


_COMMON = 100  # tokens so frequent that a text with more of them says nothing


def steerable(store: "FeatureStore", n: int, words: bool = True) -> pd.DataFrame:
    """The rows to steer with: those that move the next token most towards what they promote, best first.

    Dead, rare, dense and duplicate latents are left out, and with `words` those whose five most promoted tokens hold a mark,
    a space, a single letter or one of the commonest tokens of the corpus: their effect is large and hard to see. Where
    nothing is left, all that fired are ranked.
    """
    index = store.index
    fired = index.column("count") > 0
    chosen = fired & ~index.flagged(("dead", "dense", "rare", "duplicate"))
    if words:
        common = set(store.pieces(np.argsort(-store.token_totals, kind="stable")[:_COMMON]))
        dull = [sum(map(str.isalpha, piece)) < 2 or piece in common for piece in store.vocab]
        five = store.relation("promoted_id")[:, :5]
        chosen &= (five >= 0).any(1) & ~_among(five, np.flatnonzero(dull), len(store.vocab))
    chosen = chosen if chosen.any() else fired
    best = index.order("out_score")
    best = best[chosen[best] & ~np.isnan(index.column("out_score")[best])]
    return store.table.iloc[best[:n]]


def token_ids(store: "FeatureStore", token: str) -> np.ndarray:
    """Ids whose piece is `token`: equal to the letter if any is, otherwise without regard to case and outer spaces.

    Raises:
        PackError: no piece of the vocabulary is this token.
    """
    exact = store.ids_of.get(token, [])
    if exact and token != token.strip():
        return np.array(exact)
    loose = store.loose_ids_of.get(token.strip().casefold(), []) if token.strip() else []
    if not loose and not exact:
        raise PackError(
            f"No token of this vocabulary is {token!r}. Longer words are split into several; try a part, or find({token!r})."
        )
    return np.array(sorted({*exact, *loose}))


def fires_on(store: "FeatureStore", token: str) -> pd.DataFrame:
    """Latents with this token among their most frequent ones, ranked by P(fires | token) x P(token | fires)."""
    ids, counts = store.relation("token_id"), store.relation("token_count")
    wanted = token_ids(store, token)
    some = np.flatnonzero(_among(ids, wanted, len(store.vocab)))
    here = np.zeros(store.d_sae, counts.dtype)
    here[some] = np.where(np.isin(ids[some], wanted), counts[some], 0).sum(1)
    latents = np.flatnonzero(here)
    stood = max(int(store.token_totals[wanted].sum()), 1)
    table = store.table.iloc[latents]
    given_fires = here[latents] / np.maximum(table["count"].to_numpy(), 1)
    given_token = here[latents] / stood
    lift = given_fires / (stood / max(store.n_tokens, 1))
    hits = table[_SHOWN].assign(p_fires_given_token=given_token, p_token_given_fires=given_fires, lift=lift)
    return hits.iloc[np.argsort(-given_fires * given_token, kind="stable")]


def promotes(store: "FeatureStore", token: str) -> pd.DataFrame:
    """Latents with this token among the ten they promote most, ranked by logit; `measured` is the rise of its probability."""
    wanted = token_ids(store, token)
    logits = _best(store, "promoted_id", "promoted_logit", wanted)
    rises = _best(store, "measured_id", "measured_rise", wanted)
    latents = np.flatnonzero(~np.isnan(logits) | ~np.isnan(rises))
    hits = store.table.iloc[latents][_SHOWN].assign(logit=logits[latents], measured=rises[latents])
    return hits.sort_values(["logit", "measured"], ascending=False, kind="stable", na_position="last")


def _best(store: "FeatureStore", ids: str, values: str, wanted: np.ndarray) -> np.ndarray:
    """[d_sae] the largest value at a wanted id, NaN where there is none."""
    ids, values = store.relation(ids), store.relation(values)
    some = np.flatnonzero(_among(ids, wanted, len(store.vocab)))
    best = np.full(store.d_sae, np.nan)
    best[some] = np.where(np.isin(ids[some], wanted), values[some], -np.inf).max(1, initial=-np.inf)
    return best

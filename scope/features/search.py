"""Finding latents: by words in what is known of them, by the token they fire on, by the token they promote."""

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from scope.errors import PackError

if TYPE_CHECKING:
    from scope.features.store import FeatureStore

_SHOWN = ["label", "label_source", "density", "max", "top_token", "top_token_share", "promotes", "out_score", "flags"]


def find(store: "FeatureStore", text: str) -> pd.DataFrame:
    """Rows of the table that hold `text`, whatever its case, in label, top token or promoted tokens.

    Ranked: top token or a word of the label equal to the text, then contained in them, then promoted. Within a rank the
    latent with the larger share of its top token comes first. `found_in` says where.
    """
    wanted = text.strip().casefold()
    if not wanted:
        raise PackError("Nothing to look for: the text is empty. Give a word, as in find('dogs').")
    table = store.table
    label, token = table["label"].str.casefold(), table["top_token"].str.casefold()
    words = label.str.split(r"[^\w']+", regex=True)
    exact = (token.str.strip() == wanted) | words.map(lambda found: wanted in found)
    inside = label.str.contains(wanted, regex=False) | token.str.contains(wanted, regex=False)
    promoted = table["promotes"].map(lambda tokens: any(wanted in t.casefold() for t in tokens))
    rank = np.select([exact, inside, promoted], [0, 1, 2], 3)
    where = np.select([exact | inside, promoted], ["label", "promotes"], "")
    hits = table.assign(found_in=where, rank=rank)[rank < 3]
    return hits.sort_values(["rank", "top_token_share"], ascending=[True, False], kind="stable")[["found_in", *_SHOWN]]


_COMMON = 100  # tokens so frequent that a text with more of them says nothing


def steerable(store: "FeatureStore", n: int, words: bool = True) -> pd.DataFrame:
    """The rows to steer with: those that move the next token most towards what they promote, best first.

    Dead, rare, dense and duplicate latents are left out, and with `words` those whose five most promoted tokens hold a mark,
    a space, a single letter or one of the commonest tokens of the corpus: their effect is large and hard to see. Where
    nothing is left, all that fired are ranked.
    """
    table = store.table
    chosen = (table["count"] > 0) & ~table["flags"].str.contains("dead|dense|rare|duplicate")
    if words:
        common = set(store.pieces(np.argsort(-store.token_totals, kind="stable")[:_COMMON]))
        telling = table["promotes"].map(lambda tokens: [sum(map(str.isalpha, t)) > 1 and t not in common for t in tokens[:5]])
        chosen &= telling.map(lambda found: bool(found) and all(found))
    chosen = chosen if chosen.any() else table["count"] > 0
    return table[chosen].nlargest(n, "out_score")


def token_ids(store: "FeatureStore", token: str) -> np.ndarray:
    """Ids whose piece is `token`: equal to the letter if any is, otherwise without regard to case and outer spaces.

    Raises:
        PackError: no piece of the vocabulary is this token.
    """
    exact = [i for i, piece in enumerate(store.vocab) if piece == token]
    if exact and token != token.strip():
        return np.array(exact)
    wanted = token.strip().casefold()
    loose = [i for i, piece in enumerate(store.vocab) if wanted and piece.strip().casefold() == wanted]
    if not loose and not exact:
        raise PackError(
            f"No token of this vocabulary is {token!r}. Longer words are split into several; try a part, or find({token!r})."
        )
    return np.array(sorted({*exact, *loose}))


def fires_on(store: "FeatureStore", token: str) -> pd.DataFrame:
    """Latents with this token among their most frequent ones, ranked by P(fires | token) x P(token | fires)."""
    ids, counts = store.relation("token_id"), store.relation("token_count")
    here = np.where(np.isin(ids, token_ids(store, token)), counts, 0).sum(1)
    latents = np.flatnonzero(here)
    stood = max(int(store.token_totals[token_ids(store, token)].sum()), 1)
    table = store.table.iloc[latents]
    given_fires = here[latents] / table["count"].to_numpy()
    given_token = here[latents] / stood
    lift = given_fires / (stood / max(store.n_tokens, 1))
    hits = table[_SHOWN].assign(p_fires_given_token=given_token, p_token_given_fires=given_fires, lift=lift)
    return hits.iloc[np.argsort(-given_fires * given_token, kind="stable")]


def promotes(store: "FeatureStore", token: str) -> pd.DataFrame:
    """Latents with this token among the ten they promote most, ranked by logit; `measured` is the rise of its probability."""
    wanted = token_ids(store, token)
    logits = _best(store.relation("promoted_id"), store.relation("promoted_logit"), wanted)
    rises = _best(store.relation("measured_id"), store.relation("measured_rise"), wanted)
    latents = np.flatnonzero(~np.isnan(logits) | ~np.isnan(rises))
    hits = store.table.iloc[latents][_SHOWN].assign(logit=logits[latents], measured=rises[latents])
    return hits.sort_values(["logit", "measured"], ascending=False, kind="stable", na_position="last")


def _best(ids: np.ndarray, values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """[d_sae] the largest value at a wanted id, NaN where there is none."""
    best = np.where(np.isin(ids, wanted), values, -np.inf).max(1, initial=-np.inf)
    return np.where(np.isfinite(best), best, np.nan)

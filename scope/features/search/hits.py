"""Search over what latents fire on, what they are called and what they promote, in one ranking.

A score lies between 0 and 1. Firing counts most: 0.5 to 1 by the geometric mean of P(fires | text) and P(text | fires); a
person's label comes next, then labels by rules, promoted tokens, and words that merely hold the text.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from scope.errors import PackError
from scope.escape import fold, visible_token
from scope.features.pack.data import PackData
from scope.features.pack.search import SHOWN, among, text_of

FIRES, TEXT, LABEL, PROMOTES, PART = "fires on", "text", "label", "promotes", "part of a token"
KINDS = (FIRES, TEXT, LABEL, PROMOTES, PART)
_CLEAR = 0.05
"""Geometric mean from which firing on a text comes before everything else; the best latent always does."""


@dataclass(frozen=True)
class Hit:
    """A latent that a search found, why in a few words, and its score from 0 to 1."""

    latent: int
    why: str
    score: float


@dataclass(frozen=True, eq=False)
class Ranking:
    """All latents that match a text, best first: their scores, where the text was found, and the strength of that."""

    text: str
    latents: np.ndarray
    scores: np.ndarray
    kinds: np.ndarray
    """Index into KINDS of each."""
    amounts: np.ndarray
    """Share of the firings on the text, or the logit of a promoted token."""


def search(pack: PackData, text: str, limit: int | None = 20) -> list[Hit]:
    """Latents that fire on a text, are named by it or promote it, the best first; None for all of them.

    The text may be a token, a part of one, or words that are split into several tokens; case and outer spaces do not matter.
    "#12" is the latent of that number.

    Raises:
        PackError: the text is empty.
    """
    ranking = rank(pack, text)
    some = range(len(ranking.latents) if limit is None else min(max(limit, 0), len(ranking.latents)))
    return [Hit(int(ranking.latents[i]), why(pack, ranking, i), round(float(ranking.scores[i]), 4)) for i in some]


def find(pack: PackData, text: str) -> pd.DataFrame:
    """Rows of the table that match a text, the best first; `found_in` says where, `score` how well."""
    ranking = rank(pack, text)
    hits = pack.table.iloc[ranking.latents][SHOWN]
    hits.insert(0, "found_in", np.array(KINDS, object)[ranking.kinds])
    return hits.assign(score=ranking.scores)


def rank(pack: PackData, text: str) -> Ranking:
    """The ranking of all latents that match; see `search`."""
    wanted = fold(text_of(text).strip())
    if not wanted:
        raise PackError("Nothing to look for: the text is empty. Give a word, as in search('dogs').")
    best = _Best(len(pack.table))  # whose number of rows was checked
    ids = _equal_ids(pack, text)
    if len(ids):
        _add_firing(best, pack, ids)
    elif len(wanted) > 1:
        _add_texts(best, pack, wanted)
    _add_labels(best, pack, wanted)
    _add_promoted(best, pack, ids, pack.words_with(wanted))
    _add_parts(best, pack, wanted, ids)
    if wanted[:1] == "#" and wanted[1:].isdecimal() and len(wanted) < 12 and int(wanted[1:]) < pack.d_sae:
        best.take(LABEL, np.array([int(wanted[1:])]), np.ones(1), np.zeros(1))
    latents = np.flatnonzero(best.score > 0)
    share = pack.index.column("top_token_share")[latents]
    latents = latents[np.lexsort((-share, -best.score[latents]))]
    return Ranking(text.strip(), latents, best.score[latents], best.kind[latents], best.amount[latents])


def why(pack: PackData, ranking: Ranking, i: int) -> str:
    """In a few words, where the text was found in the i-th latent of a ranking."""
    kind, amount, quoted = KINDS[ranking.kinds[i]], float(ranking.amounts[i]), f"“{visible_token(ranking.text)}”"
    if kind in (FIRES, TEXT):
        return f"fires on {quoted}: {amount:.0%} of its firings" if amount >= 0.005 else f"fires on {quoted}"
    if kind == PROMOTES:
        return f"promotes {quoted}"
    if kind == PART:
        return f"fires on or promotes a token with {quoted}"
    return "its number" if ranking.text.startswith("#") else f"label: {pack.table['label'].iat[int(ranking.latents[i])]}"


class _Best:
    """Per latent the best score so far, where it came from, and how much of that there is."""

    def __init__(self, d_sae: int):
        self.score, self.amount, self.kind = np.zeros(d_sae), np.zeros(d_sae), np.zeros(d_sae, np.int8)

    def take(self, kind: str, latents: np.ndarray, scores: np.ndarray, amounts: np.ndarray) -> None:
        better = scores > self.score[latents]
        latents = latents[better]
        self.score[latents], self.amount[latents] = scores[better], amounts[better]
        self.kind[latents] = KINDS.index(kind)


def _equal_ids(pack: PackData, text: str) -> np.ndarray:
    """Ids whose piece is the text, but for case and outer spaces; those equal to the letter alone if it has outer spaces."""
    exact = pack.ids_of.get(text, []) if text != text.strip() else []
    return np.array(exact or pack.loose_ids_of.get(fold(text.strip()), []), int)


def _scores(share: np.ndarray, given_text: np.ndarray) -> np.ndarray:
    """Scores of firing on a text: of clear cases 0.5 and more, of faint ones nearly nothing."""
    mean = np.sqrt(share * given_text)
    clear = mean >= min(_CLEAR, mean.max(initial=1.0))
    return np.where(clear, 0.5 + 0.5 * np.minimum(mean, 1.0), mean)


def _add_firing(best: _Best, pack: PackData, ids: np.ndarray) -> None:
    firings = _firings_on(pack, ids)
    latents = np.flatnonzero(firings)
    share = firings[latents] / np.maximum(pack.index.column("count")[latents], 1)
    given = firings[latents] / max(int(pack.token_totals[ids].sum()), 1)
    best.take(FIRES, latents, _scores(share, given), share)


def _firings_on(pack: PackData, wanted: np.ndarray) -> np.ndarray:
    ids, counts = pack.relation("token_id"), pack.relation("token_count")
    some = np.flatnonzero(among(ids, wanted, len(pack.vocab)))
    firings = np.zeros(pack.d_sae, np.int64)
    firings[some] = np.where(np.isin(ids[some], wanted), counts[some], 0).sum(1)
    return firings


def _add_texts(best: _Best, pack: PackData, wanted: str) -> None:
    """Latents whose sampled firings lie in a text that no token is."""
    occurrences, positions = pack.texts.places(wanted)
    if not occurrences:
        return
    inside = np.zeros(pack.contexts.size + 1, bool)
    inside[positions] = True
    sample = pack.firing_sample
    share = inside[sample].sum(1) / np.maximum((sample >= 0).sum(1), 1)  # an empty place, -1, reads the last, never inside
    latents = np.flatnonzero(share)
    share = share[latents]
    given = np.minimum(share * pack.index.column("count")[latents] / occurrences, 1.0)
    best.take(TEXT, latents, _scores(share, given), share)


def _add_labels(best: _Best, pack: PackData, wanted: str) -> None:
    texts = pack.index.text("label")
    inside, word = texts.containing(wanted), texts.with_word(wanted)
    latents = np.flatnonzero(inside)
    people = np.isin(latents, pack.labelled_by_people)
    score = np.where(people, np.where(word[latents], 0.75, 0.6), np.where(word[latents], 0.4, 0.3))
    best.take(LABEL, latents, score, np.zeros(len(latents)))


def _add_promoted(best: _Best, pack: PackData, equal: np.ndarray, holding: np.ndarray) -> None:
    ids, logits = pack.relation("promoted_id"), pack.relation("promoted_logit")
    for wanted, least, spread in ((equal, 0.2, 0.15), (holding, 0.05, 0.05)):
        some = np.flatnonzero(among(ids, wanted, len(pack.vocab))) if len(wanted) else np.zeros(0, int)
        value = np.where(np.isin(ids[some], wanted), logits[some], -np.inf).max(1, initial=-np.inf)
        largest = max(float(value.max(initial=0.0)), 1e-9)
        kind = PROMOTES if wanted is equal else PART
        best.take(kind, some, least + spread * np.clip(value / largest, 0, 1), value)


def _add_parts(best: _Best, pack: PackData, wanted: str, equal: np.ndarray) -> None:
    """Latents that fire on tokens of which the text is a part."""
    holding = np.setdiff1d(pack.words_with(wanted), equal)
    if not len(holding):
        return
    firings = _firings_on(pack, holding)
    latents = np.flatnonzero(firings)
    share = firings[latents] / np.maximum(pack.index.column("count")[latents], 1)
    best.take(PART, latents, 0.1 + 0.25 * np.minimum(share, 1.0), share)

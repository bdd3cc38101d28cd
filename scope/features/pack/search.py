"""Finding latents: by the token they fire on or promote, by numbers and columns. `scope.features.search` searches texts."""

import re

import numpy as np
import pandas as pd
from pandas.api.types import is_numeric_dtype

from scope.errors import PackError
from scope.escape import fold
from scope.features.pack.data import PackData

SHOWN = ["label", "label_source", "density", "max", "top_token", "top_token_share", "promotes", "out_score", "flags"]


def text_of(text: object) -> str:
    if not isinstance(text, str):
        raise PackError(f"Latents are found by one text at a time, such as 'dogs'; this is {str(text)[:60]!r}.")
    return text


def among(ids: np.ndarray, wanted: np.ndarray, d_vocab: int) -> np.ndarray:
    """[d_sae] whether one of the latent's ids is wanted."""
    listed = np.zeros(d_vocab + 1, bool)
    listed[wanted] = True
    return listed[ids].any(1)  # the empty place -1 reads the last one, which is never wanted


_COMMON = 100  # tokens so frequent that a text with more of them says nothing
_FREQUENT = 600  # tokens among which are all function words


def steerable(pack: PackData, n: int, words: bool = True) -> pd.DataFrame:
    """The rows to steer with: those that move the next token most towards what they promote, best first.

    Dead, rare, dense and duplicate latents are left out, and with `words` those whose five most promoted tokens hold a mark,
    a space, a single letter or one of the commonest tokens of the corpus, or fewer than three whole words that say something
    (three letters, and no function word): their effect is large and hard to see. Where nothing is left, all that fired are
    ranked.
    """
    index = pack.index
    fired = index.column("count") > 0
    chosen = fired & ~index.flagged(("dead", "dense", "rare", "duplicate"))
    if words:
        by_frequency = pack.pieces(np.argsort(-pack.token_totals, kind="stable")[:_FREQUENT])
        common = set(by_frequency[:_COMMON])
        dull = [sum(map(str.isalpha, piece)) < 2 or piece in common for piece in pack.vocab]
        five = pack.relation("promoted_id")[:, :5]
        chosen &= (five >= 0).any(1) & ~among(five, np.flatnonzero(dull), len(pack.vocab))
        words_of = {fold(piece.strip()) for piece in pack.vocab if piece[:1] == " " and len(piece) > 3}
        words_of -= {fold(piece.strip()) for piece in by_frequency}
        telling = np.array([*(fold(piece.strip()) in words_of for piece in pack.vocab), False])
        readable = chosen & (telling[five].sum(1) > 2)
        chosen = readable if readable.any() else chosen
    chosen = chosen if chosen.any() else fired
    best = index.order("out_score")
    best = best[chosen[best] & ~np.isnan(index.column("out_score")[best])]
    return pack.table.iloc[best[:n]]


def token_ids(pack: PackData, token: str) -> np.ndarray:
    """Ids whose piece is `token`: equal to the letter if any is, otherwise without regard to case and outer spaces.

    Raises:
        PackError: no piece of the vocabulary is this token.
    """
    exact = pack.ids_of.get(text_of(token), [])
    if exact and token != token.strip():
        return np.array(exact)
    loose = pack.loose_ids_of.get(fold(token.strip()), []) if token.strip() else []
    if not loose and not exact:
        raise PackError(
            f"No token of this vocabulary is {token!r}. Longer words are split into several; try a part, or find({token!r})."
        )
    return np.array(sorted({*exact, *loose}))


def fires_on(pack: PackData, token: str) -> pd.DataFrame:
    """Latents with this token among their most frequent ones, ranked by P(fires | token) x P(token | fires)."""
    ids, counts = pack.relation("token_id"), pack.relation("token_count")
    wanted = token_ids(pack, token)
    some = np.flatnonzero(among(ids, wanted, len(pack.vocab)))
    firings = np.zeros(pack.d_sae, counts.dtype)
    firings[some] = np.where(np.isin(ids[some], wanted), counts[some], 0).sum(1)
    latents = np.flatnonzero(firings)
    stood = max(int(pack.token_totals[wanted].sum()), 1)
    table = pack.table.iloc[latents]
    given_fires = firings[latents] / np.maximum(table["count"].to_numpy(), 1)
    given_token = firings[latents] / stood
    lift = given_fires / (stood / max(pack.n_tokens, 1))
    hits = table[SHOWN].assign(p_fires_given_token=given_token, p_token_given_fires=given_fires, lift=lift)
    return hits.iloc[np.argsort(-given_fires * given_token, kind="stable")]


def promotes(pack: PackData, token: str) -> pd.DataFrame:
    """Latents with this token among the ten they promote most, ranked by logit; `measured` is the rise of its probability."""
    wanted = token_ids(pack, token)
    logits = _best(pack, "promoted_id", "promoted_logit", wanted)
    rises = _best(pack, "measured_id", "measured_rise", wanted)
    latents = np.flatnonzero(~np.isnan(logits) | ~np.isnan(rises))
    hits = pack.table.iloc[latents][SHOWN].assign(logit=logits[latents], measured=rises[latents])
    return hits.sort_values(["logit", "measured"], ascending=False, kind="stable", na_position="last")


def _best(pack: PackData, ids: str, values: str, wanted: np.ndarray) -> np.ndarray:
    """[d_sae] the largest value at a wanted id, NaN where there is none."""
    ids, values = pack.relation(ids), pack.relation(values)
    some = np.flatnonzero(among(ids, wanted, len(pack.vocab)))
    best = np.full(pack.d_sae, np.nan)
    best[some] = np.where(np.isin(ids[some], wanted), values[some], -np.inf).max(1, initial=-np.inf)
    return best


_WAYS = "numbers and ranges such as 3,17,40-60; starred; or COLUMN:N for the N foremost, as out_score:50 or density:100"


def chosen(pack: PackData, which: str | None) -> list[int]:
    """The latents that `which` names, each once: "3,17,40-60", "starred", "out_score:50" (living ones), parts joined by commas.

    None means all.

    Raises:
        PackError: a part that is none of these, a latent that the pack does not have, or a column without numbers.
    """
    if which is None:
        return list(range(pack.d_sae))
    found: dict[int, None] = {}
    for part in filter(None, (p.strip() for p in which.split(","))):
        found.update(dict.fromkeys(_part(pack, part)))
    if not found:
        raise PackError(f"{which!r} names no latent of {pack.folder.name}. To name some: {_WAYS}.")
    return list(found)


def _part(pack: PackData, part: str) -> list[int]:
    if part == "starred":
        return [i for i in pack.notes.starred() if 0 <= i < pack.d_sae]
    if match := re.fullmatch(r"(\d{1,12})(?:-(\d{1,12}))?", part):
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            raise PackError(f"{part} runs backwards; ranges go upwards, as {last}-{first}.")
        pack.latent_id(first), pack.latent_id(last)
        return list(range(first, last + 1))
    if match := re.fullmatch(r"([a-z]\w*):(\d{1,9})", part):
        return _foremost(pack, match[1], int(match[2]))
    raise PackError(f"{part!r} names no latents. To name some: {_WAYS}.")


def _foremost(pack: PackData, column: str, n: int) -> list[int]:
    numbers = [name for name in pack.table.columns if is_numeric_dtype(pack.table[name])]
    if column not in numbers:
        raise PackError(f"There is no column {column} to rank by; there are {', '.join(numbers)}.")
    order = pack.index.order(column)
    known = ~np.isnan(pack.index.column(column)) & (pack.index.column("count") > 0)
    return order[known[order]][:n].tolist()

"""The list of latents: searching, filtering, sorting, and the columns of its table."""

import re
from collections.abc import Iterable, Mapping, MutableMapping, Sequence, Set
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd
import streamlit as st
from scope.app.kit.pictures import preview
from scope.app.kit.plain import show_line
from scope.app.serve import packs
from scope.app.serve.pack_facts import rows_noun
from scope.app.serve.session import DENSE

from scope.errors import PackError
from scope.escape import fold, visible_token
from scope.features.face import Pack
from scope.features.pack.index import Index

MODES = ("anything", "label", "fires on", "promotes", "numbers")
"""What a search looks through. These words and those of SORTS stand in addresses."""

SORTS = {
    "best match": "",
    "firing frequency": "density",
    "firings": "count",
    "max": "max",
    "output score": "out_score",
    "top token's share": "top_token_share",
    "label's score": "label_score",
    "nearest cosine": "nearest_cos",
    "tokens for half": "n_tokens_half",
}
"""Column of the table by its name on the page."""

SORTED_BY = {"id": "best match", "share": "top token's share", "nearest": "nearest cosine"}
SORTED_BY |= {"density": "firing frequency", "score": "label's score"} | {name: name for name in ("max", "output score")}
"""Sort by column of the table whose header is clicked; by other columns the list cannot be sorted."""


def another(before: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Whether two settings of the controls list other latents, or list them in another order."""
    look = ("page", "view", "wide")
    return {k: v for k, v in before.items() if k not in look} != {k: v for k, v in now.items() if k not in look}


def click_header(column: str, state: MutableMapping[str, Any]) -> None:
    """Sort the whole list, not only the rows of a page, by a column whose header was clicked; a second click reverses it."""
    sort = SORTED_BY.get(column)
    if sort is None:
        state["unsorted"] = column
        return
    state["rising"] = not state.get("rising", False) if state.get("sort") == sort else False
    state["sort"] = sort


FILTERS = ("dead", "rare", "single-token", "duplicate")
"""Flags that can be hidden; dense latents have a setting of their own, shared with the Prompt page."""
ONLY = ("starred", "labelled", "unlabelled", "output")
"""What a list can be restricted to, besides the lists that readers made."""
LEAST = {"Largest activation": "max", "Output score": "out_score", "Label's score": "label_score"}
"""Columns with a lower bound, by their names on the page."""
WIDE = {"Hide": {"hide": []}, "Only": {"only": []}, DENSE: {"dense": True}}
ALL = (-7.0, 0.0)
"""The widest range of firing frequencies, as powers of ten."""
WIDE |= {"Firing frequency": {"d": ALL}, "Top token's share": {"share": 1.0}}
WIDE |= {name: {f"least {column}": None} for name, column in LEAST.items()}
"""By filter, the state that lets every latent through."""


def frequencies(span: tuple[float, float]) -> str:
    """A range of firing frequencies, given as powers of ten, in per cent."""
    return " to ".join(f"{100 * 10**power:.2g} %" for power in span)


def acting_filters(
    hidden: Sequence[str], only: Sequence[str], span: tuple[float, float], share: float, least: Mapping[str, float | None]
) -> str:
    """The filters that act, in words; "" for none."""
    names = {column: name for name, column in LEAST.items()}
    parts = [f"without {', '.join(hidden)}"] if hidden else []
    parts += [f"only {', '.join(map(visible_token, only))}"] if only else []
    parts += [f"firing on {frequencies(span)}"] if tuple(span) != ALL else []
    parts += [f"top token's share at most {share:.0%}"] if share < 1 else []
    parts += [f"{names[column].lower()} at least {bound:.3g}" for column, bound in least.items() if bound is not None]
    return "; ".join(parts)


def search(store: Pack, words: str, mode: str) -> tuple[np.ndarray, pd.DataFrame]:
    """Ids that match, the best first, and the columns that only this search gives.

    Raises:
        PackError: no such token, or a number that is none of this pack's.
    """
    if not words.strip():
        return np.arange(store.d_sae), pd.DataFrame()
    if mode == "numbers":
        return numbers(store, words), pd.DataFrame()
    if mode == "label":
        wanted, texts = fold(words.strip()), store.index.text("label")
        inside, exact = texts.containing(wanted), texts.with_word(wanted)
        return np.concatenate([np.flatnonzero(exact), np.flatnonzero(inside & ~exact)]), pd.DataFrame()
    hits = {"anything": store.find, "fires on": store.fires_on, "promotes": store.promotes}[mode](words)
    extra = [c for c in ("p_fires_given_token", "p_token_given_fires", "lift", "logit", "measured") if c in hits]
    return hits.index.to_numpy(), hits[extra]


def numbers(store: Pack, words: str) -> np.ndarray:
    """Ids from "3, 17 40-45", in the order given, each once."""
    ids: list[int] = []
    for part in re.split(r"[\s,;]+", words.strip(" ,;")):
        match = re.fullmatch(r"#?(\d{1,12})(?:-(\d{1,12}))?", part)
        if not match:
            raise PackError(f"{part!r} is not the number of a latent. Give numbers and ranges, such as: 3, 17, 40-45")
        first, last = int(match[1]), int(match[2] or match[1])
        if first > last or last >= store.d_sae:
            raise PackError(f"{part} is not within this pack: its latents run from 0 to {store.d_sae - 1:,}.")
        ids.extend(range(first, last + 1))
    return np.array(list(dict.fromkeys(ids)), int)


def restricted(store: Pack, names: Sequence[str]) -> np.ndarray:
    """[d_sae] mask of latents that meet all of: starred, labelled by a reader, flagged as output, on a list of this name."""
    kept, n = np.ones(store.d_sae, bool), store.d_sae
    lists = store.notes.lists() if any(name.startswith(LIST) for name in names) else {}
    for name in names:
        if name in ("labelled", "unlabelled"):
            kept &= _marked(store.notes.labels(), n) == (name == "labelled")
        elif name == "output":
            kept &= store.index.flagged(["output"])
        else:
            kept &= _marked(store.notes.starred() if name == "starred" else lists.get(name.removeprefix(LIST), []), n)
    return kept


LIST = "list: "


def _marked(latents: Iterable[int], n: int) -> np.ndarray:
    mask = np.zeros(n, bool)
    mask[[i for i in latents if 0 <= i < n]] = True
    return mask


def filter_masks(
    index: Index,
    hidden: Sequence[str],
    span: tuple[float, float],
    share: float,
    least: Mapping[str, float | None] = MappingProxyType({}),
    only: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """By filter, which latents it keeps; a filter that keeps all is left out.

    Args:
        span: log10 of the lowest and highest density.
        share: largest share of the top token.
        least: smallest values by column; latents without a value are dropped.
        only: mask of the latents that readers' notes keep.
    """
    density, left = index.column("density"), {}
    if hidden:
        left["Hide"] = ~index.flagged(hidden)
    if only is not None:
        left["Only"] = only
    if span[0] > -7 or span[1] < 0:
        low, high = (0.0 if span[0] <= -7 else 10 ** span[0]), 10 ** span[1]
        left["Firing frequency"] = (density >= low) & (density <= high * (1 + 1e-9))
    if share < 1:
        left["Top token's share"] = index.column("top_token_share") <= share + 1e-9
    for name, column in LEAST.items():
        if least.get(column) is not None:
            left[name] = index.column(column) >= least[column]
    return left


def combined(masks: dict[str, np.ndarray], n: int, without: str = "") -> np.ndarray:
    """[n] mask of the latents that all filters keep, or all filters but one."""
    return np.logical_and.reduce([np.ones(n, bool), *(mask for name, mask in masks.items() if name != without)])


def ordered(index: Index, ids: np.ndarray, keep: np.ndarray, sort: str, ascending: bool) -> np.ndarray:
    """Those of `ids` that are kept, sorted; latents without a value come last either way."""
    if not sort:
        ids = ids[keep[ids]]
        return ids[::-1] if ascending else ids
    if len(ids) < len(keep):
        keep = keep & np.isin(np.arange(len(keep)), ids)
    order = index.order(sort, ascending)
    return order[keep[order]]


def table_rows(store: Pack, ids: np.ndarray, beside: pd.DataFrame, starred: Set[int] = frozenset()) -> pd.DataFrame:
    table = store.table.iloc[ids]
    rows = pd.DataFrame(
        {
            "id": ids,
            "star": ["★" if i in starred else "" for i in ids.tolist()],
            "label": [show_line(text, 160) for text in table["label"]],
            "score": table["label_score"].to_numpy(float),
            "density": 100 * table["density"].to_numpy(float),
            "max": table["max"].to_numpy(),
            "p99": table["p99"].to_numpy(),
            "top token": [visible_token(token, mark_space=True) for token in table["top_token"]],
            "share": table["top_token_share"].to_numpy(),
            "output score": table["out_score"].to_numpy(float),
            "promotes": [[visible_token(token, mark_space=True) for token in tokens[:5]] for tokens in table["promotes"]],
            "nearest": table["nearest_cos"].to_numpy(float),
            "label from": [show_line(text, 30) for text in table["label_source"]],
            "flags": table["flags"].to_numpy(),
        }
    )
    if not starred:
        del rows["star"]
    if store.pictures is not None:
        rows.insert(1, "top picture", previews(store, ids))
        if rows_noun(store) != "rows":  # patches are no tokens and promote none
            rows = rows.drop(columns=["top token", "share", "output score", "promotes"])
    for column in beside.columns:
        rows.insert(rows.columns.get_loc("label") + 1, column, beside.loc[ids, column].to_numpy())
    return rows


PREVIEW = 60
"""Pixels of a row with a picture."""


def previews(store: Pack, ids: np.ndarray) -> list[str | None]:
    """Small maps of each latent's strongest example, drawn once per open pack; None without one, or where it is damaged."""
    drawn = packs.once(store, "previews", dict)
    for i in ids.tolist():
        if i not in drawn:
            try:
                drawn[i] = preview(store[i])
            except PackError:  # the latent's own page says what is damaged
                drawn[i] = None
    return [drawn[i] for i in ids.tolist()]


def column_config(rows: pd.DataFrame) -> dict:
    number, config = st.column_config.NumberColumn, {}
    config["top picture"] = st.column_config.ImageColumn("top picture", width=90, help="Map of its strongest example.")
    config["id"] = number("latent", format="%d", width=70)
    config["label"] = st.column_config.TextColumn("label", width="large")
    config["score"] = number("label's score", format="%.2f", help="How well its label predicts its firing.")
    config["density"] = number("firing frequency", format="%.3g %%", width=120, help="Share of tokens on which it fires.")
    config["p99"] = number("p99", format="%.3g", help="99th percentile of its activations when it fires; within 9 %.")
    config["max"] = number("largest", format="%.3g", help="Largest activation.")
    config["share"] = number("top token's share", format="percent", help="Share of its firings that are on the top token.")
    config["star"] = st.column_config.TextColumn("", width=30)
    config["nearest"] = number("nearest", format="%.2f", help="Largest cosine with another latent's direction.")
    config["promotes"] = st.column_config.ListColumn(
        "promotes", help="By weights, through the final norm's gain.", width="medium"
    )
    config["output score"] = number(
        format="%+.3f", help="Measured rise of its promoted tokens' probability when the latent is added."
    )
    config["p_fires_given_token"] = number("fires on it", format="percent", help="P(fires | this token).")
    config["p_token_given_fires"] = number("of its firings", format="percent", help="P(this token | it fires).")
    config["lift"] = number("lift", format="%.1f", help="How many times likelier the token is when the latent fires.")
    config["logit"] = number("logit", format="%+.2f", help="Rise of this token's logit, by weights.")
    config["measured"] = number(
        "measured rise", format="%+.4f", help="Measured rise of this token's probability when the latent is added."
    )
    return {name: column for name, column in config.items() if name in rows}


ON_DEMAND = ("p99", "share", "output score", "promotes", "nearest", "label from", "flags")
"""Columns that are drawn only with “More columns”."""

"""What a pack knows of one token of an example: how strongly the latent fired there, and what the token is to the latent."""

from typing import Any

import pandas as pd
import streamlit as st
from scope.app.kit.latent_tables import table
from scope.app.kit.plain import number, plain, show_line

from scope.escape import visible_token
from scope.features.pack.feature import Example, Feature


def value(feature: Feature, example: Example, token: int) -> str:
    """Activation and the share of the latent's firings that are weaker, in a line."""
    here = float(example.acts[token])
    if here <= 0:
        return f"#{feature.id} is silent here"
    weaker = min(feature.quantile(here), 1 - 1 / max(feature.row["count"], 1))
    return f"#{feature.id} is {here:.3g} here, stronger than {weaker:.1%} of its firings"


def statistics(feature: Feature, token_id: int) -> str:
    """How the latent stands to this token over the whole text, in a line."""
    stood = int(feature.pack.token_totals[token_id]) if 0 <= token_id < len(feature.pack.token_totals) else 0
    row = next((row for row in feature.tokens if row["id"] == token_id), None)
    if not stood:
        return "where latents are not counted: a control token, or padding"
    if row is None:
        return (
            f"the token stands {stood:,} times in the pack's text and is not among the {len(feature.tokens)} it fires on most"
        )
    return (
        f"it fires on {row['p_fires_given_token']:.1%} of the {stood:,} times that this token stands in the pack's text "
        f"(lift {row['lift']:.1f}, mean {number(row['mean'])}), which are {row['p_token_given_fires']:.1%} of its firings"
    )


def header(example: Example, token: int) -> None:
    """Which token it is, and where it stands."""
    piece = show_line(visible_token(example.tokens[token], mark_space=True), 40)
    st.markdown(f"**{plain(piece)}**", width="content")
    place = example.offset - example.peak + token
    st.caption(plain(f"token {place} of context {example.context}, {example.document}"), width="content")


def beside(rows: pd.DataFrame, key: str) -> int | None:
    """Latents that fire at the token, the most surprising first; the one that is to be opened."""
    picked = table(rows.drop(columns="token"), ("surprise", "value", "share", "quantile"), key)
    return None if picked is None else int(rows.index[picked])


def differs(pack: float, now: float) -> str:
    """Where the pack's value and the one just read lie further apart than the rounding of a recording: a warning, else ""."""
    if abs(pack - now) <= 0.05 * max(abs(pack), abs(now)) + 1e-3:
        return ""
    return f"The pack holds {pack:.3g} here and the model gives {now:.3g} now: they are not read alike, trust neither list."


def code(feature: Feature, example: Example, token: int) -> str:
    """The lines that give the same list."""
    place: Any = example.offset - example.peak + token
    return (
        "from scope.features.reading.read_text import read_context\nfrom scope.features.reading.view import ranked\n\n"
        f"view = read_context(pack, {example.context}, model, sae)\nranked(view, {place})\n"
    )

"""The panel under an example when one of its tokens is clicked: the latent's value there, and links to the other pages."""

from typing import Any

import pandas as pd
import streamlit as st
from scope.app.feature.examples import stronger_than, text_of
from scope.app.kit import messages
from scope.app.kit.code import copy_as_python, opening
from scope.app.kit.latent_tables import table
from scope.app.kit.plain import number, plain, show_line
from scope.app.serve import models, session

from scope.errors import ScopeError
from scope.escape import visible_token
from scope.features.pack.feature import Example, Feature
from scope.features.reading.view import ranked


def token_panel(feature: Feature, example: Example, token: int) -> None:
    """Value and quantile of the latent at the token, the token's statistics, links to other pages and, on demand, all latents
    that fire there."""
    with st.container(border=True):
        with st.container(horizontal=True, vertical_alignment="center"):
            token_header(example, token)
            st.button("Close", icon=":material/close:", type="tertiary", on_click=close_token)
        st.caption(plain(f"{value_line(feature, example, token)}; {token_statistics(feature, example.ids[token])}."))
        links_from_token(feature, example, token)
        with st.container(horizontal=True, vertical_alignment="center"):
            meaning = "Runs the model on this context of the pack; stays on for the next token."
            wanted = st.toggle("Which latents fire here", key="fire here", help=meaning, persist_state="session")
            copy_as_python(opening(str(feature.pack.folder)) + token_code(feature, example, token), key="py token")
        if wanted:
            all_firing(feature, example, token)


def close_token() -> None:
    st.session_state["chosen token"] = None


def links_from_token(feature: Feature, example: Example, token: int) -> None:
    """Buttons: the text up to the token on the Prompt or the Steer page, and all latents of this token."""
    text = text_of(example, token + 1)
    with st.container(horizontal=True, vertical_alignment="center"):
        none = None if text else "There is no text before it."
        if st.button("Open in Prompt", icon=":material/science:", type="tertiary", disabled=not text, help=none):
            session.go("prompt", text=text[-1500:], at="last")
        meaning = none or "Continues the text up to here, steered with this latent."
        if st.button("Steer from here", icon=":material/explore:", type="tertiary", disabled=not text, help=meaning):
            st.session_state["steer prompt"], st.session_state["steer chat"] = text, False
            session.go("steer", f=feature.id)
        meaning = "All latents that often fire on this token, in the Features table."
        if st.button("Latents of this token", icon=":material/table_rows:", type="tertiary", help=meaning):
            session.go("features", q=example.tokens[token], **{"in": "fires on"})


def all_firing(feature: Feature, example: Example, token: int) -> None:
    """All latents that fire at the token, read by the model."""
    place = example.offset - example.peak + token
    try:
        view = models.reading(feature.pack, example.context)
    except ScopeError as refusal:
        messages.show_refusal(refusal)
        return
    warning = disagreement(float(example.acts[token]), float(view.values(feature.id)[place]))
    if warning:
        st.warning(plain(warning))
    rows = ranked(view, place, dense=st.session_state.get("dense chosen", False))
    if rows.empty:
        st.caption("No latent fires here, except perhaps dense ones.")
        return
    picked = co_firing_table(rows, key=f"at token {example.context} {place}")
    st.caption(f"The {len(rows)} most surprising; unexplained there (FVU): {number(float(view.fvu_at[place]), '.0%')}.")
    if picked is not None and picked != feature.id:
        session.go("feature", f=picked)


def value_line(feature: Feature, example: Example, token: int) -> str:
    """Activation and the share of the latent's firings that are weaker, in one line."""
    here = float(example.acts[token])
    if here <= 0:
        return f"#{feature.id} is silent here"
    return f"#{feature.id} is {here:.3g} here, stronger than {stronger_than(feature, here):.1%} of its firings"


def token_statistics(feature: Feature, token_id: int) -> str:
    """How often the latent fires on this token over the whole text, in one line."""
    total = int(feature.pack.token_totals[token_id]) if 0 <= token_id < len(feature.pack.token_totals) else 0
    row = next((row for row in feature.tokens if row["id"] == token_id), None)
    if not total:
        return "latents are not counted here: a control token, or padding"
    if row is None:
        listed = f"it is not among the {len(feature.tokens)} on which the latent fires most"
        return f"the token occurs {total:,} times in the pack's text; {listed}"
    return (
        f"it fires on {row['p_fires_given_token']:.1%} of the {total:,} occurrences of this token in the pack's text "
        f"(lift {row['lift']:.1f}, mean {number(row['mean'])}), which are {row['p_token_given_fires']:.1%} of its firings"
    )


def token_header(example: Example, token: int) -> None:
    """The token and its position."""
    piece = show_line(visible_token(example.tokens[token], mark_space=True), 40)
    st.markdown(f"**{plain(piece)}**", width="content")
    place = example.offset - example.peak + token
    st.caption(plain(f"token {place} of context {example.context}, {example.document}"), width="content")


def co_firing_table(rows: pd.DataFrame, key: str) -> int | None:
    """Table of the latents that fire at the token, most surprising first; returns the one to open."""
    picked = table(rows.drop(columns="token"), ("surprise", "value", "share", "quantile"), key)
    return None if picked is None else int(rows.index[picked])


def disagreement(pack: float, now: float) -> str:
    """A warning where the pack's value and the one just read differ by more than rounding, else ""."""
    if abs(pack - now) <= 0.05 * max(abs(pack), abs(now)) + 1e-3:
        return ""
    return (
        f"The pack holds {pack:.3g} here and the model gives {now:.3g} now. They were not read in the same way: "
        "trust neither list."
    )


def token_code(feature: Feature, example: Example, token: int) -> str:
    """Python lines that give the same list."""
    place: Any = example.offset - example.peak + token
    return (
        "from scope.features.reading.read_text import read_context\nfrom scope.features.reading.view import ranked\n\n"
        f"view = read_context(pack, {example.context}, model, sae)\nranked(view, {place})\n"
    )

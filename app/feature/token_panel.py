"""The panel under an example when one of its tokens is clicked: what fires there, and the ways on from there."""

import streamlit as st
from scope.app.feature import token_facts
from scope.app.feature.panels import text_of
from scope.app.kit import messages
from scope.app.kit.code import copy_as_python, opening
from scope.app.kit.plain import number, plain
from scope.app.serve import models, session

from scope.errors import ScopeError
from scope.features.pack.feature import Example, Feature
from scope.features.reading.view import ranked


def panel(feature: Feature, example: Example, token: int) -> None:
    """Value and quantile of the latent at the token, the token's statistics, ways to the other pages, and, if asked for, all
    latents that fire there, read by the model."""
    with st.container(border=True):
        with st.container(horizontal=True, vertical_alignment="center"):
            token_facts.header(example, token)
            st.button("Close", icon=":material/close:", type="tertiary", on_click=close)
        st.caption(
            plain(f"{token_facts.value(feature, example, token)}; {token_facts.statistics(feature, example.ids[token])}.")
        )
        ways_on(feature, example, token)
        with st.container(horizontal=True, vertical_alignment="center"):
            told = "Runs the model on this context of the pack; stays on for the next token."
            wanted = st.toggle("Which latents fire here", key="fire here", help=told, persist_state="session")
            copy_as_python(opening(str(feature.pack.folder)) + token_facts.code(feature, example, token), key="py token")
        if wanted:
            firing(feature, example, token)


def close() -> None:
    st.session_state["chosen token"] = None


def ways_on(feature: Feature, example: Example, token: int) -> None:
    """The text up to the token in the Prompt lab or the Steer page, and who else fires on such tokens."""
    text = text_of(example, token + 1)
    with st.container(horizontal=True, vertical_alignment="center"):
        none = None if text else "Nothing stands before it."
        if st.button("Prompt lab", icon=":material/science:", type="tertiary", disabled=not text, help=none):
            session.go("prompt", text=text[-1500:], at="last")
        told = none or "Continues the text up to here, with this latent in the stack."
        if st.button("Steer from here", icon=":material/explore:", type="tertiary", disabled=not text, help=told):
            st.session_state["steer prompt"], st.session_state["steer chat"] = text, False
            session.go("steer", f=feature.id)
        told = "All latents that often fire on this token, in the table."
        if st.button("Latents of this token", icon=":material/table_rows:", type="tertiary", help=told):
            session.go("features", q=example.tokens[token], **{"in": "fires on"})


def firing(feature: Feature, example: Example, token: int) -> None:
    """All latents that fire at the token."""
    place = example.offset - example.peak + token
    try:
        view = models.reading(feature.pack, example.context)
    except ScopeError as refusal:
        messages.refuse(refusal)
        return
    warning = token_facts.differs(float(example.acts[token]), float(view.values(feature.id)[place]))
    if warning:
        st.warning(plain(warning))
    rows = ranked(view, place, dense=st.session_state.get("dense told", False))
    if rows.empty:
        st.caption("No latent fires here, but perhaps some that fire on most tokens.")
        return
    picked = token_facts.beside(rows, key=f"at token {example.context} {place}")
    st.caption(f"The {len(rows)} most surprising; unexplained there (FVU): {number(float(view.fvu_at[place]), '.0%')}.")
    if picked is not None and picked != feature.id:
        session.go("feature", f=picked)

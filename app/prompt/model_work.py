"""What the Prompt page asks of the model beyond a reading: what comes next, direct effects, ablation, attribution."""

from collections.abc import Mapping
from typing import Any

import pandas as pd
import streamlit as st
from scope.app.kit import latent_tables, messages
from scope.app.kit.code import copy_as_python, heading, opening
from scope.app.prompt import panels
from scope.app.serve import models

from scope.errors import ScopeError
from scope.features.face import Pack
from scope.features.reading.several_saes import foremost
from scope.features.reading.view import ranked


def following(store: Pack, view: Any, place: int | None) -> pd.DataFrame:
    """The likeliest tokens after a token of the text; asked once and kept while the page shows the same."""
    from scope.features.reading.direct_effects import next_tokens

    key = (id(view), place)
    if st.session_state.get("next", (None,))[0] != key:
        with models.live(store) as (model, _):
            st.session_state["next"] = (key, next_tokens(view, model, place))
    return st.session_state["next"][1]


def by_direct_effect(views: Mapping[str, Any], at: int, k: int, *, dense: bool, least: float) -> tuple[int, pd.DataFrame]:
    """(id of the likeliest next token, the k latents of all dictionaries that move its logit most either way).

    Raises:
        PackError: the direct path of this model or dictionary cannot be read.
    """
    from scope.features.reading.direct_effects import direct_effects

    frames = []
    for name, view in views.items():
        with models.live(view.pack) as (model, sae):
            token, effects = direct_effects(view, model, sae, at)
        rows = ranked(view, at, "value", view.pack.d_sae, dense=dense, least=least)
        rows = rows.assign(direct=effects[rows.index]).rename_axis("latent").reset_index().assign(dictionary=name)
        frames.append(rows)
    return token, foremost(frames, "direct", k)


def ablation(store: Pack, text: str, latent: int) -> None:
    """A button that takes one latent out of the text, and what that does to the next token, beside the null."""
    lines = "from scope import Ablate\nfrom scope.circuits.effects import effects\n\n"
    with st.container(horizontal=True, vertical_alignment="center"):
        asked = st.button(f"Ablate #{latent}", icon=":material/content_cut:", help="Runs the text once more, without it.")
        copy_as_python(lines + f"effects(model, sae, Ablate({latent}), {text[:200]!r})", key="py ablate")
    if asked:
        from scope.circuits.effects import effects
        from scope.steering.edits.interventions import Ablate

        try:
            with models.live(store) as (model, sae), st.spinner("Ablating"):
                st.session_state["ablated"] = (text, latent, effects(model, sae, Ablate(latent), text))
        except ScopeError as refusal:
            messages.refuse(refusal)
    was, which, found = st.session_state.get("ablated", ("", None, None))
    if found is not None and (was, which) == (text, latent):
        panels.ablated(found)


def attribution(store: Pack, text: str) -> None:
    """A logit difference taken apart, when it is asked for."""
    meaning = "A logit difference taken apart; with the error as a row, the rows add up."
    lines = opening(str(store.folder)) + latent_tables.attribution_code(text)
    heading("What decides the next token", lines, "py attribution", meaning=meaning)
    with st.container(horizontal=True, vertical_alignment="bottom"):
        token = st.text_input("Token", key="token", placeholder="the likeliest", width=130)
        other = st.text_input("against", key="other", placeholder="the next one", width=130)
        method = st.selectbox("Method", latent_tables.METHODS, key="method", width=140)
        go = st.button("Attribute", icon=":material/functions:")
    if go:
        from scope.circuits.attribution import attribute

        try:
            with models.live(store) as (model, sae), st.spinner("Attributing"):
                found = attribute(model, sae, text, token or None, other or None, method=method, pack=store, exact=16)
                st.session_state["attribution"] = (text, found)
        except ScopeError as refusal:
            messages.refuse(refusal)
    asked, found = st.session_state.get("attribution", ("", None))
    if found is not None and asked == text:
        latent_tables.attribution(found)
    else:
        st.caption("Which latents make the model say this token rather than the other, by gradient or by ablating each.")

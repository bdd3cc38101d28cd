"""The Effects view of the Steer page: no text is drawn, a prompt is run with the edits and without, and taken apart."""

import streamlit as st
from scope.app import models, session, steering, steering_facts
from scope.app.components import prompts
from scope.app.components import steering_effects as effects
from scope.app.components import steering_text as text
from scope.app.components.code import heading, opening
from scope.app.components.plain import plain
from scope.app.jobs import Job
from scope.app.steering_desk import Desk

from scope.steering.edits.interventions import Edits


def inside(desk: Desk, edits: Edits | None, job: Job | None) -> None:
    """What the edits do to the next token, and which latents decide it."""
    store, mine = desk.store, desk.mine
    prompt = st.text_area("Prompt", height=80, **text.kept("prompt", "My favourite hobby is"))
    with st.container(horizontal=True, vertical_alignment="bottom"):
        token = st.text_input("Token", key="steer token", placeholder="the likeliest", width=150, persist_state="session")
        other = st.text_input("against", key="steer other", placeholder="the next one", width=150, persist_state="session")
        method = st.selectbox("Attribution by", prompts.METHODS, key="steer method", width=150, persist_state="session")
    others = steering_facts.later(store)
    places = st.multiselect("Later dictionaries", others, key="steer later", format_func=plain) if others else []
    tokens = (token, other)
    with st.container(horizontal=True):
        if st.button(
            "Measure the edits", icon=":material/play_arrow:", type="primary", disabled=edits is None or job is not None
        ):
            mine.pop("effects", None)
            later = [models.load_dictionary(models.dictionary_of(session.pack(place))) for place in places]
            desk.begin("effects", lambda model, sae: steering.effect(store, model, sae, edits, prompt, tokens, later))
            st.rerun()
        if st.button("Attribute to latents", icon=":material/functions:", disabled=job is not None):
            mine.pop("attribution", None)
            desk.begin("attribution", lambda model, sae: steering.attribution(store, model, sae, prompt, tokens, method))
            st.rerun()
    if "effects" in mine:
        found = mine["effects"]
        heading(
            "What the edits do to the next token", opening(str(store.folder)) + steering_facts.effects_code(found), "py effects"
        )
        st.caption(plain(f"{found.edits} after: {found.prompt}"))
        effects.numbers(found)
        effects.tokens(found)
        effects.downstream(found, {session.pack(place).site: session.pack(place).table["label"] for place in places})
    if "attribution" in mine:
        found = mine["attribution"]
        heading(
            "What decides the next token, unedited",
            opening(str(store.folder)) + prompts.attribution_code(found.prompt),
            "py parts",
        )
        prompts.attribution(found)
    if "effects" not in mine and "attribution" not in mine:
        st.caption("No token is drawn here: the prompt is run once with the edits and once without, and beside other latents.")

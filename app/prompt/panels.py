"""Panels of the Prompt page that run the model again: next tokens, direct effects, ablation, attribution."""

from collections.abc import Mapping
from typing import Any

import pandas as pd
import streamlit as st
from scope.app.kit import latent_tables, messages
from scope.app.kit.code import copy_as_python, heading, opening
from scope.app.kit.latent_tables import piece
from scope.app.kit.plain import plain, show_line
from scope.app.serve import models

from scope.errors import ScopeError
from scope.features.face import Pack
from scope.features.reading.several_saes import foremost
from scope.features.reading.view import ranked


def dictionaries_table(rows: pd.DataFrame, key: str) -> None:
    """A row per SAE: how many latents fire on the text, and how much it explains."""
    shown = rows.assign(dictionary=[show_line(name, 40) for name in rows["dictionary"]])
    config = {
        "fires": st.column_config.NumberColumn("fire", format="%.1f", help="Latents that fire per token, mean over the text."),
        "fvu": st.column_config.NumberColumn(
            "unexplained (FVU)",
            format="percent",
            help="0 % is perfect; 100 % is what the text's mean activation leaves.",
        ),
        "latents": st.column_config.NumberColumn("of", format="localized"),
    }
    st.dataframe(shown, hide_index=True, column_config=config, key=key, alt=f"{len(rows)} dictionaries on this text")


def next_tokens_table(tokens: pd.DataFrame, key: str) -> None:
    """Table of the likeliest next tokens with their probabilities."""
    shown = pd.DataFrame({"token": [piece(token) for token in tokens["token"]], "p": tokens["p"].to_numpy().round(3)})
    config = {"p": st.column_config.ProgressColumn("p", format="percent", min_value=0.0, max_value=1.0)}
    st.dataframe(shown, hide_index=True, column_config=config, key=key, alt="The likeliest next tokens")


def ablation_table(effects: Any) -> None:
    """Table of next-token probabilities with and without a latent, beside the null."""
    shown = pd.DataFrame(
        [{"token": piece(t["token"]), **{k: t[k] for k in ("plain", "edited", "change")}} for t in effects.tokens]
    )
    percent = {k: st.column_config.NumberColumn(k, format="percent") for k in ("plain", "edited")}
    config = {**percent, "change": st.column_config.NumberColumn("change", format="%+.4f")}
    st.dataframe(shown, hide_index=True, column_config=config, key="ablated", alt="Next token with and without the latent")
    null = sorted(effects.null_kl)
    summary = f"KL to the plain run {effects.kl:.3g} nats"
    if null:
        median, largest = null[len(null) // 2], null[-1]
        summary += f"; ablating {len(null)} others that are as strong here: median {median:.3g}, largest {largest:.3g}"
    st.caption(plain(summary + "."))
    for note in effects.notes:
        st.info(plain(note))


def next_tokens_after(store: Pack, view: Any, place: int | None) -> pd.DataFrame:
    """The likeliest tokens after a token of the text; cached while the page shows the same text."""
    from scope.features.reading.direct_effects import next_tokens

    key = (id(view), place)
    if st.session_state.get("next", (None,))[0] != key:
        with models.in_turn(store) as (model, _):
            st.session_state["next"] = (key, next_tokens(view, model, place))
    return st.session_state["next"][1]


def by_direct_effect(views: Mapping[str, Any], at: int, k: int, *, dense: bool, least: float) -> tuple[int, pd.DataFrame]:
    """(id of the likeliest next token, the k latents of all SAEs that change its logit most, in either direction).

    Raises:
        PackError: the direct path of this model or dictionary cannot be read.
    """
    from scope.features.reading.direct_effects import direct_effects

    frames = []
    for name, view in views.items():
        with models.in_turn(view.pack) as (model, sae):
            token, effects = direct_effects(view, model, sae, at)
        rows = ranked(view, at, "value", view.pack.d_sae, dense=dense, least=least)
        rows = rows.assign(direct=effects[rows.index]).rename_axis("latent").reset_index().assign(dictionary=name)
        frames.append(rows)
    return token, foremost(frames, "direct", k)


def ablation(store: Pack, text: str, latent: int) -> None:
    """A button that ablates one latent in the text, and the effect on the next token, beside the null."""
    lines = "from scope import Ablate\nfrom scope.circuits.effects import effects\n\n"
    with st.container(horizontal=True, vertical_alignment="center"):
        pressed = st.button(f"Ablate #{latent}", icon=":material/content_cut:", help="Runs the text again without this latent.")
        copy_as_python(lines + f"effects(model, sae, Ablate({latent}), {text!r})", key="py ablate")
    if pressed:
        from scope.circuits.effects import effects
        from scope.steering.edits.interventions import Ablate

        try:
            with models.in_turn(store) as (model, sae), st.spinner("Ablating"):
                st.session_state["ablated"] = (text, latent, effects(model, sae, Ablate(latent), text))
        except ScopeError as refusal:
            messages.show_refusal(refusal)
    *of, result = st.session_state.get("ablated", ("", None, None))
    if result is not None and of == [text, latent]:
        ablation_table(result)


def _chosen_attribution() -> dict[str, str]:
    """Tokens and method as they stand in the fields below."""
    return {name: st.session_state[name] for name in ("token", "other", "method") if st.session_state.get(name)}


def attribution(store: Pack, text: str) -> None:
    """A logit difference split into the contributions of latents, computed when the button is pressed."""
    meaning = "A logit difference split into contributions; with the error as a row, the rows add up to it."
    lines = opening(str(store.folder)) + latent_tables.attribution_code(text, **_chosen_attribution())
    heading("Attribution of the next token", lines, "py attribution", meaning=meaning)
    with st.container(horizontal=True, vertical_alignment="bottom"):
        token = st.text_input("Token", key="token", placeholder="the likeliest", width=130)
        other = st.text_input("against", key="other", placeholder="the next one", width=130)
        method = st.selectbox("Method", latent_tables.METHODS, key="method", width=140)
        go = st.button("Attribute", icon=":material/functions:")
    if go:
        from scope.circuits.attribution import attribute

        try:
            with models.in_turn(store) as (model, sae), st.spinner("Attributing"):
                result = attribute(model, sae, text, token or None, other or None, method=method, pack=store, exact=16)
                st.session_state["attribution"] = (text, result)
        except ScopeError as refusal:
            messages.show_refusal(refusal)
    of, result = st.session_state.get("attribution", ("", None))
    if result is not None and of == text:
        latent_tables.attribution(result)
    else:
        st.caption("Which latents make the model prefer this token over the other: by gradients, or by ablating each.")

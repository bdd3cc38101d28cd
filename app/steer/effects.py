"""The Effects view: the effect of edits on the next token and on later latents, and attribution. No text is generated."""

from typing import Any

import numpy as np
import pandas as pd
import streamlit as st
from scope.app.kit import latent_tables
from scope.app.kit.code import heading, opening
from scope.app.kit.plain import number, plain, show_line, whole
from scope.app.kit.tiles import tiles
from scope.app.serve import models, packs, session
from scope.app.serve.jobs import Job
from scope.app.steer import work
from scope.app.steer.controls import PROMPT
from scope.app.steer.runner import Runner
from scope.app.steer.state import remembered

from scope.circuits.effects import Effects
from scope.errors import ScopeError
from scope.escape import visible_token
from scope.features.face import Pack
from scope.steering.edits.interventions import Edits
from scope.steering.export.script import edit_code


def controls() -> tuple[Pack, str, tuple[str, str], str, list[str]]:
    """(pack, prompt, tokens, method of attribution, slugs of packs at later sites) as they are set."""
    store = session.pack()
    prompt = st.text_area("Prompt", height=80, **remembered("prompt", PROMPT))
    with st.container(horizontal=True, vertical_alignment="bottom"):
        token = st.text_input("Token", key="steer token", placeholder="the likeliest", width=150, persist_state="session")
        other = st.text_input("against", key="steer other", placeholder="the next one", width=150, persist_state="session")
        method = st.selectbox("Attribution by", latent_tables.METHODS, key="steer method", width=150, persist_state="session")
    others = later_packs(store)
    places = st.multiselect("SAEs at later sites", others, key="steer later", format_func=plain) if others else []
    return store, prompt, (token, other), method, places


def start(
    runner: Runner,
    edits: Edits | None,
    job: Job | None,
    store: Pack,
    prompt: str,
    tokens: tuple[str, str],
    method: str,
    places: list[str],
) -> None:
    """The buttons that measure and attribute."""
    state = runner.state
    if st.button("Measure the edits", icon=":material/play_arrow:", type="primary", disabled=edits is None or job is not None):
        state.pop("effects", None)
        later = [models.load_dictionary(models.dictionary_of(session.pack(place))) for place in places]
        runner.start("effects", lambda model, sae: work.effect(store, model, sae, edits, prompt, tokens, later))
        st.rerun()
    if st.button("Attribute to latents", icon=":material/functions:", disabled=job is not None):
        state.pop("attribution", None)
        runner.start("attribution", lambda model, sae: work.attribution(store, model, sae, prompt, tokens, method))
        st.rerun()


def draw(runner: Runner, places: list[str]) -> None:
    """Results: the effect of the edits on the next token, and the attribution of the unedited one."""
    store, state = runner.store, runner.state
    if "effects" in state:
        measured = state["effects"]
        heading("Effect on the next token", opening(str(store.folder)) + effects_code(measured), "py effects")
        st.caption(plain(f"{measured.edits} after: {measured.prompt}"))
        effect_tiles(measured)
        next_token_table(measured)
        downstream_table(measured, {session.pack(place).site: session.pack(place).table["label"] for place in places})
    if "attribution" in state:
        attributed = state["attribution"]
        heading(
            "Attribution of the next token, unedited",
            opening(str(store.folder)) + latent_tables.attribution_code(attributed.prompt),
            "py parts",
        )
        latent_tables.attribution(attributed)
    if "effects" not in state and "attribution" not in state:
        st.caption(
            "No text is generated here: the prompt is run with the edits, without them, and, as the null, with the same edits "
            "of other latents (of other tokens, for Forget)."
        )


def later_packs(store: Pack) -> list[str]:
    """Slugs of the other packs of the same model at later sites, whose latents the edits may change."""
    slugs = []
    for slug in packs.registry():
        try:
            other = session.pack(slug)
        except ScopeError:
            continue
        if packs.same_model(store, other) and _depth(other.site) > _depth(store.site):
            slugs.append(slug)
    return slugs


def _depth(site: str) -> int:
    """The block of a site, -1 outside the blocks."""
    parts = site.split(".")
    return int(parts[1]) if len(parts) > 2 and parts[0] == "blocks" and parts[1].isdecimal() else -1


def effects_code(effects: Effects) -> str:
    """Python lines that measure the same."""
    edits = ", ".join(edit_code(edit) for edit in effects.edits)
    names = sorted({type(edit).__name__ for edit in effects.edits} | {"Direction", "When"})
    arguments = f"{effects.prompt!r}, token={effects.token!r}, other={effects.other!r}"
    return (
        f"import scope\nfrom scope.steering.edits.interventions import {', '.join(names)}\n\n"
        f"lab = scope.open(pack.folder.parent)\nlab.effects([{edits}], {arguments})\n"
    )


def effect_tiles(effects: Effects) -> None:
    """The size of the effect, beside the same edit on other latents."""
    nulls, changes = list(effects.null_kl), list(effects.null_change)
    before, after = effects.logit_difference
    meaning = f"Of the next token, in nats. Null: the median of the same edit on {effects.null_targets}."
    rows = [
        ("KL to plain", number(effects.kl), f"null {np.median(nulls):.3g}" if nulls else "", meaning),
        ("Logit difference", f"{after:+.3f}", f"{effects.change:+.3f}", f"Before the edit {before:+.3f}."),
    ]
    if changes:
        spread = f"{min(changes):+.2f} to {max(changes):+.2f}"
        rows.append(("Change in the nulls", f"{np.median(changes):+.3f}", spread, "Median, smallest and largest change."))
    tiles(rows, key="effects")
    st.caption(
        plain(f"Logit of {visible_token(effects.token)!r} minus that of {visible_token(effects.other)!r}. {effects.report}.")
    )
    if nulls:
        less = sum(effects.kl > n for n in nulls)
        st.caption(f"The edit changes the next token more than {less} of {len(nulls)} nulls do: {effects.null_targets}.")
    for note in effects.notes:
        st.warning(plain(note), icon=":material/block:")


def next_token_table(effects: Effects) -> None:
    """The likeliest next tokens with and without the edit."""
    rows = pd.DataFrame(list(effects.tokens))
    rows["token"] = [show_line(visible_token(token, mark_space=True), 24) for token in rows["token"]]
    forms = {"plain": "%.3f", "edited": "%.3f", "change": "%+.3f"}
    _table(rows, forms, "effects tokens", "The likeliest next tokens, without and with the edit")


def downstream_table(effects: Effects, labels: dict[str, Any]) -> None:
    """Latents of later sites that changed most at the last token. `labels`: site -> labels by latent."""
    rows = effects.downstream_frame()
    if rows.empty:
        return
    places = zip(rows["site"], rows["latent"], strict=True)
    rows.insert(2, "label", [show_line(str(labels[site][i]), 40) if site in labels else "" for site, i in places])
    forms = {"plain": "%.2f", "edited": "%.2f", "change": "%+.2f", "null": "%.2f"}
    _table(rows, forms, "effects downstream", "Latents of later sites that the edit changes most, at the last token")
    st.caption(f"Null: root mean square change by the same edit on {effects.null_targets}.")


def _table(rows: pd.DataFrame, forms: dict[str, str], key: str, alt: str) -> None:
    config: dict[str, Any] = {name: st.column_config.NumberColumn(name, format=form) for name, form in forms.items()}
    if "latent" in rows:
        config["latent"] = st.column_config.NumberColumn("latent", format="%d", width=70)
    st.dataframe(rows, hide_index=True, column_config=config, key=key, height=whole(rows, 10), alt=alt)

"""The Effects view of the Steer page: what edits do to the next token and to later latents. No token is drawn."""

from typing import Any

import numpy as np
import pandas as pd
import streamlit as st
from scope.app.kit import latent_tables
from scope.app.kit.code import heading, opening
from scope.app.kit.plain import number, plain, show_line
from scope.app.serve import models, packs, session
from scope.app.serve.jobs import Job
from scope.app.steer import work
from scope.app.steer.runner import Desk
from scope.app.steer.state import kept

from scope.circuits.effects import Effects
from scope.errors import ScopeError
from scope.escape import visible_token
from scope.features.face import Pack
from scope.steering.edits.interventions import Edits
from scope.steering.export.script import edit_code


def inside(desk: Desk, edits: Edits | None, job: Job | None) -> None:
    """What the edits do to the next token, and which latents decide it."""
    store, mine = desk.store, desk.mine
    prompt = st.text_area("Prompt", height=80, **kept("prompt", "My favourite hobby is"))
    with st.container(horizontal=True, vertical_alignment="bottom"):
        token = st.text_input("Token", key="steer token", placeholder="the likeliest", width=150, persist_state="session")
        other = st.text_input("against", key="steer other", placeholder="the next one", width=150, persist_state="session")
        method = st.selectbox("Attribution by", latent_tables.METHODS, key="steer method", width=150, persist_state="session")
    others = later_packs(store)
    places = st.multiselect("Later dictionaries", others, key="steer later", format_func=plain) if others else []
    pair = (token, other)
    with st.container(horizontal=True):
        if st.button(
            "Measure the edits", icon=":material/play_arrow:", type="primary", disabled=edits is None or job is not None
        ):
            mine.pop("effects", None)
            later = [models.load_dictionary(models.dictionary_of(session.pack(place))) for place in places]
            desk.begin("effects", lambda model, sae: work.effect(store, model, sae, edits, prompt, pair, later))
            st.rerun()
        if st.button("Attribute to latents", icon=":material/functions:", disabled=job is not None):
            mine.pop("attribution", None)
            desk.begin("attribution", lambda model, sae: work.attribution(store, model, sae, prompt, pair, method))
            st.rerun()
    if "effects" in mine:
        found = mine["effects"]
        heading("What the edits do to the next token", opening(str(store.folder)) + effects_code(found), "py effects")
        st.caption(plain(f"{found.edits} after: {found.prompt}"))
        numbers(found)
        tokens(found)
        downstream(found, {session.pack(place).site: session.pack(place).table["label"] for place in places})
    if "attribution" in mine:
        found = mine["attribution"]
        heading(
            "What decides the next token, unedited",
            opening(str(store.folder)) + latent_tables.attribution_code(found.prompt),
            "py parts",
        )
        latent_tables.attribution(found)
    if "effects" not in mine and "attribution" not in mine:
        st.caption("No token is drawn here: the prompt is run once with the edits and once without, and beside other latents.")


def later_packs(store: Pack) -> list[str]:
    """Slugs of the other packs of the same model at later sites: their dictionaries can be asked what the edits do there."""
    found = []
    for slug in packs.registry():
        try:
            other = session.pack(slug)
        except ScopeError:
            continue
        same = other.manifest["model"].get("weights_sha256") == store.manifest["model"].get("weights_sha256")
        if same and _depth(other.site) > _depth(store.site):
            found.append(slug)
    return found


def _depth(site: str) -> int:
    """The block of a site, -1 where it is in none."""
    parts = site.split(".")
    return int(parts[1]) if len(parts) > 2 and parts[0] == "blocks" and parts[1].isdecimal() else -1


def effects_code(found: Effects) -> str:
    """The lines that measure the same."""
    edits = ", ".join(edit_code(edit) for edit in found.edits)
    names = sorted({type(edit).__name__ for edit in found.edits} | {"Direction", "When"})
    asked = f"{found.prompt!r}, token={found.token!r}, other={found.other!r}"
    return (
        f"import scope\nfrom scope.steering.edits.interventions import {', '.join(names)}\n\n"
        f"lab = scope.open(pack.folder.parent)\nlab.effects([{edits}], {asked})\n"
    )


_NUMBERS = ("plain", "edited", "change")


def numbers(found: Any) -> None:
    """The size of the effect beside that of the same edit on other latents."""
    nulls, changes = list(found.null_kl), list(found.null_change)
    with st.container(horizontal=True):
        st.metric(
            "KL to plain",
            number(found.kl, ".4f"),
            f"null {np.median(nulls):.4f}" if nulls else None,
            delta_color="off",
            delta_arrow="off",
            border=True,
            help="Of the next token, nats. Null: the median over other latents whose part in the prompt is about as large.",
        )
        before, after = found.logit_difference
        st.metric(
            "Logit difference",
            f"{after:+.3f}",
            f"{found.change:+.3f}",
            delta_color="off",
            delta_arrow="off",
            border=True,
            help=f"Before the edit {before:+.3f}.",
        )
        if changes:
            st.metric(
                "Change in the nulls",
                f"{np.median(changes):+.3f}",
                f"{min(changes):+.2f} to {max(changes):+.2f}",
                delta_color="off",
                delta_arrow="off",
                border=True,
            )
    st.caption(plain(f"Logit of {visible_token(found.token)!r} minus that of {visible_token(found.other)!r}. {found.report}."))
    if nulls:
        less = sum(found.kl > n for n in nulls)
        st.caption(f"The edit moves the next token further than {less} of {len(nulls)} other latents do.")
    for note in found.notes:
        st.warning(plain(note), icon=":material/block:")


def tokens(found: Any) -> None:
    """The likeliest next tokens with and without the edit."""
    rows = pd.DataFrame(list(found.tokens))
    rows["token"] = [show_line(visible_token(token, mark_space=True), 24) for token in rows["token"]]
    forms = {"plain": "%.3f", "edited": "%.3f", "change": "%+.3f"}
    _table(rows, forms, "effects tokens", "The likeliest next tokens, without and with the edit")


def downstream(found: Any, labels: dict[str, Any]) -> None:
    """Latents of later sites that changed most at the last token. `labels`: site -> labels by latent."""
    rows = found.downstream_frame()
    if rows.empty:
        return
    rows.insert(
        2,
        "label",
        [show_line(str(labels[s][i]), 40) if s in labels else "" for s, i in zip(rows["site"], rows["latent"], strict=True)],
    )
    forms = {"plain": "%.2f", "edited": "%.2f", "change": "%+.2f", "null": "%.2f"}
    _table(rows, forms, "effects downstream", "Latents of later sites that the edit moves most, at the last token")
    st.caption("Null: root mean square of the change when other latents are edited in the same way.")


def _table(rows: pd.DataFrame, forms: dict[str, str], key: str, alt: str) -> None:
    config: dict[str, Any] = {name: st.column_config.NumberColumn(name, format=form) for name, form in forms.items()}
    if "latent" in rows:
        config["latent"] = st.column_config.NumberColumn("latent", format="%d", width=70)
    st.dataframe(rows, hide_index=True, column_config=config, key=key, height=min(36 * len(rows) + 40, 400), alt=alt)

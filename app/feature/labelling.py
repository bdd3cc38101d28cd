"""Labelling by hand: one label in place, or many in a row, from one unlabelled latent to the next, with an undo."""

from collections.abc import Callable

import numpy as np
import streamlit as st
from scope.app.feature.notes import reader
from scope.app.kit.messages import try_to_write
from scope.app.serve import session

from scope.features.pack.feature import Feature

Show = Callable[[int], None]
"""Shows another latent."""


def next_unlabelled(feature: Feature) -> int | None:
    """The next living latent that no person labelled: in the last list of latents, else by number, from the beginning after
    the last one; None where there is none."""
    order = np.array(session.results() or range(feature.pack.d_sae))
    position = np.flatnonzero(order == feature.id)
    order = np.roll(order, -int(position[0]) - 1) if len(position) else order
    skipped = np.isin(order, [feature.id, *feature.pack.labelled_by_people])
    open_ones = order[~skipped & (feature.pack.index.column("count")[order] > 0)]
    return int(open_ones[0]) if len(open_ones) else None


def begin(feature: Feature, show: Show) -> None:
    """Begin to label many: here, if no person labelled this latent, else at the next one."""
    st.session_state["labelling"] = True
    if feature.id in feature.pack.labelled_by_people:
        go_to_next(feature, show)


def go_to_next(feature: Feature, show: Show) -> None:
    latent = next_unlabelled(feature)
    if latent is not None:
        show(latent)


def undo(feature: Feature, show: Show) -> None:
    """Take the last label of this sitting back and show its latent."""
    done = st.session_state.get("labels done", {}).get(session.current(), [])
    if not done:
        return
    latent, text, source, score, detail = done[-1]
    if try_to_write(lambda: feature.pack.notes.restore_label(latent, text, source, score, detail)):
        done.pop()
        st.session_state.pop(f"label {latent}", None)
        show(latent)


def label_editor(feature: Feature, many: bool, show: Show) -> None:
    """The label as a text field. Enter keeps it, and with `many` goes on to the next; an empty label restores the pack's own.

    With `many`, an empty field leaves the latent as it is and goes on.
    """
    store, key = feature.pack, f"label {feature.id}"
    done = st.session_state.setdefault("labels done", {}).setdefault(session.current(), [])

    def save() -> None:
        text = st.session_state[key].strip()
        before = store.notes.label(feature.id)
        unchanged = text == feature.label or (many and not text)
        written = unchanged or try_to_write(
            lambda: store.notes.set_label(
                feature.id, text, "you", detail={"author": st.session_state.get("author") or reader()}
            )
        )
        if not written:  # what cannot be written stays in the field
            return
        if not unchanged:
            old = ("", "you", None, {}) if before is None else (before.text, before.source, before.score, before.detail)
            done.append((feature.id, *old))
            store.refresh()
        if many:
            go_to_next(feature, show)
        else:
            st.session_state.pop("editing", None)

    def stop() -> None:
        st.session_state.pop("editing", None)
        st.session_state.pop("labelling", None)

    with (
        st.form(f"edit {feature.id}", border=False),
        st.container(horizontal=True, vertical_alignment="bottom", gap="small"),
    ):
        value = "" if many and feature.id not in store.labelled_by_people else feature.label
        title = f"Label of #{feature.id}"
        st.text_input(title, value, key=key, max_chars=500, placeholder=feature.label[:120])
        st.form_submit_button("Save and next" if many else "Save", icon=":material/check:", type="primary", on_click=save)
        if many:
            st.form_submit_button("Skip", on_click=go_to_next, args=(feature, show))
            st.form_submit_button("Undo", disabled=not done, on_click=undo, args=(feature, show))
        st.form_submit_button("Done" if many else "Cancel", on_click=stop)
    left = f"{len(done):,} labelled in this sitting. " if many else ""
    st.caption(f"{left}Saved in the pack with your name and the time. An empty label restores the pack's own.")

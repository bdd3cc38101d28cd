"""A reader's own label, star, note and lists of a latent."""

import getpass
import time

import streamlit as st
from scope.app.kit.messages import try_to_write
from scope.app.kit.plain import number, plain

from scope.escape import visible_token
from scope.features.pack.feature import Feature


def reader() -> str:
    """The author of a label: the user name on this machine."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return "you"


def source(feature: Feature, label) -> str:
    """The line under the label: who gave it, when, and its score."""
    row, who = feature.row, plain(feature.label_source)
    if label is None:
        return f"label from {who}, F1 {number(row.get('label_score'), '.2f')}"
    author = label.detail.get("author") if isinstance(label.detail, dict) else None
    by = plain(visible_token(author)) if isinstance(author, str) and label.source == "you" else who
    measure = label.detail.get("measure", "") if label.source.startswith("Neuronpedia") else "detection score"
    score = f" · {plain(visible_token(str(measure)))} {label.score:.2f}" if label.score is not None else ""
    return f"label by {by} · {moment(label.made)}{score}"


def moment(seconds: float) -> str:
    """A time of day and date, local."""
    return time.strftime("%-d %b %Y %H:%M", time.localtime(seconds))


def label_editor(feature: Feature) -> None:
    """The label as a text field. Enter or Save keeps it; an empty label restores the pack's own."""
    store, key = feature.pack, f"label {feature.id}"

    def save() -> None:
        text = st.session_state[key]
        detail = {"author": reader()}
        if text.strip() == feature.label or try_to_write(lambda: store.notes.set_label(feature.id, text, "you", detail=detail)):
            st.session_state.pop("editing", None)  # what cannot be written stays in the field

    with st.form(f"edit {feature.id}", border=False), st.container(horizontal=True, vertical_alignment="bottom"):
        st.text_input(f"Label of #{feature.id}", feature.label, key=key, max_chars=500)
        st.form_submit_button("Save", icon=":material/check:", type="primary", on_click=save)
        st.form_submit_button("Cancel", on_click=lambda: st.session_state.pop("editing", None))
    st.caption("Saved in the pack with your name and the time. An empty label restores the pack's own.")


def star(feature: Feature, starred: bool) -> None:
    """A button that sets or removes the star."""

    def turn() -> None:
        try_to_write(lambda: feature.pack.notes.set_star(feature.id, not starred))

    icon = ":material/star:" if not starred else ":material/heart_check:"
    st.button(
        "Starred" if starred else "Star", icon=icon, shortcut="x", on_click=turn, type="primary" if starred else "secondary"
    )


def note_and_lists(feature: Feature, note: str, lists: list[str]) -> None:
    """A free note, and the lists that hold the latent. Both are saved when the field is left."""
    store, note_key, lists_key = feature.pack, f"note {feature.id}", f"lists {feature.id}"

    def keep_note() -> None:
        try_to_write(lambda: store.notes.set_note(feature.id, st.session_state[note_key]))

    def keep_lists() -> None:
        wanted = {name.strip() for name in st.session_state[lists_key] if name.strip()}
        for name in wanted - set(lists):
            try_to_write(lambda name=name: store.notes.add_to_list(name, [feature.id]))
        for name in set(lists) - wanted:
            try_to_write(lambda name=name: store.notes.take_from_list(name, [feature.id]))

    st.text_area("Note", note, key=note_key, on_change=keep_note, height=90, placeholder="Your observations")
    st.multiselect(
        "Lists",
        sorted({*store.notes.lists(), *lists}),
        lists,
        key=lists_key,
        on_change=keep_lists,
        accept_new_options=True,
        format_func=visible_token,
        placeholder="Choose a list, or name a new one",
    )

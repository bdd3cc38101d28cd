"""What people say of a latent, written where it is read: its label, a star, a note, lists."""

import getpass
import time

import streamlit as st
from scope.app.kit.messages import written
from scope.app.kit.plain import number, plain

from scope.escape import visible_token
from scope.features.pack.feature import Feature

OWN = ("token statistics", "promoted tokens, weights and measured")
"""Sources of the labels that come with a pack; all others were given by somebody."""


def reader() -> str:
    """Who writes: the name under which this machine knows the person."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return "you"


def source(feature: Feature, label) -> str:
    """Who gave the label, when, and how well it did: a line under the label."""
    row, who = feature.row, plain(feature.label_source)
    if label is None:
        return f"label from {who}, F1 {number(row.get('label_score'), '.2f')}"
    author = label.detail.get("author") if isinstance(label.detail, dict) else None
    by = plain(visible_token(author)) if isinstance(author, str) and label.source == "you" else who
    score = f" · detection score {label.score:.2f}" if label.score is not None else ""
    return f"label by {by} · {moment(label.made)}{score}"


def moment(made: float) -> str:
    """A time as the reader's clock tells it."""
    return time.strftime("%-d %b %Y %H:%M", time.localtime(made))


def label_editor(feature: Feature) -> None:
    """The label as a field. Enter or Save keeps it; an empty one takes back what was given, so that the pack's own stands."""
    store, key = feature.pack, f"label {feature.id}"

    def save() -> None:
        text = st.session_state[key]
        if text.strip() != feature.label:
            written(lambda: store.notes.set_label(feature.id, text, "you", detail={"author": reader()}))
        st.session_state.pop("editing", None)

    with st.form(f"edit {feature.id}", border=False), st.container(horizontal=True, vertical_alignment="bottom"):
        st.text_input(f"Label of #{feature.id}", feature.label, key=key, max_chars=500)
        st.form_submit_button("Save", icon=":material/check:", type="primary", on_click=save)
        st.form_submit_button("Cancel", on_click=lambda: st.session_state.pop("editing", None))
    st.caption("Kept in the pack with your name and the time. An empty label brings back the pack's own.")


def star(feature: Feature, starred: bool) -> None:
    """A button that sets or takes the star."""

    def turn() -> None:
        written(lambda: feature.pack.notes.set_star(feature.id, not starred))

    icon = ":material/star:" if not starred else ":material/heart_check:"
    st.button(
        "Starred" if starred else "Star", icon=icon, shortcut="x", on_click=turn, type="primary" if starred else "secondary"
    )


def note_and_lists(feature: Feature, note: str, lists: list[str]) -> None:
    """A note in one's own words, and the lists that hold the latent. Both are kept as soon as the field is left."""
    store, note_key, lists_key = feature.pack, f"note {feature.id}", f"lists {feature.id}"

    def keep_note() -> None:
        written(lambda: store.notes.set_note(feature.id, st.session_state[note_key]))

    def keep_lists() -> None:
        wanted = {name.strip() for name in st.session_state[lists_key] if name.strip()}
        for name in wanted - set(lists):
            written(lambda name=name: store.notes.add_to_list(name, [feature.id]))
        for name in set(lists) - wanted:
            written(lambda name=name: store.notes.take_from_list(name, [feature.id]))

    st.text_area("Note", note, key=note_key, on_change=keep_note, height=90, placeholder="What you make of it.")
    st.multiselect(
        "Lists",
        sorted({*store.notes.lists(), *lists}),
        lists,
        key=lists_key,
        on_change=keep_lists,
        accept_new_options=True,
        format_func=visible_token,
        placeholder="Put it on a list, or name a new one",
    )

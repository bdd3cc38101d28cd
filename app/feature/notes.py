"""A reader's own label, star, note and lists of a latent."""

import getpass
import time

import streamlit as st
from scope.app.kit.messages import try_to_write
from scope.app.kit.plain import number, plain

from scope.escape import visible_token
from scope.features.pack.feature import Feature
from scope.features.pack.table import BY_CONTEXTS, BY_RULES


def reader() -> str:
    """The author of a label: the user name on this machine."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return "a person"


def source(feature: Feature, label) -> str:
    """The line under the label: who gave it, when, and its score; no Markdown."""
    row, who = feature.row, visible_token(feature.label_source)
    if label is None:
        if feature.label_source == BY_CONTEXTS:
            return "no rule predicts it: its strongest contexts"
        score = number(row.get("label_score"), ".2f")
        beside = feature.pack.rule(feature.id) if feature.label_source == BY_RULES else None
        null = "" if beside is None else f" (best token {beside['single_token']:.2f}, shuffled {beside['null']:.2f})"
        return f"label from {who}, F1 {score}{null}"
    author = label.detail.get("author") if isinstance(label.detail, dict) else None
    by = visible_token(author) if isinstance(author, str) and label.source == "you" else who
    measure = label.detail.get("measure", "") if label.source.startswith("Neuronpedia") else "detection score"
    if label.source in (BY_RULES, BY_CONTEXTS):
        measure, by = "F1", visible_token(f"{label.source}, {label.detail.get('made_by', 'scope')}")
    score = f" · {visible_token(str(measure))} {label.score:.2f}" if label.score is not None else ""
    return f"label by {by} · {moment(label.made)}{score}"


def moment(seconds: float) -> str:
    """A time of day and date, local."""
    return time.strftime("%-d %b %Y %H:%M", time.localtime(seconds))


def about_label(feature: Feature, label) -> None:
    """Where the label comes from: of a rule the whole rule, and its score beside the best single token's and the null's; and
    the name under which the reader's own labels are saved."""
    detail = label.detail if label is not None else feature.pack.rule(feature.id) or {}
    if detail.get("null") is not None and detail.get("score") is not None:
        scores = f"F1 {detail['score']:.2f} on text that did not choose the rule ({detail['chosen']:.2f} on the other half)"
        beside = f"best single token {detail['single_token']:.2f}; rules for shuffled activations {detail['null']:.2f}"
        st.caption(plain(f"Rule: {scores}; {beside}."))
        with st.expander("The whole rule"):
            st.json(detail.get("rule") or {})
    st.text_input("Sign labels as", reader(), key="author", max_chars=80, help="Stands beside each label, in exports too.")


def star(feature: Feature, starred: bool) -> None:
    """A button that sets or removes the star."""

    def turn() -> None:
        try_to_write(lambda: feature.pack.notes.set_star(feature.id, not starred))

    icon = ":material/star:" if not starred else ":material/heart_check:"
    st.button(
        "Starred" if starred else "Star",
        key="Star",
        icon=icon,
        shortcut="x",
        on_click=turn,
        type="primary" if starred else "secondary",
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

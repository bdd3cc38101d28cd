"""The panels below a latent's examples, of which one is drawn at a time: what else is known of it, notes, own texts, a game."""

from collections.abc import Callable
from typing import Any

import streamlit as st
from scope.app.feature import decay_panel, guess, notes, own_texts, panels
from scope.app.feature.examples import texts_in
from scope.app.kit import messages
from scope.app.kit.code import heading
from scope.app.serve import models, session

from scope.errors import ScopeError
from scope.features.labels.guess import draw_windows
from scope.features.pack import lookahead
from scope.features.pack.feature import Feature

TAB = "tab"
"""Key of the choice, and its name in addresses."""
TRY = "Try a text"


def available(feature: Feature) -> list[str]:
    """The panels that this latent has, by their names, which stand in addresses too."""
    store = feature.pack
    words, pictures = texts_in(store), store.pictures is not None
    shown = {
        "Forgetting": decay_panel.of_a_state(store.site),
        "Tokens": words,
        "Related": True,
        TRY: not pictures,
        "Promoted": words,
        "Activations": not feature.dead,
        "Notes": True,
        "Roles": len(store.manifest.roles) > 1,
        "Look-ahead": bool(store.manifest.files.get(lookahead.FILE)),
        "Guessing game": not (feature.dead or pictures),
    }
    return [name for name, there in shown.items() if there]


def draw(name: str, feature: Feature, note: Any, python: str, open_latent: Callable[[int | None], None]) -> None:
    """Draw one panel. `python` are the lines that open the latent; `open_latent` gets the latent that was clicked."""
    store = feature.pack
    if name == "Forgetting":
        heading("Forgetting", python + f"pack.decay.plot({feature.id})", "py decay", meaning=decay_panel.MEANING)
        decay_panel.decay(feature)
    elif name == "Tokens":
        heading("Tokens it fires on", python + "feature.tokens", "py tokens")
        panels.tokens(feature)
    elif name == "Related":
        heading("Related latents", python + "feature.neighbours, feature.opposites, feature.co_firing", "py relations")
        open_latent(panels.relations(feature))
    elif name == TRY:
        own_texts_panel(feature, python)
    elif name == "Promoted":
        heading("Promoted tokens", python + "feature.promoted, feature.measured, feature.suppressed", "py output")
        panels.output(feature)
        panels.over_vocabulary(feature)
    elif name == "Activations":
        strengths(feature, python)
    elif name == "Notes":
        heading("Notes and lists", python + f"pack.notes.about({feature.id})", "py notes")
        notes.about_label(feature, note.label)
        notes.note_and_lists(feature, note.note, note.lists)
    elif name == "Roles":
        heading("By role", python + "feature.by_role", "py roles", meaning="What part of its context a row is.")
        panels.roles(feature)
    elif name == "Look-ahead":
        heading("Suffix look-ahead", python + "feature.lookahead", "py lookahead", meaning=panels.LOOKAHEAD)
        panels.suffix_lookahead(feature)
    else:
        lines = "from scope.features.labels.guess import draw_windows\n\ndraw_windows(feature, seed=0)\n"
        meaning = "Your own detection score of the label."
        heading("Guessing game", python + lines + f"pack.notes.guessed({feature.id})", "py guess", meaning=meaning)
        guess.game(feature, store.notes.guessed(feature.id), draw_windows)


def strengths(feature: Feature, python: str) -> None:
    """How strongly it fires, how concentrated that is, and on how much text that was counted."""
    heading("Activation histogram", python + "edges, counts = feature.histogram", "py histogram")
    readings = _tested(feature)
    panels.histogram(feature, max((max(r["values"], default=0.0) for r in readings), default=0.0) or None)
    panels.counts_line(feature)
    if feature.pack.pictures is not None:
        session.link("prompt", "Try it on a picture of yours", icon=":material/image_search:", f=feature.id)


def _tested(feature: Feature) -> list[dict]:
    return st.session_state.setdefault("tested", {}).setdefault((session.current(), feature.id), [])


def own_texts_panel(feature: Feature, python: str) -> None:
    """The latent on the reader's own texts."""
    store, readings = feature.pack, _tested(feature)
    heading("Try a text", python + f'pack.read("a text", model, sae).values({feature.id})', "py test")
    text = st.text_area(
        "Text to test",
        key="text",
        placeholder="Type a sentence and see where this latent fires.",
        label_visibility="collapsed",
        height=90,
    )
    messages.show_turning_marks(text)
    with st.container(horizontal=True, vertical_alignment="center"):
        help = "Runs the model, which is loaded on first use."
        pressed = st.button("Read", icon=":material/play_arrow:", type="primary", help=help)
        each = st.toggle("One text per line", True, key="each line", help=f"Up to {own_texts.AT_ONCE} at once.")
    texts = own_texts.split(text or "", each)
    if len(texts) > own_texts.AT_ONCE:
        st.caption(f"{len(texts)} lines; the first {own_texts.AT_ONCE} are read.")
    if (pressed or st.session_state.pop("run", False)) and texts:
        try:
            results = [own_texts.result(t, models.reading(store, t), feature.id) for t in texts[: own_texts.AT_ONCE]]
            own_texts.keep(readings, results)
        except ScopeError as refusal:
            messages.show_refusal(refusal)
    if readings:
        chosen = own_texts.draw_results(feature, readings)
        if chosen is not None:
            session.go("prompt", text=readings[chosen[1]]["text"][:1500])

"""One latent: its numbers, what it writes, where it fired, what stands beside it, what people say of it, and your own texts."""

import numpy as np
import streamlit as st
from scope.app.feature import guess, notes, panels, reach
from scope.app.feature import own_texts as tested
from scope.app.feature import token_panel as at_token
from scope.app.kit import messages
from scope.app.kit.code import copy_as_python, heading, opening
from scope.app.kit.keys import keys
from scope.app.kit.keys import told as told_keys
from scope.app.kit.plain import plain, show_line
from scope.app.serve import facts as health
from scope.app.serve import models, packs, session

from scope.errors import ScopeError
from scope.features.labels.guess import draw_windows

LONGEST = 160
"""Glyphs of a label that its page's title shows; the rest is told on asking."""

store = session.pack()
asked = session.asked_latent(store)
if asked is None:
    asked = next(iter(packs.once(store, "start here", lambda: health.start_here(store)).values()), 0)
feature = store[asked]
session.remember(feature.id)
python = opening(str(store.folder)) + f"feature = pack[{feature.id}]\n"
with messages.guarded():
    said = store.notes.about(feature.id)

order = session.results()
place = order.index(feature.id) if feature.id in order else None
before, after = (feature.id - 1, feature.id + 1) if place is None else (place - 1, place + 1)
last = (store.d_sae if place is None else len(order)) - 1


def turn(latent: int) -> None:
    """Show another latent, called back before the one run that shows it; to go there would take two, the button's own first."""
    st.query_params.from_dict(session.params(f=latent))


def walk(to: int) -> None:
    """Turn to a neighbour in the list, or to the next number without one."""
    if 0 <= to <= last:
        turn(to if place is None else order[to])


def wander() -> None:
    turn(store.random(np.random.default_rng()).id)


def on_key(name: str) -> None:
    if name in ("before", "after"):
        walk(before if name == "before" else after)


def edit() -> None:
    st.session_state["editing"] = feature.id


def on_example(action: str, text: str) -> None:
    """What the buttons of an example do with its text."""
    if action == "prompt":
        session.go("prompt", text=text[:1500])
    st.session_state["text"], st.session_state["run"] = text, True
    st.session_state["each line"] = False
    st.rerun()


editing = st.session_state.get("editing") == feature.id
pressed = keys(
    {"ArrowLeft": "before", "ArrowRight": "after", "t": "focus Text to test"}
    | {str(n): name for n, name in enumerate(panels.GROUPS, 1) if not feature.dead},
    key="keys",
    focus=f"Label of #{feature.id}" if editing else "",
    on_key=on_key,
)
if pressed in panels.GROUPS:
    st.session_state["group asked"] = pressed
if editing:
    notes.label_editor(feature)
else:
    whole = plain(feature.label) if len(feature.label) > LONGEST else None
    st.title(f"\\#{feature.id}  {plain(show_line(feature.label, LONGEST))}", anchor=False, help=whole)
with st.container(horizontal=True, vertical_alignment="center", gap="small"):
    st.caption(notes.source(feature, said.label), width="content")
    for flag in feature.flags:
        st.badge(plain(flag), color="orange" if flag in ("dead", "dense", "duplicate") else "gray")
    if place is not None:
        st.caption(f"{place + 1:,} of {len(order):,} in the list", width="content")
with st.container(horizontal=True, vertical_alignment="center", gap="small"):
    within = "Within the last list of latents" if place is not None else "The number before or after: no list was looked at"
    for name, icon, shortcut, to in (("Previous", "arrow_back", "k", before), ("Next", "arrow_forward", "j", after)):
        none, icon = not 0 <= to <= last, f":material/{icon}:"
        st.button(name, key=name, icon=icon, shortcut=shortcut, disabled=none, help=within, on_click=walk, args=(to,))
    told = "A living latent, each equally likely"
    st.button("Random", icon=":material/casino:", shortcut="a", help=told, on_click=wander)
    st.button("Edit label", icon=":material/edit:", shortcut="e", on_click=edit, disabled=editing)
    notes.star(feature, said.starred)
    if st.button("Steer", icon=":material/explore:", shortcut="s"):
        session.go("steer", f=feature.id)
    with st.popover("Link", icon=":material/link:", type="tertiary"):
        st.code(session.address("feature", f=feature.id), language=None)
    copy_as_python(python + "feature  # in a notebook, its card", key="py feature")
    told_keys()
messages.refused()

if feature.dead:
    st.info(
        f"This latent did not fire in {store.n_tokens:,} tokens, so its density is below {feature.density_bound:.1e} "
        "(95 % upper bound). What follows comes from its weights alone."
    )
    with messages.guarded():
        living = [j for j, _ in feature.neighbours if store.table["count"].iat[j] > 0][:3]
        if living:
            with st.container(horizontal=True):
                st.caption("Nearest living:", width="content")
                for j in living:
                    session.link("feature", f"\\#{j} {plain(store.table['label'].iat[j])}", f=j)
else:
    panels.numbers(feature)
    with messages.guarded():
        reach.counted(feature)


@st.fragment
def shown_examples() -> None:
    with messages.guarded():
        panels.examples(feature, on_example, lambda example, token: at_token.panel(feature, example, token))


@st.fragment
def strengths_and_test() -> None:
    """The histogram, and your own texts, the strongest of which is marked in it."""
    kept = st.session_state.setdefault("tested", {}).setdefault((session.current(), feature.id), [])
    above = st.container()  # filled when the texts are read: the strongest is marked in it
    heading("Test on your texts", python + f'pack.read("a text", model, sae).values({feature.id})', "py test")
    text = st.text_area(
        "Text to test",
        key="text",
        placeholder="Type a sentence and see where this latent fires.",
        label_visibility="collapsed",
        height=90,
    )
    with st.container(horizontal=True, vertical_alignment="center"):
        help = "Runs the model; the first time it has to be loaded."
        pressed = st.button("Read", icon=":material/play_arrow:", type="primary", help=help)
        each = st.toggle("One text a line", True, key="each line", help=f"Up to {tested.AT_ONCE} at once.")
    texts = tested.split(text or "", each)
    if len(texts) > tested.AT_ONCE:
        st.caption(f"{len(texts)} lines; the first {tested.AT_ONCE} are read.")
    if (pressed or st.session_state.pop("run", False)) and texts:
        try:
            found = [tested.result(t, models.reading(store, t), feature.id) for t in texts[: tested.AT_ONCE]]
            tested.keep(kept, found)
        except ScopeError as refusal:
            messages.refuse(refusal)
    if not feature.dead:
        with above:
            heading("How strongly", python + "edges, counts = feature.histogram", "py histogram")
            with messages.guarded():
                panels.histogram(feature, max((max(r["values"], default=0.0) for r in kept), default=0.0) or None)
    if kept:
        chosen = tested.shown(feature, kept)
        if chosen is not None:
            session.go("prompt", text=kept[chosen[1]]["text"][:1500])


@st.fragment
def beside() -> None:
    with messages.guarded():
        picked = panels.relations(feature)
        if picked is not None:
            session.go("feature", f=picked)


@st.fragment
def over_vocabulary() -> None:
    with messages.guarded():
        reach.over_vocabulary(feature)


heading("What it writes", python + "feature.promoted, feature.measured, feature.suppressed", "py output")
with messages.guarded():
    panels.output(feature)
    over_vocabulary()

wide, narrow = st.columns([5, 3], gap="medium")
with wide:
    loop = 'for example in feature.examples("top", 12):\n    print(example.value, "".join(example.tokens))'
    heading("Where it fired", python + loop, "py examples")
    if feature.dead:
        st.caption("Nowhere in this pack.")
    else:
        shown_examples()
with narrow:
    strengths_and_test()
    heading("On which tokens", python + "feature.tokens", "py tokens")
    with messages.guarded():
        panels.tokens(feature)
    heading("What stands beside it", python + "feature.neighbours, feature.opposites, feature.co_firing", "py relations")
    beside()
    heading("Notes and lists", python + f"pack.notes.about({feature.id})", "py notes")
    notes.note_and_lists(feature, said.note, said.lists)
    if not feature.dead:
        lines = "from scope.features.labels.guess import draw_windows\n\ndraw_windows(feature, seed=0)\n"
        meaning = "What the label is worth to a person: a detection score of your own."
        heading("Guess game", python + lines + f"pack.notes.guessed({feature.id})", "py guess", meaning=meaning)
        guess.game(feature, said.guessed, draw_windows)

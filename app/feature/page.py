"""The Feature page: one latent's numbers, promoted tokens, examples, related latents and notes, and the reader's own texts."""

import numpy as np
import streamlit as st
from scope.app.feature import decay_panel, examples, guess, notes, own_texts, panels, token_panel
from scope.app.kit import messages
from scope.app.kit.code import copy_as_python, heading, opening
from scope.app.kit.keys import keys, keys_popover
from scope.app.kit.plain import plain, show_line
from scope.app.serve import models, pack_facts, packs, session

from scope.errors import ScopeError
from scope.features.labels.guess import draw_windows
from scope.features.pack import lookahead
from scope.features.pack.pictures import PictureExample

LONGEST = 160
"""Most glyphs of a label in the title; its tooltip shows the rest."""

store = session.pack()
asked = session.asked_latent(store)
if asked is None:
    asked = next(iter(packs.once(store, "start here", lambda: pack_facts.start_here(store)).values()), 0)
feature = store[asked]
session.remember(feature.id)
of_pictures, noun = store.pictures is not None, pack_facts.rows_noun(store)
python = opening(str(store.folder)) + f"feature = pack[{feature.id}]\n"
with messages.guarded():
    note = store.notes.about(feature.id)

order = session.results()
place = order.index(feature.id) if feature.id in order else None
before, after = (feature.id - 1, feature.id + 1) if place is None else (place - 1, place + 1)
last = (store.d_sae if place is None else len(order)) - 1


def show_latent(latent: int) -> None:
    """Show another latent. As a callback it takes one run of the page; switching pages would take two."""
    st.query_params.from_dict(session.params(f=latent))


def step_to(to: int) -> None:
    """Show a neighbour in the list, or of its number without a list."""
    if 0 <= to <= last:
        show_latent(to if place is None else order[to])


def show_random() -> None:
    show_latent(store.random(np.random.default_rng()).id)


def on_key(name: str) -> None:
    if name in ("before", "after"):
        step_to(before if name == "before" else after)


def edit() -> None:
    st.session_state["editing"] = feature.id


def on_example(action: str, text: str) -> None:
    """Open an example's text on the Prompt page, or test it here."""
    if action == "prompt":
        session.go("prompt", text=text[:1500])
    st.session_state["text"], st.session_state["run"] = text, True
    st.session_state["each line"] = False
    st.rerun()


def on_picture(example: PictureExample) -> None:
    """Open an example's picture on the Prompt page."""
    session.go("prompt", context=example.context, f=feature.id)


editing = st.session_state.get("editing") == feature.id
pressed = keys(
    {"ArrowLeft": "before", "ArrowRight": "after"}
    | ({} if of_pictures else {"t": "focus Text to test"})
    | {str(n): name for n, name in enumerate(examples.GROUPS, 1) if not feature.dead},
    key="keys",
    focus=f"Label of #{feature.id}" if editing else "",
    on_key=on_key,
)
if pressed in examples.GROUPS:
    st.session_state["group asked"] = pressed
if editing:
    notes.label_editor(feature)
else:
    whole = plain(feature.label) if len(feature.label) > LONGEST else None
    st.title(f"\\#{feature.id}  {plain(show_line(feature.label, LONGEST))}", anchor=False, help=whole)
with st.container(horizontal=True, vertical_alignment="center", gap="small"):
    st.caption(notes.source(feature, note.label), width="content")
    for flag in feature.flags:
        st.badge(plain(flag), color="orange" if flag in ("dead", "dense", "duplicate") else "gray")
    if place is not None:
        st.caption(f"{place + 1:,} of {len(order):,} in the list", width="content")
with st.container(horizontal=True, vertical_alignment="center", gap="small"):
    within = "In the last list of latents" if place is not None else "By number, since no list was shown"
    for name, icon, shortcut, to in (("Previous", "arrow_back", "k", before), ("Next", "arrow_forward", "j", after)):
        off, icon = not 0 <= to <= last, f":material/{icon}:"
        st.button(name, key=name, icon=icon, shortcut=shortcut, disabled=off, help=within, on_click=step_to, args=(to,))
    meaning = "A random living latent"
    st.button("Random", icon=":material/casino:", shortcut="a", help=meaning, on_click=show_random)
    st.button("Edit label", icon=":material/edit:", shortcut="e", on_click=edit, disabled=editing)
    notes.star(feature, note.starred)
    steers = pack_facts.steers(store)
    why_not = None if steers else "Edits need an SAE of a language model's own blocks."
    if st.button("Steer", icon=":material/explore:", shortcut="s", disabled=not steers, help=why_not):
        session.go("steer", f=feature.id)
    session.link_popover("feature", f=feature.id)
    if feature.neuronpedia_url:
        st.link_button("Neuronpedia", feature.neuronpedia_url, icon=":material/open_in_new:")
    copy_as_python(python + "feature  # in a notebook, its card", key="py feature")
    keys_popover()
messages.show_write_error()

if feature.dead:
    st.info(
        f"This latent did not fire in {store.n_tokens:,} {noun}, so it fires on less than {feature.density_bound:.1e} of "
        f"{noun} (95 % upper bound). What follows comes from its weights alone."
    )
    with messages.guarded():
        living = [j for j, _ in feature.neighbours if store.table["count"].iat[j] > 0][:3]
        if living:
            with st.container(horizontal=True):
                st.caption("Nearest living:", width="content")
                for j in living:
                    session.link("feature", f"\\#{j} {plain(store.table['label'].iat[j])}", f=j)


@st.fragment
def draw_all_examples() -> None:
    with messages.guarded():
        if of_pictures:
            examples.draw_examples(feature, on_example, on_picture=on_picture)
        else:
            examples.draw_examples(feature, on_example, lambda example, token: token_panel.token_panel(feature, example, token))


def headed_examples() -> None:
    method = "pictures" if of_pictures else "examples"
    what = "example.caption" if of_pictures else 'example.value, "".join(example.tokens)'
    loop = f'for example in feature.{method}("top", 12):\n    print({what})'
    heading("Examples", python + loop, "py examples", meaning=examples.COUNTED if of_pictures else None)
    if feature.dead:
        st.caption("It never fired in this pack.")
    else:
        draw_all_examples()


if of_pictures:
    headed_examples()
if not feature.dead:
    panels.numbers(feature)
    with messages.guarded():
        panels.counts_line(feature)


def draw_histogram(mark: float | None = None) -> None:
    heading("Activation histogram", python + "edges, counts = feature.histogram", "py histogram")
    with messages.guarded():
        panels.histogram(feature, mark)


@st.fragment
def strengths() -> None:
    """The histogram, and the way to the reader's own pictures."""
    if not feature.dead:
        draw_histogram()
    session.link("prompt", "Try it on a picture of yours", icon=":material/image_search:", f=feature.id)


@st.fragment
def strengths_and_test() -> None:
    """The histogram, and the reader's own texts, whose strongest value is marked in it."""
    kept = st.session_state.setdefault("tested", {}).setdefault((session.current(), feature.id), [])
    above = st.container()  # filled once the texts are read, to mark their strongest value
    heading("Test on your texts", python + f'pack.read("a text", model, sae).values({feature.id})', "py test")
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
            own_texts.keep(kept, results)
        except ScopeError as refusal:
            messages.show_refusal(refusal)
    if not feature.dead:
        with above:
            draw_histogram(max((max(r["values"], default=0.0) for r in kept), default=0.0) or None)
    if kept:
        chosen = own_texts.draw_results(feature, kept)
        if chosen is not None:
            session.go("prompt", text=kept[chosen[1]]["text"][:1500])


@st.fragment
def related_latents() -> None:
    with messages.guarded():
        picked = panels.relations(feature)
        if picked is not None:
            session.go("feature", f=picked)


@st.fragment
def over_vocabulary() -> None:
    with messages.guarded():
        panels.over_vocabulary(feature)


def notes_panel() -> None:
    heading("Notes and lists", python + f"pack.notes.about({feature.id})", "py notes")
    notes.note_and_lists(feature, note.note, note.lists)


def promoted_tokens() -> None:
    heading("Promoted tokens", python + "feature.promoted, feature.measured, feature.suppressed", "py output")
    with messages.guarded():
        panels.output(feature)
        over_vocabulary()


with_words = examples.texts_in(store)
if with_words:
    promoted_tokens()
wide, narrow = st.columns([1, 1] if of_pictures else [5, 3], gap="medium")
with wide:
    if of_pictures:
        strengths()
        notes_panel()
    else:
        headed_examples()
with narrow:
    if not of_pictures:
        strengths_and_test()
    if with_words:
        heading("Tokens it fires on", python + "feature.tokens", "py tokens")
        with messages.guarded():
            panels.tokens(feature)
    if len(store.manifest.roles) > 1:
        heading("By role", python + "feature.by_role", "py roles", meaning="What part of its context a row is.")
        with messages.guarded():
            panels.roles(feature)
    if store.manifest.files.get(lookahead.FILE):
        heading("Suffix look-ahead", python + "feature.lookahead", "py lookahead", meaning=panels.LOOKAHEAD)
        with messages.guarded():
            panels.suffix_lookahead(feature)
    if decay_panel.of_a_state(store.site):
        heading("Decay", python + f"pack.decay.plot({feature.id})", "py decay", meaning=decay_panel.MEANING)
        with messages.guarded():
            decay_panel.decay(feature)
    heading("Related latents", python + "feature.neighbours, feature.opposites, feature.co_firing", "py relations")
    related_latents()
    if not of_pictures:
        notes_panel()
    if not (feature.dead or of_pictures):
        lines = "from scope.features.labels.guess import draw_windows\n\ndraw_windows(feature, seed=0)\n"
        meaning = "Your own detection score of the label."
        heading("Guessing game", python + lines + f"pack.notes.guessed({feature.id})", "py guess", meaning=meaning)
        guess.game(feature, note.guessed, draw_windows)

"""The Feature page: one latent's label, its foremost numbers, examples and promoted tokens; everything else in tabs below."""

import numpy as np
import streamlit as st
from scope.app.feature import ahead, examples, heading, labelling, notes, panels, small_histogram, tabs, token_panel
from scope.app.feature.examples import as_part
from scope.app.feature.first_screen import parts_of
from scope.app.feature.tabs import TAB
from scope.app.kit import bars, messages, tiles
from scope.app.kit.code import copy_as_python, opening
from scope.app.kit.keys import keys, keys_popover
from scope.app.kit.plain import plain
from scope.app.serve import pack_facts, packs, session

from scope.features.pack.pictures import PictureExample

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


def place_in_list(n: int) -> str:
    return "" if place is None else f"{n + 1:,} of {len(order):,} in the list"


def show_latent(latent: int) -> None:
    """Show another latent. As a callback it takes one run of the page; switching pages would take two."""
    open_tab = {name: st.query_params[name] for name in (TAB,) if name in st.query_params}
    st.query_params.from_dict(session.params(f=latent) | open_tab)


def step_to(to: int) -> None:
    """Show a neighbour in the list, or of its number without a list."""
    if 0 <= to <= last:
        show_latent(to if place is None else order[to])


def show_random() -> None:
    show_latent(store.random(np.random.default_rng()).id)


def on_key(name: str) -> None:
    if name in ("before", "after"):
        step_to(before if name == "before" else after)
    elif name == "edit":
        edit()
    elif name == "unlabelled":
        labelling.go_to_next(feature, show_latent)
    elif name == "test":
        st.session_state["to test"] = True


def edit() -> None:
    st.session_state["editing"] = feature.id


def on_example(action: str, text: str) -> None:
    """Open an example's text on the Prompt page, or test it here."""
    if action == "prompt":
        session.go("prompt", text=text[:1500])
    st.session_state["text"], st.session_state["run"] = text, True
    st.session_state["each line"], st.session_state["to test"] = False, True
    st.rerun()


def on_picture(example: PictureExample) -> None:
    """Open an example's picture on the Prompt page."""
    session.go("prompt", context=example.context, f=feature.id)


labelling_now = st.session_state.get("labelling", False)
editing = labelling_now or st.session_state.get("editing") == feature.id
to_test = st.session_state.pop("to test", False)
focus = f"Label of #{feature.id}" if editing else "Text to test" if to_test else ""
pressed = keys(
    {"ArrowLeft": "before", "ArrowRight": "after", "n": "unlabelled", "e": "edit"}
    | ({} if of_pictures else {"t": "test"})
    | {str(n): name for n, name in enumerate(examples.GROUPS, 1) if not feature.dead},
    key="keys",
    focus=focus,
    fields=("edit", "test"),
    on_key=on_key,
)
if pressed in examples.GROUPS:
    st.session_state["group asked"] = pressed
position = feature.id if place is None else place
places = [] if editing else range(max(position - ahead.BEFORE, 0), min(position + ahead.AFTER, last) + 1)
line = [(n if place is None else order[n], place_in_list(n)) for n in places]
passed = sum(n < position for n in places)
ahead.offer(
    store,
    f"pack={session.current()}",
    (feature.id, place_in_list(position)),
    line[:passed],
    line[passed + 1 :],
    [] if feature.dead or of_pictures or editing else parts_of(feature),
    show_latent,
)
with st.container(gap="xsmall", key="latent-head"):
    if editing:
        labelling.label_editor(feature, labelling_now, show_latent)
    else:
        heading.draw(heading.heading(feature, note.label, place_in_list(position)) | as_part(feature, "head"), edit)
    with st.container(horizontal=True, vertical_alignment="center", gap="xsmall", key="latent-bar"):
        within = "In the last list of latents" if place is not None else "By number, since no list was shown"
        for name, icon, shortcut, to in (("Previous", "arrow_back", "k", before), ("Next", "arrow_forward", "j", after)):
            off, icon = not 0 <= to <= last, f":material/{icon}:"
            st.button(name, key=name, icon=icon, shortcut=shortcut, disabled=off, help=within, on_click=step_to, args=(to,))
        meaning = "A random living latent"
        st.button("Random", key="Random", icon=":material/casino:", shortcut="a", help=meaning, on_click=show_random)
        notes.star(feature, note.starred)
        steers = pack_facts.steers(store)
        why_not = None if steers else "Edits need an SAE of a language model's own blocks."
        if st.button("Steer", key="Steer", icon=":material/explore:", shortcut="s", disabled=not steers, help=why_not):
            session.go("steer", f=feature.id)
        if not labelling_now:
            meaning = "Goes from one unlabelled latent to the next: type, Enter, type, Enter. N skips one."
            st.button(
                "Label many", icon=":material/label:", help=meaning, on_click=labelling.begin, args=(feature, show_latent)
            )
        session.link_popover("feature", [TAB], f=feature.id)
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
else:
    tiles.draw(panels.numbers(feature) | as_part(feature, "tiles"), "latent")


@st.fragment
def draw_all_examples() -> None:
    with messages.guarded():
        if of_pictures:
            examples.draw_examples(feature, on_example, on_picture=on_picture)
        else:
            examples.draw_examples(feature, on_example, lambda example, token: token_panel.token_panel(feature, example, token))


def promoted_tokens() -> None:
    with messages.guarded():
        shown = panels.promoted(feature)
        if shown:
            bars.draw(shown | as_part(feature, "promoted"), "promoted small")
        else:
            st.caption("This pack does not hold what it promotes.")


with_words = examples.texts_in(store)
if feature.dead:
    st.caption("It never fired in this pack, so there are no examples.")
    if with_words:
        promoted_tokens()
elif of_pictures:
    draw_all_examples()
else:
    wide, narrow = st.columns([7, 3], gap="medium")
    with wide, st.container(gap="xsmall", key="latent-examples"):
        draw_all_examples()
    with narrow, st.container(gap="xsmall", key="latent-beside"):
        promoted_tokens()
        with messages.guarded():
            small_histogram.draw(small_histogram.columns(feature) | as_part(feature, "columns"))


def open_latent(latent: int | None) -> None:
    if latent is not None:
        session.go("feature", f=latent)


@st.fragment
def draw_panel() -> None:
    """One of the panels below the examples, chosen by its tab; the others cost nothing until they are opened."""
    known = tabs.available(feature)
    if st.session_state.get(TAB, known[0]) not in known:
        del st.session_state[TAB]
    chosen = st.segmented_control(
        "More about this latent",
        known,
        default=known[0],
        required=True,
        key=TAB,
        bind="query-params",
        label_visibility="collapsed",
    )
    with messages.guarded():
        tabs.draw(chosen, feature, note, python, open_latent)


if to_test:  # not within the panel, which would open this tab again whenever it runs alone
    st.session_state[TAB] = tabs.TRY
draw_panel()

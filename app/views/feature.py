"""One latent: its numbers, what it writes, where it fired, what stands beside it, and a test on your own text."""

import numpy as np
import streamlit as st

from app import session
from app.components import health, panels
from app.components.code import copy_as_python, heading, opening
from app.components.plain import number, plain
from app.components.tokens import row, strips
from scope.errors import ScopeError

store = session.pack()
asked = session.asked_latent(store)
if asked is None:
    asked = next(iter(session.once(store, "start here", lambda: health.start_here(store)).values()), 0)
feature = store[asked]
session.remember(feature.id)
python = opening(str(store.folder)) + f"feature = pack[{feature.id}]\n"

order = session.results()
place = order.index(feature.id) if feature.id in order else None
before, after = (feature.id - 1, feature.id + 1) if place is None else (place - 1, place + 1)
last = (store.d_sae if place is None else len(order)) - 1


def test_this(text: str) -> None:
    st.session_state["text"] = text
    st.session_state["run"] = True
    st.rerun()


with st.container(horizontal=True, vertical_alignment="center"):
    st.subheader(f"\\#{feature.id}  {plain(feature.label)}", anchor=False, width="stretch")
    if st.button(
        "Previous", icon=":material/arrow_back:", shortcut="k", disabled=before < 0, help="Within the last list of latents"
    ):
        session.go("feature", f=before if place is None else order[before])
    if st.button(
        "Next", icon=":material/arrow_forward:", shortcut="j", disabled=after > last, help="Within the last list of latents"
    ):
        session.go("feature", f=after if place is None else order[after])
    if st.button("Random", icon=":material/casino:", shortcut="x", help="A living latent, each equally likely"):
        session.go("feature", f=store.random(np.random.default_rng()).id)
with st.container(horizontal=True, vertical_alignment="center", gap="small"):
    st.caption(
        f"label from {plain(feature.label_source)}, score {number(feature.row.get('label_score'), '.2f')}", width="content"
    )
    for flag in feature.flags:
        st.badge(plain(flag), color="orange" if flag in ("dead", "dense", "duplicate") else "gray")
    if place is not None:
        st.caption(f"{place + 1:,} of {len(order):,} in the list", width="content")
    session.link("steer", "Steer", icon=":material/explore:", f=feature.id)
    with st.popover("Link", icon=":material/link:", type="tertiary"):
        st.code(session.address("feature", f=feature.id), language=None)
    copy_as_python(python + "feature  # in a notebook, its card", key="py feature")

if feature.dead:
    st.info(
        f"This latent did not fire in {store.n_tokens:,} tokens, so its density is below {feature.density_bound:.1e} "
        "(95 % upper bound). What follows comes from its weights alone."
    )
    with panels.guarded():
        living = [j for j, _ in feature.neighbours if store.table["count"].iat[j] > 0][:3]
        if living:
            with st.container(horizontal=True):
                st.caption("Nearest living:", width="content")
                for j in living:
                    session.link("feature", f"\\#{j} {plain(store.table['label'].iat[j])}", f=j)
else:
    panels.numbers(feature)


@st.fragment
def shown_examples() -> None:
    with panels.guarded():
        panels.examples(feature, test_this)


@st.fragment
def test() -> None:
    text = st.text_area(
        "Text",
        key="text",
        placeholder="Type a sentence and see where this latent fires.",
        label_visibility="collapsed",
        height=90,
    )
    pressed = st.button(
        "Read", icon=":material/play_arrow:", type="primary", help="Runs the model; the first time it has to be loaded."
    )
    if not (pressed or st.session_state.pop("run", False)) or not text.strip():
        return
    try:
        with session.live(store) as (model, sae), st.spinner("Reading"):
            reading = store.read(text, model, sae)
    except ScopeError as refusal:
        what, _, way_out = str(refusal).partition("\n")
        st.error(plain(what))
        if way_out:
            st.code(way_out, language=None)
        return
    values = reading.values(feature.id)
    best, high, fired = int(np.argmax(values)), float(values.max()), int((values > 0).sum())
    shown = row(
        reading.pieces,
        values,
        float(feature.row["max"]),
        best if high > 0 else None,
        value=f"{high:.3g}" if high > 0 else "silent",
    )
    strips([shown], key="tested")
    told = f"Fires on {fired} of {len(reading.pieces)} tokens" + (f"; {panels.told(feature, None, high)}." if high > 0 else ".")
    st.caption(plain(told) + f" The dictionary leaves {reading.fvu:.0%} of this text unexplained (FVU).")
    if reading.fvu > 0.5:
        st.warning(f"The dictionary explains only {max(0.0, 1 - reading.fvu):.0%} of this text, so silence here means little.")


heading("What it writes", python + "feature.promoted, feature.measured, feature.suppressed", "py output")
with panels.guarded():
    panels.output(feature)

wide, narrow = st.columns([5, 3], gap="medium")
with wide:
    loop = 'for example in feature.examples("top", 12):\n    print(example.value, "".join(example.tokens))'
    heading("Where it fired", python + loop, "py examples")
    if feature.dead:
        st.caption("Nowhere in this pack.")
    else:
        shown_examples()
with narrow:
    if not feature.dead:
        heading("How strongly", python + "edges, counts = feature.histogram", "py histogram")
        with panels.guarded():
            panels.histogram(feature)
    heading("Test on your text", python + f'pack.read("a text", model, sae).values({feature.id})', "py test")
    test()
    heading("On which tokens", python + "feature.tokens", "py tokens")
    with panels.guarded():
        panels.tokens(feature)
    heading("What stands beside it", python + "feature.neighbours, feature.co_firing", "py relations")
    with panels.guarded():
        picked = panels.relations(feature)
        if picked is not None:
            session.go("feature", f=picked)

"""Which latents fire on a text of yours, what they do to the next token, and how two texts differ."""

import numpy as np
import streamlit as st

from app import session
from app.components import figures, listing, prompts
from app.components.code import copy_as_python, heading, opening
from app.components.plain import number, plain
from app.components.tokens import row, strips
from scope.errors import ScopeError
from scope.features.prompt import ORDERS, POOLS, compared, matrix, ranked
from scope.steering.attribution import attribute

store = session.pack()
kept = st.session_state.setdefault("readings", {})
python = opening(str(store.folder)) + "view = pack.read('a text', model, sae)\n"


def read(text: str):
    """A text's reading, made once and kept for this session."""
    key = (session.current(), text)
    if key not in kept:
        with session.live(store) as (model, sae), st.spinner("Reading"):
            made = store.read(text, model, sae)
        while len(kept) >= 8:
            del kept[next(iter(kept))]
        kept[key] = made
    return kept[key]


def text_of(name: str, beside: str) -> str:
    """A text area whose content stands in the address while it is short enough to."""
    if name not in st.session_state:
        st.session_state[name] = st.query_params.get(name, "")
    text = st.text_area(beside, key=name, height=90, placeholder="The river runs to the sea.")
    if text and len(text) <= prompts.LONGEST:
        st.query_params[name] = text
    elif name in st.query_params:
        del st.query_params[name]
    if len(text) > prompts.LONGEST:
        st.caption("This text is too long to stand in the address, so a link will not hold it.")
    return text


two = st.toggle("Compare two texts", key="two", bind="query-params")
columns = st.columns(2) if two else [st.container()]
texts = []
for column, (name, beside) in zip(columns, (("text", "Text"), ("with", "Second text")), strict=False):
    with column:
        texts.append(text_of(name, beside))
st.button("Read", icon=":material/play_arrow:", type="primary", help="Runs the model; the first time it has to be loaded.")
if not all(text.strip() for text in texts):
    st.caption("Write a text and press Read. Nothing leaves this machine.")
    st.stop()
try:
    views = [read(text) for text in texts]
except ScopeError as refusal:
    what, _, way_out = str(refusal).partition("\n")
    st.error(plain(what), icon=":material/error:")
    if way_out:
        st.code(way_out, language=None)
    st.stop()

for number_of, view in enumerate(views):
    if view.fvu > 0.5:
        st.warning(
            f"The dictionary explains only {max(0.0, 1 - view.fvu):.0%} of text {number_of + 1}: its silence means little."
        )

if two:
    pool = st.segmented_control("Pooled by", POOLS, default="largest", required=True, key="pool", bind="query-params")
    rows = compared(*views, pool=pool, k=40)
    heading("What differs", python + "from scope.features.prompt import compared\ncompared(view, other)", "py compared")
    picked = prompts.table(rows, ("first", "second", "change"), key=f"compared {hash(tuple(texts))} {pool}")
    st.caption("Shares of each latent's maximum in this pack.")
    if picked is not None:
        session.go("feature", f=picked)
    st.download_button(
        "CSV", lambda: listing.frame_csv(rows), "differences.csv", "text/csv", icon=":material/download:", type="tertiary"
    )
    st.stop()

view = views[0]
with st.container(horizontal=True, vertical_alignment="bottom"):
    by = st.segmented_control(
        "Ranked by",
        ORDERS,
        default="surprise",
        required=True,
        key="by",
        bind="query-params",
        help="Surprise: how rarely it fires so strongly. Value: activation. Share: of its maximum in this pack.",
    )
    dense = st.toggle(
        "Dense latents too", key="dense", bind="query-params", help="Those that fire on more than a tenth of all tokens"
    )
    least = st.slider(
        "Stronger than this share of its firings", 0.0, 0.99, 0.0, 0.01, key="least", bind="query-params", width=260
    )

place = st.session_state.get("at")
place = place if place is not None and place < len(view.pieces) else None
rows = ranked(view, place, by, 20, dense=dense, least=least)
shown = st.session_state.get("shown latent")
shown = shown if shown in rows.index else (int(rows.index[0]) if len(rows) else None)

heading("The text", python + "view.pieces, view.latents", "py text", meaning="Click a token to see what fires there.")
if shown is None:
    strip = row(view.pieces, np.zeros(len(view.pieces)), 1.0, place)
else:
    strip = row(view.pieces, view.values(shown), float(store.index.column("max")[shown]), place, value=f"#{shown}")
clicked = strips([strip], key="prompt text", pick=True)
if clicked is not None and clicked != place:
    st.session_state["at"] = clicked
    st.rerun()
with st.container(horizontal=True, vertical_alignment="center"):
    told = "all tokens" if place is None else f"token {place}, {plain(prompts.piece(view.pieces[place]))}"
    error = view.fvu if place is None else view.fvu_at[place]
    st.caption(f"Latents on **{told}**; colour: #{shown}; unexplained there (FVU): {number(error, '.0%')}.", width="content")
    if place is not None and st.button("All tokens", type="tertiary"):
        st.session_state["at"] = None
        st.rerun()

if rows.empty:
    st.info("Nothing fires here under these filters.")
else:
    call = f"from scope.features.prompt import ranked\nranked(view, {place}, {by!r})"
    heading("Latents", python + call, "py ranked")
    picked = prompts.table(
        rows, ("value", "share", "quantile", "surprise"), key=f"ranked {hash(texts[0])} {place} {by} {dense} {least}"
    )
    if picked is not None:
        st.session_state["shown latent"] = picked
        with st.container(horizontal=True):
            session.link("feature", f"Open \\#{picked}", icon=":material/open_in_new:", f=picked)
            session.link("steer", f"Steer \\#{picked}", icon=":material/explore:", f=picked)
        if picked != shown:
            st.rerun()
    with st.container(horizontal=True):
        st.download_button(
            "CSV", lambda: listing.frame_csv(rows), "latents.csv", "text/csv", icon=":material/download:", type="tertiary"
        )

left, right = st.columns([3, 2], gap="medium")
with left:
    heading(
        "Tokens by latents",
        python + "from scope.features.prompt import matrix\nmatrix(view)",
        "py matrix",
        meaning="Share of its maximum; click a cell.",
    )
    latents, shares = matrix(view, 20, by, dense=dense)
    figure = figures.matrix(
        shares, [f"#{i}" for i in latents], [prompts.piece(p) for p in view.pieces], list(store.table["label"].iloc[latents])
    )
    chosen = st.plotly_chart(
        figure, config=figures.SMALL, key="matrix", on_select="rerun", selection_mode="points", alt="Latents by tokens"
    )
    if chosen.selection.points:
        session.go("feature", f=latents[int(chosen.selection.points[0]["y"])])
with right:
    heading(
        "What decides the next token",
        opening(str(store.folder)) + prompts.attribution_code(texts[0]),
        "py attribution",
        meaning="A logit difference taken apart; with the error as a row, the rows add up.",
    )
    with st.container(horizontal=True, vertical_alignment="bottom"):
        token = st.text_input("Token", key="token", placeholder="the likeliest", width=130)
        other = st.text_input("against", key="other", placeholder="the next one", width=130)
        method = st.selectbox("Method", prompts.METHODS, key="method", width=140)
        go = st.button("Attribute", icon=":material/functions:")
    if go:
        try:
            with session.live(store) as (model, sae), st.spinner("Attributing"):
                st.session_state["attribution"] = (
                    texts[0],
                    attribute(model, sae, texts[0], token or None, other or None, method=method, pack=store, exact=16),
                )
        except ScopeError as refusal:
            st.error(plain(refusal), icon=":material/error:")
    asked, found = st.session_state.get("attribution", ("", None))
    if found is not None and asked == texts[0]:
        prompts.attribution(found)
    else:
        st.caption("Which latents make the model say this token rather than the other, by gradient or by ablating each.")
with st.container(horizontal=True):
    with st.popover("Link", icon=":material/link:", type="tertiary"):
        st.code(session.address("prompt", text=texts[0][: prompts.LONGEST]), language=None)
    copy_as_python(python + "view", key="py prompt")

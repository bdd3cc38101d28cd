"""Which latents fire on a text of yours, what they do to the next token, and how two texts differ."""

import numpy as np
import streamlit as st

from app import models, prompting, session
from app.components import figures, listing, prompts
from app.components.code import copy_as_python, heading, opening
from app.components.plain import number, plain
from app.components.tokens import row, strips
from scope.errors import PackError, ScopeError, TokensError
from scope.features.prompt import ORDERS, POOLS, compared, matrix, ranked

store = session.pack()
python = opening(str(store.folder)) + "view = pack.read('a text', model, sae)\n"
FIELDS = (("text", "Text"), ("with", "Second text"))


def reopen(run: str) -> None:
    """Put a saved reading's texts and settings into the page, once."""
    if st.session_state.get("reopened") == run:
        return
    held = prompts.load(store.folder, run)
    st.session_state["reopened"] = run
    for (name, _), text in zip(FIELDS, held["texts"], strict=False):
        st.session_state[name] = text
    kinds = {"two": bool, "by": str, "dense": bool, "chat": bool}
    for name, kind in kinds.items():
        if isinstance(held["settings"].get(name), kind):
            st.session_state[name] = held["settings"][name]


def text_of(name: str, beside: str) -> str:
    """A text area whose content stands in the address while it is short enough to."""
    if name in st.query_params and st.session_state.get(f"came {name}") != st.query_params[name]:
        st.session_state[name] = st.session_state[f"came {name}"] = st.query_params[name]
    text = st.text_area(beside, key=name, height=90, placeholder="The river runs to the sea.")
    fits = 0 < len(text) <= prompts.LONGEST
    if fits and st.query_params.get(name) != text:
        st.query_params[name] = st.session_state[f"came {name}"] = text
    elif not fits and name in st.query_params:
        del st.query_params[name]
    if len(text) > prompts.LONGEST:
        st.caption("This text is too long to stand in the address: save the reading to link to it.")
    return text


def token_asked(view) -> None:
    """Choose the token that the address names, once: a number, or the last."""
    asked = st.query_params.get("at")
    if asked is None or st.session_state.get("came at") == (asked, view.ids):
        return
    st.session_state["came at"], last = (asked, view.ids), len(view.pieces) - 1
    if asked == "last":
        st.session_state["at"] = last
    elif asked.isdecimal() and int(asked) <= last:
        st.session_state["at"] = int(asked)
    else:
        st.session_state["at"] = None
        st.warning(plain(f"There is no token {asked}: this text has tokens 0 to {last}. All of them are shown."))


def shortened(text: str, name: str) -> None:
    """Offer the part of a text that the model takes."""
    part, n, most = models.cut(store, text)
    if n > most:
        st.caption(f"It has {n:,} tokens, and the model takes {most:,}. This is as far as they reach:")
        st.text(part[-160:])
        st.button(f"Read the first {most:,} tokens", on_click=lambda: st.session_state.update({name: part}))


def latent_links(latent: int) -> None:
    with st.container(horizontal=True):
        session.link("feature", f"Open \\#{latent}", icon=":material/open_in_new:", f=latent)
        session.link("steer", f"Steer \\#{latent}", icon=":material/explore:", f=latent)


if run := st.query_params.get("run"):
    reopen(run)
with st.container(horizontal=True):
    two = st.toggle("Compare two texts", key="two", bind="query-params")
    chat = st.toggle("As a chat turn", key="chat", bind="query-params", help="Laid out by the model's own chat template.")
columns = st.columns(2) if two else [st.container()]
texts = []
for column, (name, beside) in zip(columns, FIELDS, strict=False):
    with column:
        texts.append(text_of(name, beside))
with st.container(horizontal=True, vertical_alignment="center"):
    help = "Runs the model; the first time it has to be loaded."
    st.button("Read", icon=":material/play_arrow:", type="primary", help=help)
    older = prompts.saved(store.folder)
    if older:
        with st.popover(f"Saved readings ({len(older)})", icon=":material/history:", type="tertiary"):
            for name, text in older:
                session.link("prompt", plain(text), run=name)
if not all(text.strip() for text in texts):
    st.caption("Write a text and press Read. Nothing leaves this machine.")
    st.stop()
read_texts = texts
try:
    if chat:
        read_texts = [models.as_chat(store, text) for text in texts]
    views = [models.reading(store, text) for text in read_texts]
except TokensError as refusal:
    session.refuse(refusal)
    for text, (name, _) in zip(texts, FIELDS, strict=False):
        shortened(text, name)
    st.stop()
except ScopeError as refusal:
    session.refuse(refusal)
    st.stop()
if chat:
    for text in read_texts:
        st.text(text)

for number_of, view in enumerate(views):
    if view.tuning:
        st.warning(plain(view.tuned()))
    elif view.fvu > 0.5:
        st.warning(
            f"The dictionary explains only {max(0.0, 1 - view.fvu):.0%} of text {number_of + 1}: its silence means little."
        )


def footer(settings: dict) -> None:
    """Saving, the link, and the lines of Python for all of it."""
    with st.container(horizontal=True, vertical_alignment="center"):
        if st.button("Save reading", icon=":material/bookmark:", help="Texts and settings, beside the pack; the link stays."):
            made = {name: store.manifest[name] for name in ("model", "dictionary") if name in store.manifest}
            name = prompts.save(store.folder, texts, settings, made)
            st.session_state["reopened"] = name
            session.go("prompt", run=name)
        with st.popover("Link", icon=":material/link:", type="tertiary"):
            at = {"run": run} if run else {"text": texts[0][: prompts.LONGEST]}
            at |= {} if two or st.session_state.get("at") is None else {"at": st.session_state["at"]}
            st.code(session.address("prompt", **at), language=None)
        copy_as_python(python + "view", key="py prompt")


if two:
    pool = st.segmented_control("Pooled by", POOLS, default="largest", required=True, key="pool", bind="query-params")
    rows = compared(*views, pool=pool, k=40)
    heading("What differs", python + "from scope.features.prompt import compared\ncompared(view, other)", "py compared")
    picked = prompts.table(rows, ("first", "second", "change"), key=f"compared {hash(tuple(texts))} {pool}")
    st.caption("Shares of each latent's maximum in this pack.")
    if picked is not None:
        for n, (column, view) in enumerate(zip(st.columns(2), views, strict=True)):
            with column:
                largest = float(store.index.column("max")[picked])
                strips([row(view.pieces, view.values(picked), largest, value=f"#{picked}")], key=f"differs {n}")
        latent_links(picked)
    with st.container(horizontal=True):
        csv = {"file_name": "differences.csv", "mime": "text/csv", "icon": ":material/download:", "type": "tertiary"}
        st.download_button("CSV", lambda: listing.frame_csv(rows), **csv)
        if len(rows) and st.button("Steer the foremost three", icon=":material/explore:", type="tertiary"):
            session.steer_these([int(i) for i in rows.index[:3]])
    footer({"two": True, "chat": chat})
    st.stop()

view = views[0]
orders = [*ORDERS, "direct effect"]
with st.container(horizontal=True, vertical_alignment="bottom"):
    by = st.segmented_control(
        "Ranked by",
        orders,
        default="surprise",
        required=True,
        key="by",
        bind="query-params",
        help="Surprise: how rarely it fires so strongly. Value: activation. Share: of its maximum in this pack. "
        "Direct effect: what it adds to the logit of the likeliest next token.",
    )
    dense = session.dense_too(store, at_first=False)
    least = st.slider(
        "Stronger than this share of its firings", 0.0, 0.99, 0.0, 0.01, key="least", bind="query-params", width=260
    )

token_asked(view)
place = st.session_state.get("at")
place = place if place is not None and place < len(view.pieces) else None
columns_shown = (by, *(name for name in ("value", "share", "quantile", "surprise") if name != by))
towards = ""
if by == "direct effect":
    at = len(view.pieces) - 1 if place is None else place
    try:
        token, rows = prompting.by_direct_effect(store, view, at, 20, dense=dense, least=least)
    except PackError as refusal:
        session.refuse(refusal)
        st.stop()
    columns_shown = ("direct", "value", "share", "surprise")
    towards = f" Towards {prompts.piece(store.vocab[token])!r}, the likeliest token after token {at}."
else:
    rows = ranked(view, place, by, 20, dense=dense, least=least)
shown = st.session_state.get("shown latent")
shown = shown if shown in rows.index else (int(rows.index[0]) if len(rows) else None)

heading("The text", python + "view.pieces, view.latents", "py text", meaning="Click a token to see what fires there.")
if shown is None:
    strip = row(view.pieces, np.zeros(len(view.pieces)), 1.0, place)
else:
    strip = row(view.pieces, view.values(shown), float(store.index.column("max")[shown]), place, value=f"#{shown}")
clicked = strips([strip], key="prompt text", pick=True)
if clicked is not None and clicked[1] != place:
    st.session_state["at"] = clicked[1]
    st.rerun()
with st.container(horizontal=True, vertical_alignment="center"):
    told = "all tokens" if place is None else f"token {place}, {plain(prompts.piece(view.pieces[place]))}"
    error = view.fvu if place is None else view.fvu_at[place]
    colour = f"; colour: #{shown}" if shown is not None else ""
    st.caption(
        f"Latents on **{told}**{colour}; unexplained there (FVU): {number(error, '.0%')}." + plain(towards), width="content"
    )
    if place is not None and st.button("All tokens", type="tertiary"):
        st.session_state["at"] = None
        st.rerun()

left, right = st.columns([3, 2], gap="medium")
with left:
    if rows.empty:
        st.info("Nothing fires here under these filters.")
    else:
        call = f"from scope.features.prompt import ranked\nranked(view, {place}, {by!r})"
        if by == "direct effect":
            call = f"from scope.features.direct import direct_effects\ndirect_effects(view, model, sae, {place})"
        heading("Latents", python + call, "py ranked")
        picked = prompts.table(rows, columns_shown, key=f"ranked {hash(read_texts[0])} {place} {by} {dense} {least}")
        if picked is not None:
            st.session_state["shown latent"] = picked
            if picked != shown:
                st.rerun()
        with st.container(horizontal=True):
            csv = {"file_name": "latents.csv", "mime": "text/csv", "icon": ":material/download:", "type": "tertiary"}
            st.download_button("CSV", lambda: listing.frame_csv(rows), **csv)
            if st.button("Steer the foremost three", icon=":material/explore:", type="tertiary"):
                session.steer_these([int(i) for i in rows.index[:3]])
with right:
    call = f"from scope.features.direct import next_tokens\nnext_tokens(view, model, {place})"
    heading("What comes next", python + call, "py next", meaning="Likeliest tokens after the chosen one, or after the last.")
    prompts.following(prompting.following(store, view, place), key=f"following {hash(read_texts[0])} {place}")
    if shown is not None:
        st.caption(plain(f"#{shown} {store[shown].label}"))
        latent_links(shown)
        prompting.ablation(store, read_texts[0], shown)

left, right = st.columns([3, 2], gap="medium")
with left:
    heading(
        "Tokens by latents",
        python + "from scope.features.prompt import matrix\nmatrix(view)",
        "py matrix",
        meaning="Share of its maximum; click a cell.",
    )
    latents, shares = matrix(view, 20, by if by in ORDERS else "surprise", dense=dense)
    figure = figures.matrix(
        shares, [f"#{i}" for i in latents], [prompts.piece(p) for p in view.pieces], list(store.table["label"].iloc[latents])
    )
    chosen = st.plotly_chart(
        figure, config=figures.SMALL, key="matrix", on_select="rerun", selection_mode="points", alt="Latents by tokens"
    )
    if chosen.selection.points:
        session.go("feature", f=latents[int(chosen.selection.points[0]["y"])])
with right:
    prompting.attribution(store, read_texts[0])
footer({"two": False, "by": by, "dense": dense, "chat": chat})

"""Which latents fire on a text of yours, what they do to the next token, and how two texts differ."""

import streamlit as st
from scope.app.kit import latent_tables, messages
from scope.app.kit.code import copy_as_python, heading, opening
from scope.app.kit.plain import plain
from scope.app.kit.tokens import row, strips
from scope.app.prompt import one_text
from scope.app.serve import downloads, models, packs, readings, session

from scope.errors import PackError, ScopeError, TokensError
from scope.features.reading.two_texts import POOLS, compared, compared_by_token

store = session.pack()
python = opening(str(store.folder)) + "view = pack.read('a text', model, sae)\n"
FIELDS = (("text", "Text"), ("with", "Second text"))
ALIGNED = "token by token"
POOLED = "Largest or mean over each text; or token by token, where the two run alike."


def reopen(run: str) -> None:
    """Put a saved reading's texts and settings into the page, once."""
    if st.session_state.get("reopened") == run:
        return
    held = readings.load(store.folder, run)
    st.session_state["reopened"] = run
    for (name, _), text in zip(FIELDS, held["texts"], strict=False):
        st.session_state[name] = text
    kinds = {"two": bool, "by": str, "dense": bool, "chat": bool}
    for name, kind in kinds.items():
        if isinstance(held["settings"].get(name), kind):
            st.session_state[name] = held["settings"][name]
    also = held["settings"].get("also")
    if isinstance(also, list):  # of the packs that are open here
        st.session_state["also"] = [slug for slug in packs.registry() if slug in also and slug != session.current()]


def text_of(name: str, beside: str) -> str:
    """A text area whose content stands in the address while it is short enough to."""
    if name in st.query_params and st.session_state.get(f"came {name}") != st.query_params[name]:
        st.session_state[name] = st.session_state[f"came {name}"] = st.query_params[name]
    text = st.text_area(beside, key=name, height=90, placeholder="The river runs to the sea.")
    fits = 0 < len(text) <= readings.LONGEST
    if fits and st.query_params.get(name) != text:
        st.query_params[name] = st.session_state[f"came {name}"] = text
    elif not fits and name in st.query_params:
        del st.query_params[name]
    if len(text) > readings.LONGEST:
        st.caption("This text is too long to stand in the address: save the reading to link to it.")
    return text


def shortened(text: str, name: str) -> None:
    """Offer the part of a text that the model takes."""
    part, n, most = models.cut(store, text)
    if n > most:
        st.caption(f"It has {n:,} tokens, and the model takes {most:,}. This is as far as they reach:")
        st.text(part[-160:])
        st.button(f"Read the first {most:,} tokens", on_click=lambda: st.session_state.update({name: part}))


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
    older = readings.saved(store.folder)
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
    messages.refuse(refusal)
    for text, (name, _) in zip(texts, FIELDS, strict=False):
        shortened(text, name)
    st.stop()
except ScopeError as refusal:
    messages.refuse(refusal)
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
            name = readings.save(store.folder, texts, settings, made)
            st.session_state["reopened"] = name
            session.go("prompt", run=name)
        with st.popover("Link", icon=":material/link:", type="tertiary"):
            at = {"run": run} if run else {"text": texts[0][: readings.LONGEST]}
            at |= {"two": "true", "with": texts[1][: readings.LONGEST]} if two and not run else {}
            at |= {} if two or st.session_state.get("at") is None else {"at": st.session_state["at"]}
            st.code(session.address("prompt", **at), language=None)
        copy_as_python(python + "view", key="py prompt")


if two:
    pool = st.segmented_control(
        "Compared", [*POOLS, ALIGNED], default="largest", required=True, key="pool", bind="query-params", help=POOLED
    )
    lines = python + "from scope.features.reading.two_texts import compared\ncompared(view, other)"
    told = "Shares of each latent's maximum in this pack."
    try:
        if pool == ALIGNED:
            lines = python + "from scope.features.reading.two_texts import compared_by_token\ncompared_by_token(view, other)"
            rows, *alone = compared_by_token(*views)
            told += f" At the pair of tokens where it changes most; without a partner: {alone[0]} tokens of the first text, "
            told += f"{alone[1]} of the second."
        else:
            rows = compared(*views, pool=pool, k=40)
    except PackError as refusal:
        messages.refuse(refusal)
        footer({"two": True, "chat": chat})
        st.stop()
    heading("What differs", lines, "py compared")
    chosen = latent_tables.table(rows, ("first", "second", "change"), key=f"compared {hash(tuple(texts))} {pool}")
    st.caption(told)
    if chosen is not None:
        picked = int(rows.index[chosen])
        places = rows[["at", "at_second"]].iloc[chosen].tolist() if pool == ALIGNED else [None, None]
        for n, (column, view) in enumerate(zip(st.columns(2), views, strict=True)):
            with column:
                largest = float(store.index.column("max")[picked])
                strips([row(view.pieces, view.values(picked), largest, places[n], value=f"#{picked}")], key=f"differs {n}")
        one_text.latent_links(session.current(), picked)
    with st.container(horizontal=True):
        csv = {"file_name": "differences.csv", "mime": "text/csv", "icon": ":material/download:", "type": "tertiary"}
        st.download_button("CSV", lambda: downloads.frame_csv(rows), **csv)
        if len(rows) and st.button("Steer the foremost three", icon=":material/explore:", type="tertiary"):
            session.steer_these([int(i) for i in rows.index[:3]])
    footer({"two": True, "chat": chat})
    st.stop()

settings = one_text.draw(store, views[0], read_texts[0])
footer({"two": False, "chat": chat, **settings})

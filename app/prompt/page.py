"""The Prompt page: which latents fire on a text, their effect on the next token, and how two texts differ; or on a picture."""

import streamlit as st
from scope.app.kit import latent_tables, messages
from scope.app.kit.code import copy_as_python, heading, opening
from scope.app.kit.plain import plain
from scope.app.kit.tokens import row, strips
from scope.app.prompt import one_text, picture_page
from scope.app.serve import downloads, models, packs, readings, session

from scope.errors import PackError, ScopeError, TokensError
from scope.features.reading.two_texts import POOLS, compared, compared_by_token

store = session.pack()
python = opening(str(store.folder)) + "view = pack.read('a text', model, sae)\n"
FIELDS = (("text", "Text"), ("with", "Second text"))
ALIGNED = "token by token"
POOLED = "Largest or mean over each text; or token by token, for texts that run in parallel."


def reopen(run: str) -> None:
    """Fill the controls with a saved reading's texts and settings, once."""
    if st.session_state.get("reopened") == run:
        return
    saved = readings.load(store.folder, run)
    st.session_state["reopened"] = run
    for (name, _), text in zip(FIELDS, saved["texts"], strict=False):
        st.session_state[name] = text
    kinds = {"two": bool, "by": str, "dense": bool, "chat": bool}
    for name, kind in kinds.items():
        if isinstance(saved["settings"].get(name), kind):
            st.session_state[name] = saved["settings"][name]
    also = saved["settings"].get("also")
    if isinstance(also, list):  # of the packs that are open here
        st.session_state["also"] = [slug for slug in packs.registry() if slug in also and slug != session.current()]


def text_of(name: str, label: str) -> str:
    """A text area whose content is in the address while it is short enough."""
    if name in st.query_params and st.session_state.get(f"came {name}") != st.query_params[name]:
        st.session_state[name] = st.session_state[f"came {name}"] = st.query_params[name]
    text = st.text_area(label, key=name, height=72, placeholder="The river runs to the sea.")
    messages.show_turning_marks(text)
    fits = 0 < len(text) <= readings.LONGEST
    if fits and st.query_params.get(name) != text:
        st.query_params[name] = st.session_state[f"came {name}"] = text
    elif not fits and name in st.query_params:
        del st.query_params[name]
    if len(text) > readings.LONGEST:
        st.caption("This text is too long for the address: save the reading to link to it.")
    return text


def offer_truncation(text: str, name: str) -> None:
    """Offer to read the part of a text that the model takes."""
    part, n, most = models.truncated(store, text)
    if n > most:
        st.caption(f"The text has {n:,} tokens, and the model takes {most:,}. It would be cut after:")
        st.text(part[-160:])
        st.button(f"Read the first {most:,} tokens", on_click=lambda: st.session_state.update({name: part}))


if store.pictures is not None:
    picture_page.draw(store)
    raise session.PageDrawn
if run := st.query_params.get("run"):
    reopen(run)
with st.container(horizontal=True, vertical_alignment="center"):
    st.title("Read a text", anchor=False, width="content")
    two = st.toggle("Compare two texts", key="two", bind="query-params")
    chat = st.toggle("As a chat turn", key="chat", bind="query-params", help="Formats the text by the model's chat template.")
columns = st.columns(2) if two else [st.container()]
texts = []
for column, (name, label) in zip(columns, FIELDS, strict=False):
    with column:
        texts.append(text_of(name, label))
with st.container(horizontal=True, vertical_alignment="center"):
    help = "Runs the model, which is loaded on first use."
    st.button("Read", icon=":material/play_arrow:", type="primary", help=help)
    earlier = readings.saved(store.folder)
    if earlier:
        with st.popover(f"Saved readings ({len(earlier)})", icon=":material/history:", type="tertiary"):
            for name, text in earlier:
                session.link("prompt", plain(text), run=name)
if not all(text.strip() for text in texts):
    st.caption("Write a text and press Read. Nothing leaves this machine.")
    st.stop()
read_texts = texts
try:
    if chat:
        read_texts = [models.chat_text(store, text) for text in texts]
    views = [models.reading(store, text) for text in read_texts]
except TokensError as refusal:
    messages.show_refusal(refusal)
    for text, (name, _) in zip(texts, FIELDS, strict=False):
        offer_truncation(text, name)
    st.stop()
except ScopeError as refusal:
    messages.show_refusal(refusal)
    st.stop()
if chat:
    for text in read_texts:
        st.text(text)

for n, view in enumerate(views, 1):
    if view.tuning:
        st.warning(plain(view.tuned()))
    else:
        messages.warn_of_poor_fit(view.fvu, f"text {n}")


def footer(settings: dict) -> None:
    """Buttons: save the reading, its link, and the Python lines."""
    with st.container(horizontal=True, vertical_alignment="center"):
        if st.button(
            "Save reading", icon=":material/bookmark:", help="Saves texts and settings in the pack, under a permanent link."
        ):
            made_with = {"model": store.manifest.model, "dictionary": store.manifest.dictionary}
            name = readings.save(store.folder, texts, settings, made_with)
            st.session_state["reopened"] = name
            session.go("prompt", run=name)
        params = {"run": run} if run else {"text": texts[0][: readings.LONGEST]}
        params |= {"two": "true", "with": texts[1][: readings.LONGEST]} if two and not run else {}
        params |= {} if two or st.session_state.get("at") is None else {"at": st.session_state["at"]}
        session.link_popover("prompt", **params)
        copy_as_python(python + "view", key="py prompt")


if two:
    pool = st.segmented_control(
        "Compare by", [*POOLS, ALIGNED], default="largest", required=True, key="pool", bind="query-params", help=POOLED
    )
    lines = python + "from scope.features.reading.two_texts import compared\ncompared(view, other)"
    summary = "Shares of each latent's maximum in this pack."
    try:
        if pool == ALIGNED:
            lines = python + "from scope.features.reading.two_texts import compared_by_token\ncompared_by_token(view, other)"
            rows, *alone = compared_by_token(*views)
            summary += f" At the pair of tokens where it changes most; without a partner: {alone[0]} tokens of the first text, "
            summary += f"{alone[1]} of the second."
        else:
            rows = compared(*views, pool=pool, k=40)
    except PackError as refusal:
        messages.show_refusal(refusal)
        footer({"two": True, "chat": chat})
        st.stop()
    heading("Differences", lines, "py compared")
    chosen = latent_tables.table(rows, ("first", "second", "change"), key=f"compared {hash(tuple(texts))} {pool}")
    st.caption(summary)
    if chosen is not None:
        picked = int(rows.index[chosen])
        places = rows[["at", "at_second"]].iloc[chosen].tolist() if pool == ALIGNED else [None, None]
        for n, (column, view) in enumerate(zip(st.columns(2), views, strict=True)):
            with column:
                largest = float(store.index.column("max")[picked])
                strips([row(view.pieces, view.values(picked), largest, places[n], value=f"#{picked}")], key=f"differs {n}")
        one_text.latent_links(session.current(), picked)
    with st.container(horizontal=True):
        downloads.csv_button("CSV", rows, "differences.csv", key="csv differences")
        if len(rows) and st.button("Steer the top three", icon=":material/explore:", type="tertiary"):
            session.steer_these([int(i) for i in rows.index[:3]])
    footer({"two": True, "chat": chat})
    st.stop()

settings = one_text.draw(store, views[0], read_texts[0])
footer({"two": False, "chat": chat, **settings})

"""The Prompt page of a pack of pictures: which latents fire where in a picture, what the model says of it, and why."""

from dataclasses import replace
from typing import Any

import pandas as pd
import streamlit as st
from scope.app.kit import latent_tables, messages
from scope.app.kit.code import heading, opening
from scope.app.kit.pictures import card, pictures, where_in_words
from scope.app.kit.plain import number, plain, show_line
from scope.app.kit.tokens import row, strips
from scope.app.prompt import picture_reading
from scope.app.prompt.picture_reading import PictureReading
from scope.app.prompt.why_panels import why_match, why_word
from scope.app.serve import downloads, pack_facts, session
from scope.app.serve.picture_choice import ChosenPicture, choose

from scope.errors import PackError, ScopeError
from scope.features.face import Pack
from scope.features.reading.view import ORDERS, ranked
from scope.models.pictures.draw import overlay

EVERYWHERE, IN_PICTURE = -1, -2
MAPS = 6
"""Latents whose maps are drawn."""


def draw(store: Pack) -> None:
    """Draw the page."""
    chosen = choose(store, "prompt picture")
    question = ""
    if picture_reading.asks(store):
        st.session_state.setdefault("ask", st.query_params.get("ask") or pack_facts.asked_of_pictures(store) or "caption en")
        question = st.text_input("Question about the picture, or a task", key="ask", bind="query-params")
    if chosen is None:
        st.caption("Choose a picture. The model is loaded on first use, and nothing leaves this machine.")
        return
    try:
        read = picture_reading.reading(store, chosen.picture, question)
    except ScopeError as refusal:
        messages.show_refusal(refusal)
        return
    messages.warn_of_poor_fit(read.view.fvu, "this picture")
    if chosen.context is not None:
        w, h = chosen.picture.size
        st.caption(f"Read from the pack's small copy, {w} × {h}: values differ a little from those of the file itself.")
    if read.says:
        said = plain(show_line(read.answer.strip(), 400)) or "nothing: it ends at once"
        st.markdown(f"The model says: **{said}**")
    latents(store, read, chosen)
    if read.says:
        why_word(store, read)
    if read.matches:
        why_match(store, read)
    footer(store, chosen, question)


def latents(store: Pack, read: PictureReading, chosen: ChosenPicture) -> None:
    """The picture with the map of one latent, beside the latents that fire; below it the maps of the first of them."""
    by, dense, place = controls(store, read)
    try:
        view, n = read.view, read.n_patches
        if place == IN_PICTURE:
            view = replace(view, latents=view.latents[:n], pieces=view.pieces[:n])
        rows = ranked(view, None if place < 0 else place, by, 20, dense=dense)
    except PackError as refusal:
        messages.show_refusal(refusal)
        return
    shown = latent_shown(store, rows)
    left, right = st.columns([2, 3], gap="medium")
    with left:
        heading("The picture", python(store), "py picture", meaning="Enlarge it for the value at each patch.")
        if shown is not None:
            pictures([latent_card(read, shown, chosen.name)], key="read picture", wide=240)
            links(store, shown)
        else:
            pictures([plain_card(read, chosen.name)], key="read picture", wide=240)
        if len(read.view.pieces) > read.n_patches and shown is not None:
            words(read, shown)
    with right:
        heading("Latents", python(store) + "ranked(view)", "py ranked", meaning="Choose a row to see where it fires.")
        if rows.empty:
            st.info("No latent fires here under these filters.")
            return
        columns = (by, *(name for name in ("value", "share", "quantile", "surprise") if name != by))
        picked = latent_tables.table(
            rows.rename(columns={"token": "where"}), columns, key=f"seen {read.key} {place} {by} {dense}", where="where"
        )
        if picked is not None and int(rows.index[picked]) != shown:
            st.session_state["seen latent"] = int(rows.index[picked])
            st.rerun()
        downloads.csv_button("CSV", rows, "latents.csv", key="csv seen")
    if read.n_patches > 1:
        maps(store, read, rows)


def controls(store: Pack, read: PictureReading) -> tuple[str, bool, int]:
    """(order, whether dense latents are included, the row that the ranking is of, or EVERYWHERE or IN_PICTURE)."""
    with st.container(horizontal=True, vertical_alignment="bottom"):
        by = st.segmented_control(
            "Ranked by",
            list(ORDERS),
            default="surprise",
            required=True,
            key="by",
            bind="query-params",
            help="Surprise: how rarely it fires this strongly. Value: activation. Share: of its maximum in this pack.",
        )
        dense = session.include_dense(store, at_first=True)
        with_words = len(read.view.pieces) > read.n_patches
        ranges = {IN_PICTURE: "the picture", EVERYWHERE: "picture and text"} if with_words else {IN_PICTURE: "everywhere"}
        places = [*ranges, *(i for i, counts in enumerate(read.view.counted.tolist()) if counts)]
        place = IN_PICTURE
        if len(places) > 2:
            place = st.selectbox(
                "Where",
                places,
                format_func=lambda i: ranges.get(i) or latent_tables.piece(read.view.pieces[i]),
                key=f"seen at {read.key}",
                width=190,
                help="Rows and columns of patches count from 0, from the top left.",
            )
    return by, dense, place


def latent_shown(store: Pack, rows: pd.DataFrame) -> int | None:
    """The latent whose map is drawn: the one picked last if it is listed, on arrival the one of the address, else the first."""
    listed, given = [int(i) for i in rows.index], st.query_params.get("f", "")
    if given.isdecimal() and int(given) < store.d_sae and st.session_state.get("seen came") != given:
        st.session_state["seen came"], st.session_state["seen latent"] = given, int(given)
    picked = st.session_state.get("seen latent")
    return picked if picked in listed or str(picked) == given else next(iter(listed), None)


def latent_card(read: PictureReading, latent: int, name: str) -> dict[str, Any]:
    """The picture with the map of a latent, as strong as in the pack."""
    heat, n = read.heat(latent), read.n_patches
    largest = float(read.view.pack.index.column("max")[latent])
    drawn = overlay(read.picture, read.boxes, heat, max(largest, 1e-12)) if n > 1 else read.picture
    return card(
        drawn,
        small(read.picture),
        heat,
        read.grid,
        read.picture.size,
        alt=f"{name}, #{latent}: {where_in_words(heat, read.grid[1])}",
        value=number(float(heat.max(initial=0.0))) if heat.any() else "silent",
        notes=[f"#{latent}", read.view.pack.table["label"].iat[latent]],
        peak=int(heat.argmax()) if heat.any() else None,
    )


def plain_card(read: PictureReading, name: str) -> dict[str, Any]:
    picture = small(read.picture)
    return card(picture, picture, [0.0] * read.n_patches, read.grid, read.picture.size, alt=f"{name}: no latent fires")


def small(picture: Any, side: int = 448) -> Any:
    """A copy of at most so many pixels a side, as maps are drawn."""
    copy = picture.copy()
    copy.thumbnail((side, side))
    return copy


def words(read: PictureReading, latent: int) -> None:
    """The question and the answer, coloured by the latent."""
    n, largest = read.n_patches, float(read.view.pack.index.column("max")[latent])
    strips([row(read.view.pieces[n:], read.view.values(latent)[n:], largest, value=f"#{latent}")], key="seen words")


def maps(store: Pack, read: PictureReading, rows: pd.DataFrame) -> None:
    """The maps of the first latents of the ranking."""
    shown = [int(i) for i in rows.index[:MAPS]]
    heading("Maps", python(store), "py maps", meaning="The colour is strongest at the latent's maximum in the pack.")
    picked = pictures(
        [latent_card(read, i, f"map {n}") for n, i in enumerate(shown, 1)], key="seen maps", action="Open latent", wide=118
    )
    if picked is not None:
        session.go("feature", f=shown[picked])


def links(store: Pack, latent: int) -> None:
    """Links to the other pages of a latent."""
    with st.container(horizontal=True):
        session.link("feature", f"Open \\#{latent}", icon=":material/open_in_new:", f=latent)
        if pack_facts.steers(store):
            session.link("steer", f"Steer \\#{latent}", icon=":material/explore:", f=latent)


def footer(store: Pack, chosen: ChosenPicture, question: str) -> None:
    """The link to this page, of a picture of the pack."""
    if chosen.context is None:
        st.caption("A picture of yours has no link: it is nowhere but in this session.")
        return
    session.link_popover("prompt", context=chosen.context, **({"ask": question} if question else {}))


def python(store: Pack) -> str:
    """Python lines that read a picture with the pack's model."""
    asked = ", 'caption en'" if picture_reading.asks(store) else ""
    return opening(str(store.folder)) + f"view = pack.read_picture('picture.png', model, sae{asked})\n"

"""The panels for one text, read with one SAE or with several of the same model: its latents, next tokens and heat map."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import streamlit as st
from scope.app.kit import latent_tables, messages
from scope.app.kit.code import heading, opening, openings
from scope.app.kit.heat import heat, heat_row
from scope.app.kit.plain import number, plain
from scope.app.kit.tokens import row, strips
from scope.app.prompt import panels, remembered
from scope.app.serve import downloads, models, packs, session

from scope.errors import PackError, ScopeError
from scope.features.face import Pack
from scope.features.reading.several_saes import matrix_together, overview, ranked_together
from scope.features.reading.view import ORDERS

MOST = 3
"""Most further SAEs on one text."""
MOST_REMEMBERED = 6
"""Most latents that the heat map of a recurrent state offers, beside the one that colours the text."""
COLOURS = ("latent", "unexplained")


def draw(store: Pack, view: Any, text: str) -> dict[str, Any]:
    """Draw all panels of one text; returns the settings to save with the reading."""
    with st.expander("Options: order, dense latents, other SAEs", icon=":material/tune:", key="options"):
        views = {session.current(): view, **read_with_others(store, view, text)}
        settings, dense, least = controls(store, several=len(views) > 1)
    settings["also"] = [slug for slug in views if slug != session.current()]
    place, by = token_chosen(view), settings["by"]
    if len(views) > 1:
        lines = together(views) + f"from scope.features.reading.several_saes import overview\noverview(views, {place})\n"
        heading("SAEs", lines, "py dictionaries", meaning="Latents and FVU of each on this text, or on the chosen token.")
        panels.dictionaries_table(overview(views, place), key=f"dictionaries {hash(text)} {place}")
    try:
        rows, towards = ranking(store, views, place, by, dense=dense, least=least)
    except PackError as refusal:
        messages.show_refusal(refusal)
        return settings
    shown = latent_shown(rows)
    strip(views, place, shown, towards)
    strips_of_latents(views, by if by in ORDERS else "surprise", dense, place)
    left, right = st.columns([3, 2], gap="medium")
    with left:
        latents(views, rows, place, by, shown, key=f"ranked {hash(text)} {place} {by} {dense} {least} {len(views)}")
    with right:
        call = f"from scope.features.reading.direct_effects import next_tokens\nnext_tokens(view, model, {place})"
        meaning = "Likeliest tokens after the chosen one, or after the last."
        heading("Next token", python(store) + call, "py next", meaning=meaning)
        panels.next_tokens_table(panels.next_tokens_after(store, view, place), key=f"following {hash(text)} {place}")
        if shown is not None:
            slug, latent = shown
            of = views[slug].pack
            st.caption(plain(f"{named(shown, views)} {of[latent].label}"))
            latent_links(slug, latent)
            panels.ablation(of, text, latent)
    panels.attribution(store, text)
    mine = [latent for slug, latent in ([shown] if shown else []) if slug == session.current()]
    mine += rows.loc[rows["dictionary"] == session.current(), "latent"].astype(int).tolist()[:MOST_REMEMBERED]
    remembered.draw(store, view, text, list(dict.fromkeys(mine)))
    return settings


def read_with_others(store: Pack, view: Any, text: str) -> dict[str, Any]:
    """The text read with the other chosen packs of the same model. A refusal is shown, and the other packs are still read."""
    others = [slug for slug in packs.registry() if slug != session.current() and same_model(store, slug)]
    if not others:
        return {}
    meaning = "Packs of the same model: the text is read with each, and their latents are ranked together."
    chosen = st.multiselect(
        "Also with", others, key="also", bind="query-params", max_selections=MOST, help=meaning, placeholder="Other SAEs"
    )
    found = {}
    for slug in chosen:
        try:
            read = models.reading(session.pack(slug), text)
            if read.ids != view.ids:
                raise PackError(f"{slug} splits the text into other tokens than {session.current()}; it is left out.")
            found[slug] = read
        except ScopeError as refusal:
            messages.show_refusal(refusal)
    return found


def same_model(store: Pack, slug: str) -> bool:
    """Whether another pack can be opened and was made with the same weights."""
    try:
        return packs.same_model(store, session.pack(slug))
    except ScopeError:
        return False


def controls(store: Pack, several: bool) -> tuple[dict[str, Any], bool, float]:
    """(settings to save with a reading, whether dense latents are included, the least quantile)."""
    with st.container(horizontal=True, vertical_alignment="bottom"):
        by = st.segmented_control(
            "Ranked by",
            [*ORDERS, "direct effect"],
            default="surprise",
            required=True,
            key="by",
            bind="query-params",
            help="Surprise: how rarely it fires this strongly. Value: activation. Share: of its maximum in this pack. "
            "Direct effect: its contribution to the logit of the likeliest next token.",
        )
        dense = session.include_dense(store, at_first=False)
        least = st.slider(
            "Stronger than this share of its firings", 0.0, 0.99, 0.0, 0.01, key="least", bind="query-params", width=260
        )
    if several and by == "value":
        st.caption("Each SAE has its own unit of activation; surprise and share can be compared across SAEs.")
    return {"by": by, "dense": dense}, dense, least


def token_chosen(view: Any) -> int | None:
    """The token that was clicked, or, on arrival, the one in the address: a number, or "last"."""
    in_address, last = st.query_params.get("at"), len(view.pieces) - 1
    if in_address is not None and st.session_state.get("came at") != (in_address, view.ids):
        st.session_state["came at"] = (in_address, view.ids)
        exists = in_address == "last" or (in_address.isdecimal() and int(in_address) <= last)
        st.session_state["at"] = (last if in_address == "last" else int(in_address)) if exists else None
        if not exists:
            st.warning(plain(f"There is no token {in_address}: this text has tokens 0 to {last}. All are shown."))
    place = st.session_state.get("at")
    return place if place is not None and place <= last else None


def ranking(
    store: Pack, views: Mapping[str, Any], place: int | None, by: str, *, dense: bool, least: float
) -> tuple[pd.DataFrame, str]:
    """(the top latents of all SAEs, a note about the token whose logit they change if that is the order)."""
    if by != "direct effect":
        return ranked_together(views, place, by, dense=dense, least=least), ""
    at = len(next(iter(views.values())).pieces) - 1 if place is None else place
    token, rows = panels.by_direct_effect(views, at, 20, dense=dense, least=least)
    return rows, f" Effects on {latent_tables.piece(store.vocab[token])!r}, the likeliest token after token {at}."


def latent_shown(rows: pd.DataFrame) -> tuple[str, int] | None:
    """(slug, latent) that colours the text: the last one picked if it is still in the list, else the first."""
    listed = list(zip(rows["dictionary"], rows["latent"].astype(int), strict=True)) if len(rows) else []
    picked = st.session_state.get("shown latent")
    return picked if picked in listed else next(iter(listed), None)


def named(latent: tuple[str, int], views: Mapping[str, Any]) -> str:
    return f"{latent[0]} #{latent[1]}" if len(views) > 1 else f"#{latent[1]}"


def strip(views: Mapping[str, Any], place: int | None, shown: tuple[str, int] | None, towards: str) -> None:
    """The text, coloured by a latent, or a strip per SAE coloured by what it leaves unexplained of each token."""
    view, store = next(iter(views.values())), next(iter(views.values())).pack
    heading("The text", python(store) + "view.pieces, view.latents, view.fvu_at", "py text", meaning="Click a token.")
    colour = st.session_state.get("colour") or st.query_params.get("colour", COLOURS[0])
    drawn = []
    if colour == "unexplained":
        for slug, each in views.items():
            notes = [slug] if len(views) > 1 else []
            error = np.nan_to_num(np.minimum(each.fvu_at, 1.0))
            drawn.append(row(each.pieces, error, 1.0, place, value=f"FVU {number(each.fvu, '.0%')}", notes=notes))
    elif shown is None:
        drawn.append(row(view.pieces, np.zeros(len(view.pieces)), 1.0, place))
    else:
        of = views[shown[0]]
        largest = float(of.pack.index.column("max")[shown[1]])
        drawn.append(row(of.pieces, of.values(shown[1]), largest, place, value=named(shown, views)))
    clicked = strips(drawn, key="prompt text", pick=True)
    if clicked is not None and clicked[1] != place:
        st.session_state["at"] = clicked[1]
        st.rerun()
    with st.container(horizontal=True, vertical_alignment="center"):
        where = "all tokens" if place is None else f"token {place}, {plain(latent_tables.piece(view.pieces[place]))}"
        parts = [f"Latents on **{where}**"]
        if colour == "unexplained":
            parts.append("colour: squared error over the text's mean squared distance from its mean, darkest at 1")
        elif shown is not None:
            parts.append(f"colour: {plain(named(shown, views))}")
        if len(views) == 1:
            error = view.fvu if place is None else view.fvu_at[place]
            parts.append(f"unexplained there (FVU): {number(float(error), '.0%')}")
        st.caption("; ".join(parts) + "." + plain(towards), width="content")
        st.segmented_control(
            "Colour", COLOURS, default="latent", required=True, key="colour", bind="query-params", label_visibility="collapsed"
        )
        if place is not None and st.button("All tokens", type="tertiary"):
            st.session_state["at"] = None
            st.rerun()


def latents(
    views: Mapping[str, Any], rows: pd.DataFrame, place: int | None, by: str, shown: tuple[str, int] | None, key: str
) -> None:
    """Table of the ranked latents: one can be picked to colour the text; buttons for CSV and steering."""
    if rows.empty:
        st.info("No latent fires here under these filters.")
        return
    store = next(iter(views.values())).pack
    call = f"from scope.features.reading.view import ranked\nranked(view, {place}, {by!r})"
    if len(views) > 1:
        call = f"from scope.features.reading.several_saes import ranked_together\nranked_together(views, {place}, {by!r})"
    if by == "direct effect":
        call = f"from scope.features.reading.direct_effects import direct_effects\ndirect_effects(view, model, sae, {place})"
    heading("Latents", (together(views) if len(views) > 1 else python(store)) + call, "py ranked")
    every = ("direct", "value", "share", "surprise") if by == "direct effect" else (by, *_OTHERS[by])
    columns = every if st.session_state.get("all columns") else tuple(dict.fromkeys((every[0], "value")))
    picked = latent_tables.table(rows if len(views) > 1 else rows.drop(columns="dictionary"), columns, key=key)
    if picked is not None:
        chosen = (str(rows["dictionary"].iat[picked]), int(rows["latent"].iat[picked]))
        st.session_state["shown latent"] = chosen
        if chosen != shown:
            st.rerun()
    with st.container(horizontal=True):
        st.toggle("All columns", key="all columns")
        downloads.csv_button("CSV", rows.set_index("latent"), "latents.csv", key="csv latents")
        mine = rows.loc[rows["dictionary"] == session.current(), "latent"].astype(int).tolist()
        if mine and st.button("Steer the top three", icon=":material/explore:", type="tertiary"):
            session.steer_these(mine[:3])


_OTHERS = {by: tuple(name for name in ("value", "share", "quantile", "surprise") if name != by) for by in ORDERS}


def strips_of_latents(views: Mapping[str, Any], by: str, dense: bool, place: int | None) -> None:
    """The foremost latents as heat strips over the tokens, one a row; a name opens its latent."""
    view = next(iter(views.values()))
    lines = python(view.pack) + "from scope.features.reading.view import matrix\nmatrix(view)"
    if len(views) > 1:
        lines = together(views) + "from scope.features.reading.several_saes import matrix_together\nmatrix_together(views)"
    heading("Latents by tokens", lines, "py matrix", meaning="Colour: share of each latent's maximum in this pack.")
    top, shares = matrix_together(views, 20, by, dense=dense)
    rows = [
        heat_row(named(one, views), views[one[0]].pack.table["label"].iat[one[1]], views[one[0]].values(one[1]), share)
        for one, share in zip(top, shares, strict=True)
    ]
    picked = heat(rows, view.pieces, key="matrix", chosen=place)
    if picked is not None:
        slug, latent = top[picked]
        session.go("feature", pack=slug, f=latent)


def latent_links(slug: str, latent: int) -> None:
    """Links to a latent of this or another pack."""
    with st.container(horizontal=True):
        session.link("feature", f"Open \\#{latent}", icon=":material/open_in_new:", pack=slug, f=latent)
        session.link("steer", f"Steer \\#{latent}", icon=":material/explore:", pack=slug, f=latent)


def python(store: Pack) -> str:
    """Python lines that read the text with one pack."""
    return opening(str(store.folder)) + "view = pack.read('a text', model, sae)\n"


def together(views: Mapping[str, Any]) -> str:
    """Python lines that read the text with several packs."""
    lines = openings({slug: view.pack.folder for slug, view in views.items()})
    return lines + "views = {name: pack.read('a text', model, saes[name]) for name, pack in packs.items()}\n"

"""All latents in a table: found by words, tokens or numbers, narrowed, sorted, opened, compared, listed, exported."""

import shlex

import numpy as np
import pandas as pd
import streamlit as st
from scope.app.features import atlas, compare, listing
from scope.app.features.listing import (
    COLUMNS,
    DENSE,
    FILTERS,
    LEAST,
    LIST,
    MODES,
    ONLY,
    SORTS,
    WIDE,
    found,
    narrowed,
    shown,
    survivors,
)
from scope.app.kit import figures, messages
from scope.app.kit.code import copy_as_python, opening
from scope.app.kit.plain import plain
from scope.app.serve import downloads, models, packs, session

from scope.errors import PackError, ScopeError
from scope.escape import visible_token

ROWS = 100
LEASTS = tuple(f"least {column}" for column in LEAST.values())
CONTROLS = ("q", "in", "sort", "rising", "hide", "only", "d", "share", "view", "live", *LEASTS)
AXES = (("Across", "x", "density"), ("Up", "y", "max"))

store = session.pack()
table = store.table

if not any(key in st.query_params for key in CONTROLS):
    for key, value in st.session_state.get("asked", {}).items():  # coming back finds the list as it was left
        st.session_state.setdefault(key, value)

with st.container(horizontal=True, vertical_alignment="bottom"):
    words = st.text_input("Search", key="q", bind="query-params", placeholder="dogs", icon=":material/search:") or ""
    mode = st.selectbox("in", MODES, key="in", bind="query-params", width=150)
    sort = st.selectbox("Sort by", list(SORTS), key="sort", bind="query-params", width=180)
    rising = st.toggle("Rising", key="rising", bind="query-params")
    dense = session.dense_too(store, at_first=True)
with st.container(horizontal=True, vertical_alignment="bottom"):
    flags = "What the flags mean stands in the pack's table: scope.features.pack.table"
    hidden = st.multiselect("Hide", list(FILTERS), default=["dead"], key="hide", bind="query-params", help=flags)
    lists = [LIST + name for name in store.notes.lists()]
    only = st.multiselect(
        "Only", [*ONLY, *lists], key="only", bind="query-params", placeholder="All", format_func=visible_token
    )
    span = st.slider("Density, powers of ten", -7.0, 0.0, (-7.0, 0.0), 0.25, key="d", bind="query-params", width=240)
    with st.popover("More", icon=":material/filter_alt:"):
        share = st.slider("Top token's share at most", 0.0, 1.0, 1.0, 0.05, key="share", bind="query-params")
        least = {
            column: st.number_input(f"{name} at least", value=None, key=f"least {column}", bind="query-params")
            for name, column in LEAST.items()
        }
by_weights = False
if mode == "promotes":
    told = "Ranks all latents by the model's own weights, not only those that have the token among their ten. Loads the model."
    by_weights = st.toggle("All latents, by the live weights", key="live", bind="query-params", help=told)

try:
    if by_weights and words.strip():
        with models.live(store) as (model, sae):
            from scope.features.reading.unembedding import promotes_by_weights  # needs torch, which browsing does not

            beside = promotes_by_weights(store, words, model, sae)
        hits = beside.index.to_numpy()
    else:
        hits, beside = found(store, words, mode)
except PackError as refusal:
    st.info(plain(refusal))
    hits, beside = np.empty(0, int), pd.DataFrame()
except ScopeError as refusal:
    messages.refuse(refusal)
    hits, beside = np.empty(0, int), pd.DataFrame()
masks = survivors(store.index, hidden, span, share, least, listing.only_these(store, only) if only else None)
if not dense:
    masks[DENSE] = ~store.index.flagged(("dense",))
latents = shown(store.index, hits, narrowed(masks, store.d_sae), SORTS[sort], rising)


def open_latent(latent: int) -> None:
    session.keep_results(latents.tolist())
    session.go("feature", f=latent)


with st.container(horizontal=True, vertical_alignment="center", gap="xsmall"):
    st.markdown(f"**{len(latents):,}** of {store.d_sae:,} latents", width="content")
    look = st.segmented_control(
        "View",
        ["Table", "Scatter", "Map", "Compare"],
        default="Table",
        required=True,
        label_visibility="collapsed",
        key="view",
        bind="query-params",
    )
    told = "One of these, each equally likely."
    if st.button("Random", icon=":material/casino:", disabled=not len(latents), help=told, shortcut="a"):
        open_latent(int(np.random.default_rng().choice(latents)))
    if len(latents):
        downloads.offered(store, latents)
    calls = {"anything": "find", "fires on": "fires_on", "promotes": "promotes"}
    asked = f"pack.{calls[mode]}({words!r})" if words.strip() and mode in calls else "pack.table"
    if look == "Map":
        asked = "pack.map  # [d_sae 2]; what it is worth: pack.manifest['map']"
    if look == "Compare" and st.query_params.get("ids", "").strip():
        asked = f"[pack[int(i)] for i in {st.query_params['ids']!r}.split(',')]  # in a notebook, their cards"
    copy_as_python(opening(str(store.folder)) + asked, key="py table")
    with st.popover("Link", icon=":material/link:", type="tertiary"):
        st.code(
            session.address("features", **{k: v for k, v in st.query_params.to_dict().items() if k != "pack"}), language=None
        )
messages.refused()
if words.strip() and not dense and len(latents):
    beyond = int(narrowed(masks, store.d_sae, without=DENSE)[hits].sum()) - len(latents)
    if beyond:
        st.caption(f"{beyond:,} more that fire very often are found too: “{DENSE}” shows them.")

st.session_state["asked"] = {key: st.session_state[key] for key in CONTROLS if key in st.session_state}

if not len(latents) and len(hits):
    without = {name: int(narrowed(masks, store.d_sae, without=name)[hits].sum()) for name in masks}
    name, back = max(without.items(), key=lambda item: item[1])
    if back:
        st.info(f"The filters leave nothing of {len(hits):,} found. Without “{name}” {back:,} would be shown.")
        st.button(f"Drop “{name}”", on_click=lambda: st.session_state.update(WIDE[name]))
    else:
        st.info(f"The filters leave nothing of {len(hits):,} found, and it takes more than one of them to do so.")
        wide = {key: value for name in masks for key, value in WIDE[name].items()}
        st.button("Drop all filters", on_click=lambda: st.session_state.update(wide))
elif not len(latents) and words.strip():
    st.info("Nothing found. A word may be split into several tokens; try a part of it. “Anything” is the widest search.")


def actions(chosen: list[int]) -> None:
    """What can be done with the rows that are ticked."""
    with st.container(horizontal=True, vertical_alignment="center"):
        st.markdown(f"**{len(chosen)}** ticked", width="content")
        if st.button("Steer these", icon=":material/explore:"):
            session.steer_these(chosen)
        few = len(chosen) <= compare.MOST
        told = None if few else f"At most {compare.MOST} stand side by side."

        def beside_one_another() -> None:  # going to the page on which one is would drop what its controls hold
            st.query_params["ids"] = ",".join(map(str, chosen))
            st.session_state["view"] = "Compare"

        st.button("Compare these", icon=":material/compare_arrows:", disabled=not few, help=told, on_click=beside_one_another)
        with st.popover("Add to list", icon=":material/playlist_add:"):
            st.text_input("Name of the list", key="list name", placeholder="to look at again")

            def add() -> None:
                messages.written(lambda: store.notes.add_to_list(st.session_state["list name"], chosen))

            st.button("Add", on_click=add, type="primary")


def on_map() -> None:
    """Where the latents of the list lie among all."""
    places = store.map
    if places is None:
        st.info("No map lies in this pack: it was made before there were maps, or without one. This makes it, in place:")
        st.code(f"scope map {shlex.quote(str(store.folder))}", language=None)
        return
    behind = packs.once(store, "map behind", lambda: atlas.background(store, places))
    n, figure = packs.lately(store, "map", latents, lambda: atlas.drawn(store, places, behind, latents))
    told = f"{n:,} of {len(latents):,} latents" + (f" among {len(behind):,} living ones, grey" if n < len(behind) else "")
    picked = st.plotly_chart(
        figure, config={"scrollZoom": True}, key="map", on_select="rerun", selection_mode="points", alt=f"{told}, on a map"
    )
    st.caption(f"{told}. Click a point to open it; the wheel zooms.")
    st.caption(atlas.worth(store.manifest.get("map", {})))
    opened = next((point["customdata"] for point in picked.selection.points if "customdata" in point), None)
    if opened is not None:
        open_latent(int(opened))


if look == "Compare":
    try:
        given = st.query_params.get("ids", "").strip()
        ids = listing.numbers(store, given).tolist()[: compare.MOST] if given else []
    except PackError as refusal:
        st.info(plain(refusal))
        ids = []
    if not ids:
        st.caption("Tick up to four rows of the table and press “Compare these”.")
    else:
        compare.figures(store, ids)
        with st.container(horizontal=True, vertical_alignment="center"):
            st.caption(plain(compare.shared(store, ids)), width="content")
            if st.button("Steer these", icon=":material/explore:"):
                session.steer_these(ids)
        chosen = compare.side_by_side(store, ids)
        if chosen is not None:
            session.keep_results(ids)
            session.go("feature", f=chosen)
elif len(latents) and look == "Table":
    pages = -(-len(latents) // ROWS)
    page = st.pagination(pages, key="page") if pages > 1 else 1
    here = latents[(page - 1) * ROWS : page * ROWS]
    rows = COLUMNS.rows(store, here, beside, set(store.notes.starred()))
    above = st.container()
    picked = st.dataframe(
        rows,
        hide_index=True,
        column_config=COLUMNS.config(rows),
        on_select="rerun",
        selection_mode=["multi-row", "single-cell"],
        key=f"table {session.current()} {page} {len(latents)}",
        height=min(36 * len(rows) + 40, 720),
        alt=f"{len(rows)} latents; a click on a cell opens one, boxes at the left choose several",
    ).selection
    if picked.cells:
        open_latent(int(here[picked.cells[0][0]]))
    with above:
        if picked.rows:
            actions([int(here[n]) for n in picked.rows])
        else:
            st.caption("Click a cell to open a latent; tick rows to steer, compare or list several.")
elif len(latents) and look == "Map":
    with messages.guarded():
        on_map()
elif len(latents):
    axes = [name for name, column in SORTS.items() if column]
    with st.container(horizontal=True):
        names = [st.selectbox(name, axes, index=axes.index(first), key=key, bind="query-params") for name, key, first in AXES]
    x, y = (SORTS[name] for name in names)
    drawn, figure = packs.lately(
        store, f"{x} {y}", latents, lambda: figures.chosen(store.index, table["label"], latents, (x, y), names)
    )
    picked = st.plotly_chart(figure, key="points", on_select="rerun", selection_mode="points", alt=f"{drawn:,} latents")
    st.caption(f"{drawn:,} of {len(latents):,} latents. Click a point to open it.")
    if picked.selection.points:
        open_latent(int(picked.selection.points[0]["customdata"]))

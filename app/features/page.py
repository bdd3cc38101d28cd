"""The Features page: search, filter and sort all latents; as a table, scatter plot, map or side by side; export."""

import shlex

import numpy as np
import pandas as pd
import streamlit as st
from scope.app.features import listing, views
from scope.app.kit import figures, messages
from scope.app.kit.code import copy_as_python, opening
from scope.app.kit.plain import plain
from scope.app.serve import downloads, models, pack_facts, packs, session

from scope.errors import PackError, ScopeError
from scope.escape import visible_token
from scope.features.pack.manifest import MapFidelity

ROWS = 100
LEASTS = tuple(f"least {column}" for column in listing.LEAST.values())
CONTROLS = ("q", "in", "sort", "rising", "hide", "only", "d", "share", "view", "live", "wide", "page", *LEASTS)
FREQUENCY = "Share of tokens on which a latent fires: 10^-2 is 1 %, 10^-4 is 0.01 %."
AXES = (("Horizontal axis", "x", "firing frequency"), ("Vertical axis", "y", "max"))

store = session.pack()
table = store.table

if not any(key in st.query_params for key in CONTROLS):
    for key, value in st.session_state.get("list controls", {}).items():  # restores the list of the last visit
        st.session_state.setdefault(key, value)

if st.query_params.get("sort") == "density":  # as addresses of earlier versions say
    st.query_params["sort"] = "firing frequency"
st.title("Features", anchor=False)
with st.container(horizontal=True, vertical_alignment="bottom"):
    words = st.text_input("Search", key="q", bind="query-params", placeholder="dogs", icon=":material/search:") or ""
    mode = st.selectbox("in", listing.MODES, key="in", bind="query-params", width=150)
    sort = st.selectbox("Sort by", list(listing.SORTS), key="sort", bind="query-params", width=180)
    ascending = st.toggle("Ascending", key="rising", bind="query-params")
with st.expander("Filters", icon=":material/filter_alt:"):
    dense = session.include_dense(store, at_first=True)
    with st.container(horizontal=True):
        flags = "The Health page says what each flag means, and how many latents carry it."
        hidden = st.multiselect("Hide", list(listing.FILTERS), default=["dead"], key="hide", bind="query-params", help=flags)
        lists = [listing.LIST + name for name in store.notes.lists()]
        only = st.multiselect(
            "Only", [*listing.ONLY, *lists], key="only", bind="query-params", placeholder="All", format_func=visible_token
        )
    with st.container(horizontal=True):
        span = st.slider(
            "Firing frequency", -7.0, 0.0, listing.ALL, 0.25, "10^%g", key="d", bind="query-params", help=FREQUENCY
        )
        share = st.slider("Top token's share at most", 0.0, 1.0, 1.0, 0.05, key="share", bind="query-params")
    st.caption(f"Firing on {listing.frequencies(span)} of {pack_facts.rows_noun(store)}")
    with st.container(horizontal=True):
        least = {
            column: st.number_input(f"{name} at least", value=None, key=f"least {column}", bind="query-params")
            for name, column in listing.LEAST.items()
        }
by_weights = False
if mode == "promotes":
    meaning = "Ranks all latents by the model's weights, not only those with the token among their top ten. Loads the model."
    by_weights = st.toggle("Rank all latents by weights", key="live", bind="query-params", help=meaning)

try:
    if by_weights and words.strip():
        with models.in_turn(store) as (model, sae):
            from scope.features.reading.direct_effects import promotes_by_weights  # needs torch, which browsing does not

            extra = promotes_by_weights(store, words, model, sae)
        hits = extra.index.to_numpy()
    else:
        hits, extra = listing.search(store, words, mode)
except PackError as refusal:
    st.info(plain(refusal))
    hits, extra = np.empty(0, int), pd.DataFrame()
except ScopeError as refusal:
    messages.show_refusal(refusal)
    hits, extra = np.empty(0, int), pd.DataFrame()
masks = listing.filter_masks(store.index, hidden, span, share, least, listing.restricted(store, only) if only else None)
if not dense:
    masks[session.DENSE] = ~store.index.flagged(("dense",))
latents = listing.ordered(store.index, hits, listing.combined(masks, store.d_sae), listing.SORTS[sort], ascending)


def open_latent(latent: int) -> None:
    session.keep_results(latents.tolist())
    session.go("feature", f=latent)


with st.container(horizontal=True, vertical_alignment="center", gap="xsmall"):
    acting = plain(listing.acting_filters([*hidden, *([] if dense else ["dense"])], only, span, share, least))
    st.markdown(f"**{len(latents):,}** of {store.d_sae:,} latents{acting and ': '}{acting}", width="content")
    look = st.segmented_control(
        "View",
        ["Table", "Scatter", "Map", "Compare"],
        default="Table",
        required=True,
        label_visibility="collapsed",
        key="view",
        bind="query-params",
    )
    meaning = "A random latent of this list."
    if st.button("Random", icon=":material/casino:", disabled=not len(latents), help=meaning, shortcut="a"):
        open_latent(int(np.random.default_rng().choice(latents)))
    if len(latents):
        downloads.export_menu(store, latents)
    calls = {"anything": "find", "fires on": "fires_on", "promotes": "promotes"}
    code = f"pack.{calls[mode]}({words!r})" if words.strip() and mode in calls else "pack.table"
    if look == "Map":
        code = "pack.map  # [d_sae 2]; how faithful it is: pack.manifest.map"
    if look == "Compare" and st.query_params.get("ids", "").strip():
        code = f"[pack[int(i)] for i in {st.query_params['ids']!r}.split(',')]  # in a notebook, their cards"
    copy_as_python(opening(str(store.folder)) + code, key="py table")
    session.link_popover("features", **{k: v for k, v in st.query_params.to_dict().items() if k != "pack"})
messages.show_write_error()
if words.strip() and not dense and len(latents):
    hidden_dense = int(listing.combined(masks, store.d_sae, without=session.DENSE)[hits].sum()) - len(latents)
    if hidden_dense:
        st.caption(f"{hidden_dense:,} dense latents match too: “{session.DENSE}” shows them.")

chosen_by = {key: st.session_state[key] for key in CONTROLS if key in st.session_state}
another_list = listing.another(st.session_state.get("list controls", chosen_by), chosen_by) and not session.went_back()
if another_list and (st.session_state.get("page") or 1) > 1:
    st.session_state["page"] = 1  # the old number would lead into the middle of the new list
st.session_state["list controls"] = chosen_by

if not len(latents) and len(hits):
    without = {name: int(listing.combined(masks, store.d_sae, without=name)[hits].sum()) for name in masks}
    name, back = max(without.items(), key=lambda item: item[1])
    if back:
        st.info(f"The filters hide all {len(hits):,} matches. Without “{name}”, {back:,} would be shown.")
        st.button(f"Drop “{name}”", on_click=lambda: st.session_state.update(listing.WIDE[name]))
    else:
        st.info(f"The filters together hide all {len(hits):,} matches; dropping one of them is not enough.")
        wide = {key: value for name in masks for key, value in listing.WIDE[name].items()}
        st.button("Drop all filters", on_click=lambda: st.session_state.update(wide))
elif not len(latents) and words.strip():
    st.info("No latent matches. A word may be split into several tokens: try a part of it. “anything” is the widest search.")


def actions(chosen: list[int]) -> None:
    """Buttons for the ticked rows."""
    with st.container(horizontal=True, vertical_alignment="center"):
        st.markdown(f"**{len(chosen)}** ticked", width="content")
        if pack_facts.steers(store) and st.button("Steer these", icon=":material/explore:"):
            session.steer_these(chosen)
        few = len(chosen) <= views.MOST_COMPARED
        limit = None if few else f"At most {views.MOST_COMPARED} latents can be compared."

        def compare() -> None:  # switching to the current page would lose the values of its controls
            st.query_params["ids"] = ",".join(map(str, chosen))
            st.session_state["view"] = "Compare"

        st.button("Compare these", icon=":material/compare_arrows:", disabled=not few, help=limit, on_click=compare)
        with st.popover("Add to list", icon=":material/playlist_add:"):
            st.text_input("Name of the list", key="list name", placeholder="to look at again")

            def add() -> None:
                messages.try_to_write(lambda: store.notes.add_to_list(st.session_state["list name"], chosen))

            st.button("Add", on_click=add, type="primary")


def draw_map() -> None:
    """The latents of the list on the map of all latents."""
    places = store.map
    if places is None:
        st.info("This pack holds no map. This command adds one:")
        st.code(f"scope map {shlex.quote(str(store.folder))}", language=None, wrap_lines=True)
        return
    background = packs.once(store, "map behind", lambda: views.map_background(store, places))
    n, figure = packs.cached_recently(store, "map", latents, lambda: views.map_figure(store, places, background, latents))
    drawn = f"{n:,} of {len(latents):,} latents"
    drawn += f" among {len(background):,} living latents, grey" if n < len(background) else ""
    picked = st.plotly_chart(
        figure, config={"scrollZoom": True}, key="map", on_select="rerun", selection_mode="points", alt=f"{drawn}, on a map"
    )
    st.caption(f"{drawn}. Click a point to open it; the wheel zooms.")
    st.caption(views.map_fidelity(store.manifest.map or MapFidelity()))
    opened = next((point["customdata"] for point in picked.selection.points if "customdata" in point), None)
    if opened is not None:
        open_latent(int(opened))


if look == "Compare":
    try:
        text = st.query_params.get("ids", "").strip()
        ids = listing.numbers(store, text).tolist()[: views.MOST_COMPARED] if text else []
    except PackError as refusal:
        st.info(plain(refusal))
        ids = []
    if not ids:
        st.caption("Tick up to four rows of the table and press “Compare these”.")
    else:
        views.comparison_table(store, ids)
        with st.container(horizontal=True, vertical_alignment="center"):
            st.caption(plain(views.in_common(store, ids)), width="content")
            if pack_facts.steers(store) and st.button("Steer these", icon=":material/explore:"):
                session.steer_these(ids)
        chosen = views.side_by_side(store, ids)
        if chosen is not None:
            session.keep_results(ids)
            session.go("feature", f=chosen)
elif len(latents) and look == "Table":
    pages = -(-len(latents) // ROWS)
    page = st.pagination(pages, key="page", bind="query-params") if pages > 1 else 1
    if pages == 1:
        st.query_params.pop("page", None)
    on_page = latents[(page - 1) * ROWS : page * ROWS]
    rows = listing.table_rows(store, on_page, extra, set(store.notes.starred()))
    above = st.container(horizontal=True, vertical_alignment="center")
    wide = above.toggle("More columns", key="wide", bind="query-params")
    shown = [name for name in rows if wide or name not in listing.ON_DEMAND]
    row_height = 35 if store.pictures is None else listing.PREVIEW
    drawn = st.session_state.setdefault("table drawn", 0)
    table_key = f"table {session.current()} {page} {len(latents)} {drawn}"

    def selected() -> None:
        """A click on a header; with columns to select, the browser does not sort the rows of one page by itself."""
        columns = st.session_state[table_key].selection.columns
        if columns:
            listing.click_header(columns[0], st.session_state)
            st.session_state["table drawn"] = drawn + 1

    if (unsorted := st.session_state.pop("unsorted", None)) is not None:
        st.info(f"The list cannot be sorted by {plain(unsorted)}. It can be by: {', '.join(list(listing.SORTS)[1:])}.")
    picked = st.dataframe(
        rows,
        hide_index=True,
        column_config=listing.column_config(rows),
        on_select=selected,
        selection_mode=["multi-row", "single-cell", "single-column"],
        key=table_key,
        row_height=row_height,
        height=row_height * min(len(rows), 680 // row_height) + 38,  # whole rows, below the header
        column_order=shown,
        alt=f"{len(rows)} latents; a click on a cell opens one, boxes at the left choose several",
    ).selection
    if picked.cells:
        open_latent(int(on_page[picked.cells[0][0]]))
    with above:
        if picked.rows:
            actions([int(on_page[n]) for n in picked.rows])
        else:
            st.caption("Click a cell to open a latent, a header to sort all; tick rows to steer with, compare or list several.")
elif len(latents) and look == "Map":
    with messages.guarded():
        draw_map()
elif len(latents):
    axes = [name for name, column in listing.SORTS.items() if column]
    with st.container(horizontal=True):
        names = [st.selectbox(name, axes, index=axes.index(first), key=key, bind="query-params") for name, key, first in AXES]
    x, y = (listing.SORTS[name] for name in names)
    drawn, figure = packs.cached_recently(
        store, f"{x} {y}", latents, lambda: figures.chosen(store.index, table["label"], latents, (x, y), names)
    )
    picked = st.plotly_chart(figure, key="points", on_select="rerun", selection_mode="points", alt=f"{drawn:,} latents")
    st.caption(f"{drawn:,} of {len(latents):,} latents. Click a point to open it.")
    if picked.selection.points:
        open_latent(int(picked.selection.points[0]["customdata"]))

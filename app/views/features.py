"""All latents in a table: found by words, tokens or numbers, narrowed, sorted, opened."""

import numpy as np
import pandas as pd
import streamlit as st

from app import session
from app.components import figures
from app.components.code import copy_as_python, opening
from app.components.listing import COLUMNS, FILTERS, MODES, SORTS, csv, found, narrowed, shown, survivors
from app.components.plain import plain
from scope.errors import PackError

ROWS = 100
CONTROLS = ("q", "in", "sort", "rising", "hide", "d", "share", "view")
AXES = (("Across", "x", "density"), ("Up", "y", "max"))

store = session.pack()
table = store.table

if not any(key in st.query_params for key in CONTROLS):
    for key, value in st.session_state.get("asked", {}).items():  # coming back finds the list as it was left
        st.session_state.setdefault(key, value)

with st.container(horizontal=True, vertical_alignment="bottom"):
    words = st.text_input("Search", key="q", bind="query-params", placeholder="dogs", icon=":material/search:")
    mode = st.selectbox("in", MODES, key="in", bind="query-params", width=150)
    sort = st.selectbox("Sort by", list(SORTS), key="sort", bind="query-params", width=180)
    rising = st.toggle("Rising", key="rising", bind="query-params")
with st.container(horizontal=True, vertical_alignment="bottom"):
    hidden = st.multiselect(
        "Hide", list(FILTERS), default=["dead"], key="hide", bind="query-params", help="Flags are explained in the manual."
    )
    span = st.slider("Density, powers of ten", -7.0, 0.0, (-7.0, 0.0), 0.25, key="d", bind="query-params", width=260)
    share = st.slider("Top token's share at most", 0.0, 1.0, 1.0, 0.05, key="share", bind="query-params", width=220)

try:
    hits, beside = found(store, words or "", mode)
except PackError as refusal:
    st.info(plain(refusal))
    hits, beside = np.empty(0, int), pd.DataFrame()
masks = survivors(store.index, hidden, span, share)
latents = shown(store.index, hits, narrowed(masks, store.d_sae), SORTS[sort], rising)

with st.container(horizontal=True, vertical_alignment="center"):
    st.markdown(f"**{len(latents):,}** of {store.d_sae:,} latents")
    look = st.segmented_control(
        "View",
        ["Table", "Scatter"],
        default="Table",
        required=True,
        label_visibility="collapsed",
        key="view",
        bind="query-params",
    )
    if st.button(
        "Random", icon=":material/casino:", disabled=not len(latents), help="One of these, each equally likely.", shortcut="x"
    ):
        session.keep_results(latents.tolist())
        session.go("feature", f=int(np.random.default_rng().choice(latents)))

st.session_state["asked"] = {key: st.session_state[key] for key in CONTROLS}

if not len(latents) and len(hits):
    without = {name: int(narrowed(masks, store.d_sae, without=name)[hits].sum()) for name in masks}
    name, back = max(without.items(), key=lambda item: item[1])
    st.info(f"The filters leave nothing of {len(hits):,} found. Without “{name}” {back:,} would be shown.")
    st.button(
        f"Drop “{name}”",
        on_click=lambda: st.session_state.update(
            {"hide": []} if name == "Hide" else {"d": (-7.0, 0.0)} if name == "Density" else {"share": 1.0}
        ),
    )
elif not len(latents) and (words or "").strip():
    st.info("Nothing found. A word may be split into several tokens; try a part of it. “Anything” is the widest search.")

if len(latents) and look == "Table":
    pages = -(-len(latents) // ROWS)
    page = st.pagination(pages, key="page") if pages > 1 else 1
    here = latents[(page - 1) * ROWS : page * ROWS]
    rows = COLUMNS.rows(store, here, beside)
    picked = st.dataframe(
        rows,
        hide_index=True,
        column_config=COLUMNS.config(rows),
        on_select="rerun",
        selection_mode="single-row",
        key=f"table {session.current()} {page} {len(latents)}",
        height=min(36 * len(rows) + 40, 720),
        alt=f"{len(rows)} latents; choose a row to open it",
    )
    if picked.selection.rows:
        session.keep_results(latents.tolist())
        session.go("feature", f=int(here[picked.selection.rows[0]]))
    with st.container(horizontal=True):
        st.download_button(
            "CSV", lambda: csv(table.iloc[latents]), "latents.csv", "text/csv", icon=":material/download:", type="tertiary"
        )
        calls = {
            "anything": f"pack.find({words!r})",
            "fires on": f"pack.fires_on({words!r})",
            "promotes": f"pack.promotes({words!r})",
        }
        copy_as_python(
            opening(str(store.folder)) + (calls.get(mode) if (words or "").strip() and mode in calls else "pack.table"),
            key="py table",
        )
elif len(latents):
    axes = [name for name, column in SORTS.items() if column]
    with st.container(horizontal=True):
        names = [st.selectbox(name, axes, index=axes.index(first), key=key, bind="query-params") for name, key, first in AXES]
    x, y = (SORTS[name] for name in names)
    rows = table.iloc[np.sort(latents)].dropna(subset=[x, y])
    logs = tuple(axis in ("density", "max", "count") for axis in (x, y))
    rows = rows[np.logical_and.reduce([(rows[axis] > 0) | (not log) for axis, log in zip((x, y), logs, strict=True)])]
    rows = rows.iloc[figures.sample(rows[x].to_numpy(float), rows[y].to_numpy(float))] if len(rows) else rows
    figure = figures.scatter(rows.index.to_numpy(), rows[x].to_numpy(), rows[y].to_numpy(), rows["label"], *names, logs)
    picked = st.plotly_chart(figure, key="points", on_select="rerun", selection_mode="points", alt=f"{len(rows):,} latents")
    st.caption(f"{len(rows):,} of {len(latents):,} latents. Click a point to open it.")
    if picked.selection.points:
        session.keep_results(latents.tolist())
        session.go("feature", f=int(picked.selection.points[0]["customdata"]))

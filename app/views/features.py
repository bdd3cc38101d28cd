"""All latents in a table: found by words, tokens or numbers, narrowed, sorted, opened."""

import numpy as np
import pandas as pd
import streamlit as st

from app import session
from app.components import figures
from app.components.code import copy_as_python, opening
from app.components.listing import COLUMNS, FILTERS, MODES, SORTS, csv, found, shown, survivors
from app.components.plain import plain
from scope.errors import PackError

ROWS = 100

store = session.pack()
table = store.table

with st.container(horizontal=True, vertical_alignment="bottom"):
    words = st.text_input("Search", key="q", bind="query-params", placeholder="dogs", icon=":material/search:")
    mode = st.selectbox("in", list(MODES), format_func=MODES.get, key="in", bind="query-params", width=230)
    sort = st.selectbox("Sort by", list(SORTS), format_func=SORTS.get, key="sort", bind="query-params", width=200)
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
masks = survivors(table, hidden, span, share)
keep = np.logical_and.reduce(list(masks.values()))[hits]
latents = shown(table, hits[keep], sort, rising)

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

if not len(latents) and len(hits):
    without = {
        name: int(np.logical_and.reduce([m for other, m in masks.items() if other != name])[hits].sum()) for name in masks
    }
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
        calls = {"any": f"pack.find({words!r})", "fires": f"pack.fires_on({words!r})", "promotes": f"pack.promotes({words!r})"}
        copy_as_python(
            opening(str(store.folder)) + (calls.get(mode) if (words or "").strip() and mode in calls else "pack.table"),
            key="py table",
        )
elif len(latents):
    axes = [c for c in SORTS if c in table.columns and pd.api.types.is_numeric_dtype(table[c])]
    with st.container(horizontal=True):
        x = st.selectbox("Across", axes, index=axes.index("density"), format_func=SORTS.get, key="x", bind="query-params")
        y = st.selectbox("Up", axes, index=axes.index("max"), format_func=SORTS.get, key="y", bind="query-params")
    rows = table.iloc[np.sort(latents)].dropna(subset=[x, y])
    logs = tuple(axis in ("density", "max", "count") for axis in (x, y))
    rows = rows[np.logical_and.reduce([(rows[axis] > 0) | (not log) for axis, log in zip((x, y), logs, strict=True)])]
    rows = rows.iloc[figures.sample(rows[x].to_numpy(float), rows[y].to_numpy(float))] if len(rows) else rows
    figure = figures.scatter(
        rows.index.to_numpy(), rows[x].to_numpy(), rows[y].to_numpy(), rows["label"], SORTS[x], SORTS[y], logs
    )
    picked = st.plotly_chart(figure, key="points", on_select="rerun", selection_mode="points", alt=f"{len(rows):,} latents")
    st.caption(f"{len(rows):,} of {len(latents):,} latents. Click a point to open it.")
    if picked.selection.points:
        session.keep_results(latents.tolist())
        session.go("feature", f=int(picked.selection.points[0]["customdata"]))

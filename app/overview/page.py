"""Is this dictionary any good, and where should I begin?"""

import streamlit as st
from scope.app.kit import figures
from scope.app.kit.code import heading, opening
from scope.app.kit.plain import plain, short_name
from scope.app.overview import packs_table
from scope.app.serve import facts as health
from scope.app.serve import packs, readings, session

from scope.errors import ScopeError

store = session.pack()
table = store.table

st.title(plain(f"{short_name(store.model_name)} · {store.site}"), anchor=False)

with st.form("search", border=False), st.container(horizontal=True, vertical_alignment="bottom"):
    words = st.text_input("Search", placeholder="A word, a token, or a latent's number", label_visibility="collapsed")
    if st.form_submit_button("Search", icon=":material/search:") and words.strip():
        if words.strip().isdecimal():
            session.go("feature", f=words.strip())
        session.go("features", q=words.strip())

tiles = health.tiles(store)
for start in range(0, len(tiles), 4):
    with st.container(horizontal=True):
        for name, value, beside, meaning in tiles[start : start + 4]:
            st.metric(name, value, beside or None, delta_color="off", delta_arrow="off", help=meaning, border=True)
report = health.evaluation(store)
if report is None:
    st.caption(
        "No evaluation lies in this pack, so FVU and delta loss are not shown. `scope evaluate DICTIONARY --model MODEL` makes "
        "one, and `scope features` puts it here."
    )

guides = packs.once(store, "start here", lambda: health.start_here(store))
if guides:
    st.header(
        "Start here",
        anchor=False,
        help="Chosen from this pack's own numbers; latents flagged dense, rare or duplicate are passed over.",
    )
    for name, latent in guides.items():
        with st.container(horizontal=True, vertical_alignment="center", gap="small"):
            session.link("feature", f"{name}: \\#{latent} {plain(table['label'].iat[latent])}", f=latent)
            session.link("steer", "steer it", icon=":material/explore:", f=latent)
    text = packs.once(store, "a text", lambda: health.telling_text(store, list(guides.values())))
    if text:
        session.link("prompt", f"Which latents fire on “{plain(text)}”?", icon=":material/science:", text=text)

kept = [("prompt", name, text) for name, text in readings.saved(store.folder, 5)]
kept += [("steer", name, f"steering run {name}") for name in health.steering_runs(store.folder, 5)]
if kept:
    st.header("Recent runs", anchor=False)
    for page, name, text in kept:
        session.link(page, plain(text), icon=":material/history:", run=name)

left, right = st.columns(2)
with left:
    heading("How often latents fire", opening(str(store.folder)) + "pack.table['density'].describe()", "py density")
    limit = float((store.manifest.get("flags") or {}).get("dense", 0.1))
    dead, dense = int((table["count"] == 0).sum()), int((table["density"] >= limit).sum())
    told = f"{dead:,} of {store.d_sae:,} never fired; {dense:,} fire on {figures.percent(limit)} of tokens or more (blue)."
    figure = packs.once(store, "densities", lambda: figures.density(table["density"].to_numpy(), limit))
    st.plotly_chart(figure, config=figures.SMALL, key="density", alt=told)
    st.caption(told)
with right:
    heading(
        "Strength by frequency",
        opening(str(store.folder)) + "pack.table[['density', 'max']]",
        "py scatter",
        meaning="Click a point.",
    )
    figure, kept, alive = packs.once(store, "strength by frequency", lambda: figures.living(table))
    told = f"{kept:,} of {alive:,} living latents." + (" Crowded regions are thinned." if kept < alive else "")
    picked = st.plotly_chart(figure, config=figures.SMALL, key="scatter", on_select="rerun", selection_mode="points", alt=told)
    st.caption(told)
    if picked.selection.points:
        session.go("feature", f=int(picked.selection.points[0]["customdata"]))

if report is not None:
    nulls = "A random dictionary of equal L0, PCA of equal L0, and ablation of the site."
    st.header("Scores beside their nulls", anchor=False, help=nulls)
    st.dataframe(health.scores(report), hide_index=True, alt="Scores of the dictionary beside its nulls")
    for note in report.get("notes", []):
        st.caption(f":material/info: {plain(note)}")


def pack_row(slug: str, folder) -> dict:
    """What the table of packs tells of one."""
    try:
        other = session.pack(slug)
        return packs.once(other, "facts", lambda: packs_table.facts(other))
    except ScopeError as refusal:
        return packs_table.unopened(folder, str(refusal), packs.building(slug))


known = packs.registry()
if len(known) > 1:
    st.header("Packs", anchor=False, help="All that are open here; a click opens one.")
    chosen = packs_table.table({slug: pack_row(slug, folder) for slug, folder in known.items()}, session.current())
    if chosen is not None:
        st.switch_page(session.PAGES["overview"], query_params={"pack": chosen})

with st.expander("How these numbers were made"):
    st.json({key: value for key, value in store.manifest.items() if key != "files"}, expanded=1)
    st.code(f"{store.folder}", language=None)
    if st.button("Check every byte of this pack", help="Compares each file with the checksum written beside it."):
        bad = store.verify()
        if bad:
            st.error(plain(f"Damaged: {', '.join(bad)}. Copy the pack again, or make it again."))
        else:
            st.success("All files are as they were written.")
made = store.manifest.get("made", {})
told = [f"scope {made.get('scope', '?')}, {str(made.get('date', ''))[:10]}", f"dictionary {health.digest(store)}"]
told += [f"{store.n_tokens:,} tokens of the corpus {health.corpus_name(store)}", "nothing on these pages leaves this machine"]
st.caption(plain(" · ".join(told)))

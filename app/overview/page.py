"""The Overview page: how good the SAE is, and latents to begin with."""

import streamlit as st
from scope.app.kit import figures
from scope.app.kit.code import heading, opening
from scope.app.kit.plain import plain, short_name
from scope.app.kit.small_table import small_table, text_columns
from scope.app.kit.tiles import tiles
from scope.app.overview import packs_table
from scope.app.serve import pack_facts, packs, readings, session

from scope.errors import ScopeError
from scope.steering.compare.json_files import runs_folders, saved_names

store = session.pack()
table, noun = store.table, pack_facts.rows_noun(store)

st.title(plain(f"{short_name(store.model_name)} · {store.place}"), anchor=False)

tiles(pack_facts.tiles(store), key="pack")
for fact in filter(None, (pack_facts.rows_in_words(store), pack_facts.registers(store))):
    st.caption(plain(fact))
report = pack_facts.evaluation(store)
if report is None:
    st.caption(
        "This pack holds no evaluation, so FVU and delta loss are not shown. `scope evaluate DICTIONARY --model MODEL` makes "
        "one, and `scope features` adds it to the pack."
    )

guides = packs.once(store, "start here", lambda: pack_facts.start_here(store))
if guides:
    st.header(
        "Start here",
        anchor=False,
        help="Chosen from this pack's numbers, without latents flagged dense, rare or duplicate.",
    )
    for name, latent in guides.items():
        with st.container(horizontal=True, vertical_alignment="center", gap="small"):
            session.link("feature", f"{name}: \\#{latent} {plain(table['label'].iat[latent])}", f=latent)
            if pack_facts.steers(store):
                session.link("steer", "Steer", icon=":material/explore:", f=latent)
    text = packs.once(store, "a text", lambda: pack_facts.example_text(store, list(guides.values())))
    if store.pictures is not None:
        session.link("prompt", "Which latents fire on a picture?", icon=":material/image_search:")
    elif text:
        session.link("prompt", f"Which latents fire on “{plain(text)}”?", icon=":material/science:", text=text)

recent = [("prompt", name, text) for name, text in readings.saved(store.folder, 5)]
recent += [("steer", name, f"steering run {name}") for name in saved_names(*runs_folders(store.folder))[:5]]
if recent:
    st.header("Recent runs", anchor=False)
    for page, name, text in recent:
        session.link(page, plain(text), icon=":material/history:", run=name)

left, right = st.columns(2)
with left:
    heading("How often latents fire", opening(str(store.folder)) + "pack.table['density'].describe()", "py density")
    limit = pack_facts.flag_limits(store).dense
    dead, dense = (int(store.index.flagged((flag,)).sum()) for flag in ("dead", "dense"))
    summary = f"{dead:,} of {store.d_sae:,} never fired; {dense:,} fire on {figures.percent(limit)} of {noun} or more (blue)."
    figure = packs.once(store, "densities", lambda: figures.density(table["density"].to_numpy(), limit))
    st.plotly_chart(figure, config=figures.SMALL, key="density", alt=summary)
    st.caption(summary)
with right:
    heading(
        "Strength by frequency",
        opening(str(store.folder)) + "pack.table[['density', 'max']]",
        "py scatter",
        meaning="Click a point.",
    )
    figure, drawn, alive = packs.once(store, "strength by frequency", lambda: figures.living(table))
    summary = f"{drawn:,} of {alive:,} living latents." + (" Crowded regions are thinned." if drawn < alive else "")
    picked = st.plotly_chart(
        figure, config=figures.SMALL, key="scatter", on_select="rerun", selection_mode="points", alt=summary
    )
    st.caption(summary)
    if picked.selection.points:
        session.go("feature", f=int(picked.selection.points[0]["customdata"]))

if report is not None:
    baselines = "A random SAE of equal L0, PCA of equal L0, and ablation of the site."
    st.header("Scores beside their baselines", anchor=False, help=baselines)
    small_table(text_columns(pack_facts.scores(report)), key="scores", alt="Scores of the SAE beside its baselines")
    for note in report.get("notes", []):
        st.caption(f":material/info: {plain(note)}")


def pack_row(slug: str, folder) -> dict:
    """The row of one pack in the table of packs."""
    try:
        other = session.pack(slug)
        return packs.once(other, "facts", lambda: packs_table.row(other))
    except ScopeError as refusal:
        return packs_table.row_without_pack(folder, str(refusal), packs.building(slug))


known = packs.registry()
if len(known) > 1:
    st.header("Packs", anchor=False, help="All open packs; a click opens one.")
    chosen = packs_table.table({slug: pack_row(slug, folder) for slug, folder in known.items()}, session.current())
    if chosen is not None:
        st.switch_page(session.PAGES["overview"], query_params={"pack": chosen})

made_by = st.expander("How these numbers were made", key="how made", on_change="rerun")
if made_by.open:  # what shows code costs the browser a fifth of a second
    with made_by:
        st.json({key: value for key, value in store.manifest.as_written.items() if key != "files"}, expanded=1)
        st.code(f"{store.folder}", language=None)
        if st.button("Check every byte of this pack", help="Compares each file with its checksum."):
            bad = store.verify()
            if bad:
                st.error(plain(f"Damaged: {', '.join(bad)}. Copy the pack again, or make it again."))
            else:
                st.success("All files match their checksums.")
made = store.manifest.made
parts = [f"scope {made.scope or '?'}, {made.date[:10]}", f"SAE {pack_facts.digest(store)}"]
parts += [
    f"{store.n_tokens:,} {pack_facts.rows_noun(store)} of the corpus {pack_facts.corpus_name(store)}",
    "nothing on these pages leaves this machine",
]
st.caption(plain(" · ".join(parts)))

"""The Health page: the SAE's scores beside their baselines, its training curves and flags, compared with other packs."""

import streamlit as st
from scope.app.health import matching, panels
from scope.app.kit import figures
from scope.app.kit.code import heading, opening, openings
from scope.app.kit.plain import plain, whole
from scope.app.kit.small_table import small_table, text_columns
from scope.app.serve import pack_facts, packs, session

from scope.errors import PackError
from scope.features.compare.counterparts import counterparts

store = session.pack()
st.title("Health of the SAE", anchor=False)
known = [slug for slug in packs.registry() if slug != session.current()]
others = st.multiselect(
    "Compare with", known, key="beside", bind="query-params", max_selections=3, placeholder="Up to three other packs"
)
shown = {session.current(): store, **{slug: session.pack(slug) for slug in others}}
python, several = opening(str(store.folder)), openings({slug: each.folder for slug, each in shown.items()})

arms = python + "pack.health['evaluation']['arms']"
if len(shown) > 1:
    arms = several + "{name: (pack.health or {}).get('evaluation', {}).get('arms') for name, pack in packs.items()}"
heading("Scores", arms, "py scores", meaning="Each beside its baselines: what no skill would score.")
for slug, each in shown.items():
    report = pack_facts.evaluation(each)
    if len(shown) > 1:
        st.caption(f"**{plain(slug)}** · {plain(each.site)} · {each.d_sae:,} latents")
    if report is None:
        st.info(f"{plain(slug)} holds no evaluation. This command makes one, and `scope features` adds it to the pack:")
        st.code("scope evaluate DICTIONARY --model MODEL", language=None)
        continue
    alt = f"Scores of {slug} beside their baselines"
    small_table(text_columns(pack_facts.scores(report)), key=f"scores {slug}", alt=alt)
    st.caption(plain(panels.text_counts(report)))
    for note in report.get("notes", []):
        st.caption(f":material/info: {plain(note)}")

if len(shown) > 1:
    lines = several + (
        "for name, pack in packs.items():\n"
        "    if (pack.health or {}).get('evaluation'):\n"
        "        sae = pack.health['evaluation']['arms']['sae']\n"
        "        print(name, sae['l0'], sae['fvu'])"
    )
    meaning = "Lower and further left is better; only packs with an evaluation."
    heading("Sparsity against error", lines, "py pareto", meaning=meaning)
    points = {slug: panels.point(each) for slug, each in shown.items()}
    points = {slug: point for slug, point in points.items() if point is not None}
    if len({(shown[slug].model_name, shown[slug].site) for slug in points}) > 1:
        st.caption("These packs are of different sites or models, so their FVU are fractions of different variances.")
    st.plotly_chart(figures.pareto(points), config=figures.SMALL, key="pareto", alt="L0 against FVU, one point a pack")

heading(
    "By position",
    python + "(pack.health or {}).get('evaluation', {}).get('positions')",
    "py positions",
    meaning="Of the current pack.",
)
panels.positions(store)
heading("Latents by flag", python + "pack.table['flags'].value_counts()", "py counted", meaning="From the pack's table.")
panels.latents(store, packs.once(store, "latents counted", lambda: panels.counts(store)))

rows = panels.certificate(store)
if rows is not None:
    heading(
        "Certificate",
        python + "pack.health['certificate']",
        "py certificate",
        meaning="A check that site, scale and model fit the SAE.",
    )
    st.dataframe(rows, hide_index=True, alt="The certificate of this SAE", height=whole(rows))
else:
    st.caption(
        "This pack holds no certificate: it was made without checking that site, scale and model fit the SAE. "
        "`scope evaluate` and `scope features` make the check, and the next pack of this SAE will hold it."
    )

curves = {slug: (each.health or {}).get("training") for slug, each in shown.items()}
curves = {slug: rows for slug, rows in curves.items() if rows}
if curves:
    heading(
        "Training curves",
        python + "pack.health['training']",
        "py training",
        meaning="Means over the steps between two rows of the log.",
    )
    columns = st.columns(3)
    for column, (name, key, log) in zip(columns, panels.CURVES, strict=True):
        with column:
            figure = figures.curves({slug: panels.curve(rows, key) for slug, rows in curves.items()}, name, log)
            st.plotly_chart(figure, config=figures.SMALL, key=f"curve {key}", alt=f"{name} during training")
else:
    st.caption("This pack holds no training curve: its SAE was not trained by `scope train`, or the log was not beside it.")

left, middle, right = st.columns(3)
for place, (name, column, meaning) in zip((left, middle, right), panels.SPREADS, strict=True):
    with place:
        heading(name, python + f"pack.table[{column!r}]", f"py {column}", meaning=meaning)
        spread = {
            slug: packs.once(each, f"spread {column}", lambda e=each, c=column: panels.spread(e, c))
            for slug, each in shown.items()
        }
        st.plotly_chart(
            figures.spreads(spread, log=column == "density"), config=figures.SMALL, key=f"spread {column}", alt=name
        )
st.caption(plain(panels.geometry(store)))
left, right = st.columns([1, 2])
with left:
    meaning = "Norm of each decoder row; all equal where training fixes them."
    heading("Decoder norms", python + "pack.table['dec_norm']", "py norms", meaning=meaning)
    lengths = {slug: packs.once(each, "spread norms", lambda e=each: panels.norms(e)) for slug, each in shown.items()}
    st.plotly_chart(figures.spreads(lengths, log=False), config=figures.SMALL, key="spread norms", alt="Decoder norms")
with right:
    heading("Provenance", python + "pack.manifest", "py made", meaning="Config and versions of training, evaluation and pack.")
    st.json({name: part for name, part in panels.provenance(store).items() if part}, expanded=1)

if len(shown) == 2:
    other = next(each for slug, each in shown.items() if slug != session.current())
    lines = opening(str(store.folder)) + f"other = Pack.open({str(other.folder)!r})\n"
    lines += "from scope.features.compare.counterparts import counterparts\n\npairs = counterparts(pack, other)\n"
    lines += "(pairs[['shared', 'by_chance']] >= 5).mean()"
    meaning = "Compared by the ten tokens that each latent promotes most, by weights; a pack does not hold directions."
    heading("Counterparts by promoted tokens", lines, "py matched", meaning=meaning)
    try:
        pairs = packs.once(store, f"matched {other.folder} {id(other)}", lambda: counterparts(store, other))
        st.caption(plain(panels.matched(pairs)))
    except PackError as refusal:
        st.caption(plain(refusal))
    matching.draw(store, other)

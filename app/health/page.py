"""Is this dictionary sound? Its scores beside their nulls, how it learnt, how its latents are spread; beside other packs."""

import streamlit as st
from scope.app.health import matching
from scope.app.health import panels as health_more
from scope.app.kit import figures
from scope.app.kit.code import heading, opening, openings
from scope.app.kit.plain import plain
from scope.app.serve import facts as health
from scope.app.serve import packs, session

from scope.errors import PackError
from scope.features.compare.counterparts import counterparts

store = session.pack()
known = [slug for slug in packs.registry() if slug != session.current()]
beside = st.multiselect(
    "Beside", known, key="beside", bind="query-params", max_selections=3, placeholder="Up to three other packs"
)
shown = {session.current(): store, **{slug: session.pack(slug) for slug in beside}}
python, several = opening(str(store.folder)), openings({slug: each.folder for slug, each in shown.items()})

arms = python + "pack.health['evaluation']['arms']"
if len(shown) > 1:
    arms = several + "{name: (pack.health or {}).get('evaluation', {}).get('arms') for name, pack in packs.items()}"
heading("Scores", arms, "py scores", meaning="Each beside what it would be without skill.")
for slug, each in shown.items():
    report = health.evaluation(each)
    if len(shown) > 1:
        st.caption(f"**{plain(slug)}** · {plain(each.site)} · {each.d_sae:,} latents")
    if report is None:
        st.info(f"No evaluation lies in {plain(slug)}. This makes one, and `scope features` puts it into the pack:")
        st.code("scope evaluate DICTIONARY --model MODEL", language=None)
        continue
    st.dataframe(health.scores(report), hide_index=True, alt=f"Scores of {slug} beside their nulls", key=f"scores {slug}")
    st.caption(plain(health.counted(report)))
    for note in report.get("notes", []):
        st.caption(f":material/info: {plain(note)}")

if len(shown) > 1:
    lines = several + (
        "for name, pack in packs.items():\n"
        "    if (pack.health or {}).get('evaluation'):\n"
        "        sae = pack.health['evaluation']['arms']['sae']\n"
        "        print(name, sae['l0'], sae['fvu'])"
    )
    told = "Lower and further left is better; only packs with an evaluation."
    heading("Sparsity against error", lines, "py pareto", meaning=told)
    points = {slug: health.point(each) for slug, each in shown.items()}
    points = {slug: point for slug, point in points.items() if point is not None}
    if len({(shown[slug].model_name, shown[slug].site) for slug in points}) > 1:
        st.caption("These packs read different sites or models: their errors are shares of different variances.")
    st.plotly_chart(figures.pareto(points), config=figures.SMALL, key="pareto", alt="L0 against FVU, one point a pack")

heading(
    "By position",
    python + "(pack.health or {}).get('evaluation', {}).get('positions')",
    "py positions",
    meaning="Of the pack shown.",
)
health_more.positions(store)
heading("Latents, counted", python + "pack.table['flags'].value_counts()", "py counted", meaning="From the pack's own table.")
health_more.latents(store, packs.once(store, "latents counted", lambda: health_more.counts(store)))

rows = health.certificate(store)
if rows is not None:
    heading(
        "Certificate",
        python + "pack.health['certificate']",
        "py certificate",
        meaning="What a check of site, scale and model found.",
    )
    st.dataframe(rows, hide_index=True, alt="The certificate of this dictionary")
else:
    st.caption(
        "No certificate lies in this pack: whether site, scale and model are the right ones was not checked when it was made. "
        "`scope evaluate` and `scope features` check it, and the next pack of this dictionary takes it along."
    )

curves = {slug: (each.health or {}).get("training") for slug, each in shown.items()}
curves = {slug: rows for slug, rows in curves.items() if rows}
if curves:
    heading(
        "How it learnt",
        python + "pack.health['training']",
        "py training",
        meaning="Means over the steps between two lines of the log.",
    )
    columns = st.columns(3)
    for column, (name, key, log) in zip(columns, health.CURVES, strict=True):
        with column:
            figure = figures.curves({slug: health.curve(rows, key) for slug, rows in curves.items()}, name, log)
            st.plotly_chart(figure, config=figures.SMALL, key=f"curve {key}", alt=f"{name} while training")
else:
    st.caption(
        "No training curve lies in this pack: its dictionary was not trained by `scope train`, or its log was not beside it."
    )

left, middle, right = st.columns(3)
for place, (name, column, meaning) in zip((left, middle, right), health.SPREADS, strict=True):
    with place:
        heading(name, python + f"pack.table[{column!r}]", f"py {column}", meaning=meaning)
        spread = {
            slug: packs.once(each, f"spread {column}", lambda e=each, c=column: health.spread(e, c))
            for slug, each in shown.items()
        }
        st.plotly_chart(
            figures.spreads(spread, log=column == "density"), config=figures.SMALL, key=f"spread {column}", alt=name
        )
st.caption(plain(health.geometry(store)))
left, right = st.columns([1, 2])
with left:
    told = "Length of each decoder row; all alike where a dictionary keeps them at one length."
    heading("Decoder norms", python + "pack.table['dec_norm']", "py norms", meaning=told)
    lengths = {slug: packs.once(each, "spread norms", lambda e=each: health_more.norms(e)) for slug, each in shown.items()}
    st.plotly_chart(figures.spreads(lengths, log=False), config=figures.SMALL, key="spread norms", alt="Decoder norms")
with right:
    heading(
        "How it was made", python + "pack.manifest", "py made", meaning="Config and versions of training, scoring and pack."
    )
    st.json({name: part for name, part in health_more.made(store).items() if part}, expanded=False)

if len(shown) == 2:
    other = next(each for slug, each in shown.items() if slug != session.current())
    lines = opening(str(store.folder)) + f"other = Pack.open({str(other.folder)!r})\n"
    lines += "from scope.features.compare.counterparts import counterparts\n\npairs = counterparts(pack, other)\n"
    lines += "(pairs[['shared', 'by_chance']] >= 5).mean()"
    told = "Told by what both write: the ten tokens that each promotes most, by weights. Directions do not lie in a pack."
    heading("Latents that both have", lines, "py matched", meaning=told)
    try:
        pairs = packs.once(store, f"matched {other.folder} {id(other)}", lambda: counterparts(store, other))
        st.caption(plain(health.matched(pairs)))
    except PackError as refusal:
        st.caption(plain(refusal))
    matching.draw(store, other)

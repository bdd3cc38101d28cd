"""Parts of the Match page: saved results, their numbers beside chance and ceiling, the pairs, and examples of both sides."""

from pathlib import Path
from typing import Any

import numpy as np
import streamlit as st
from scope.app.kit import figures
from scope.app.kit.plain import number, plain, short_name, show_line, whole
from scope.app.kit.tokens import example_row, strips
from scope.app.serve import packs, session

from scope.errors import PackError
from scope.features.compare.partners import Match
from scope.features.face import Pack
from scope.provenance import DictionaryId

EXAMPLES = 5
"""Examples of each side."""


def saved(store: Pack, folder: Path) -> tuple[dict[str, Match], list[str]]:
    """(results by name, the newest first; why others cannot be shown) of a folder of matches.

    A result of another SAE, as of one that lay here before, is not shown.
    """
    results, refusals = {}, []
    for file in sorted(folder.glob("*.json"), key=lambda file: -file.stat().st_mtime_ns):
        try:
            result = _load(str(file), file.stat().st_mtime_ns)
        except PackError as refusal:
            refusals.append(str(refusal))
            continue
        if DictionaryId.of(result.provenance.get("a")).parameters_sha256 != store.dictionary.parameters_sha256:
            refusals.append(f"{file.name} was made with another SAE than this pack. Make it again with scope match.")
        elif result.latents.max() >= store.d_sae or result.latents.min() < 0:
            refusals.append(f"{file.name} names latents that this pack does not have. Make it again with scope match.")
        else:
            results[file.stem] = result
    return results, refusals


@st.cache_resource(show_spinner=False, max_entries=8)
def _load(file: str, modified_ns: int) -> Match:
    return Match.load(Path(file))


def title(name: str, result: Match) -> str:
    """Such as "generation3: gemma3, blocks.2.hook_resid_post"."""
    other = DictionaryId.of(result.provenance.get("b"))
    return show_line(f"{name}: {short_name(other.model.name or 'unknown model')}, {other.site or 'unknown site'}", 80)


def tiles(result: Match) -> list[tuple[str, str, str, str]]:
    """The share of latents with a partner beside what chance and a third SAE give."""
    ceiling = "–" if result.ceiling is None else f"{result.ceiling:.1%}"
    none = "none given" if result.ceiling is None else ""
    return [
        ("With a partner", f"{result.share:.1%}", f"of {len(result.latents):,} latents", "Correlation above the threshold."),
        (
            "By chance",
            f"{result.share_by_chance:.1%}",
            "documents exchanged",
            "The same share when every document meets another.",
        ),
        ("Ceiling", ceiling, none, "The share in a third SAE, such as another seed on the same model: the most to expect."),
        ("Median correlation", f"{np.median(result.correlation):.2f}", f"by chance {np.median(result.by_chance):.2f}", ""),
        ("Each other's best", f"{result.mutual.mean():.1%}", "", "The partner's own best match is this latent."),
    ]


def summary(result: Match) -> str:
    """The text and the threshold."""
    corpus = result.provenance.get("corpus")
    kind = corpus.get("name") or corpus.get("kind") if isinstance(corpus, dict) else None
    return (
        f"Read on {result.words:,} words of {result.documents:,} documents"
        + (f" of the corpus {kind}" if kind else "")
        + f". A partner has a correlation above {number(result.threshold, '.2f')}, which 1 % reach with documents exchanged."
    )


def spread(result: Match) -> None:
    """The distribution of best correlations, and that by chance."""
    edges = np.linspace(min(0.0, float(min(result.correlation.min(), result.by_chance.min()))), 1, 41)
    both = {"best correlation": result.correlation, "documents exchanged": result.by_chance}
    counted = {name: (edges, np.histogram(values.clip(max=1.0), edges)[0]) for name, values in both.items()}
    st.plotly_chart(
        figures.spreads(counted, log=False),
        config=figures.SMALL,
        key="match spread",
        alt=f"Best correlations, median {np.median(result.correlation):.2f}, beside those with documents exchanged",
    )


def pack_of(record: Any) -> tuple[Pack | None, str]:
    """The open pack of an SAE in a match's provenance, and its slug; (None, "") if there is none."""
    wanted = DictionaryId.of(record).parameters_sha256
    for slug in packs.registry() if wanted else ():
        try:
            store = session.pack(slug)
        except PackError:
            continue
        if store.dictionary.parameters_sha256 == wanted:
            return store, slug
    return None, ""


def pairs(store: Pack, other: Pack | None, result: Match, key: str) -> tuple[int, int] | None:
    """Draw the table; returns (latent, partner) of the row that was clicked."""
    rows = result.to_frame()
    labels = store.table["label"]
    rows.insert(1, "label", [show_line(labels.iat[i], 40) for i in rows["latent"]])
    if other is not None:
        theirs, n = other.table["label"], other.d_sae
        rows.insert(3, "its label", [show_line(theirs.iat[i], 40) if 0 <= i < n else "" for i in rows["partner"]])
    values = st.column_config.NumberColumn
    picked = st.dataframe(
        rows,
        hide_index=True,
        height=whole(rows, 8),
        column_config={
            "latent": values(format="%d", width=60),
            "partner": values(format="%d", width=65),
            "correlation": values(format="%.3f", width=85),
            "by_chance": values("by chance", format="%.3f", width=80, help="Its best correlation with documents exchanged."),
            "mutual": st.column_config.CheckboxColumn("mutual", width=60, help="The partner's own best match is this latent."),
            "has_partner": st.column_config.CheckboxColumn("partner?", width=70, help="Correlation above the threshold."),
        },
        on_select="rerun",
        selection_mode="single-cell",
        key=key,
        alt=f"{len(rows)} latents with their best match",
    )
    if not picked.selection.cells:
        return None
    row = rows.iloc[picked.selection.cells[0][0]]
    return int(row["latent"]), int(row["partner"])


def examples(pack: Pack, latent: int, key: str) -> None:
    """The strongest examples of a latent, and a link to its page."""
    if not 0 <= latent < pack.d_sae:
        st.caption(plain(f"This pack has no latent {latent}."))
        return
    feature = pack[latent]
    group = next(iter(feature.groups), None)
    found = feature.examples(group, EXAMPLES) if group else []
    if not found:
        st.caption("This pack holds no examples of it.")
        return
    strips([example_row(example, float(feature.row["max"]), 12) for example in found], key=f"match {key}")

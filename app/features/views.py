"""Views of a list of latents other than the table: the map of decoder directions, and up to four latents side by side."""

import numpy as np
import streamlit as st
from scope.app.kit import figures
from scope.app.kit.messages import guarded
from scope.app.kit.palette import ELSEWHERE
from scope.app.kit.pictures import example_card, pictures
from scope.app.kit.plain import number, plain, show_line
from scope.app.kit.tokens import example_row, strips

from scope.escape import visible_token
from scope.features.face import Pack
from scope.features.pack.manifest import MapFidelity

BACKGROUND = 10_000
"""Most latents drawn in grey for comparison."""
FOREGROUND = 5_000
"""Most latents of the list that are drawn, with their labels."""
METHODS = {"pca": "PCA", "umap": "UMAP"}


def map_background(store: Pack, places: np.ndarray) -> np.ndarray:
    """[n 2] places of living latents, thinned where they are crowded."""
    living = np.flatnonzero(store.index.column("count") > 0)
    some = living[figures.sample(places[living, 0], places[living, 1], BACKGROUND)] if len(living) else living
    return places[some]


def map_figure(store: Pack, places: np.ndarray, background: np.ndarray, latents: np.ndarray) -> tuple[int, figures.Drawn]:
    """How many of these latents are drawn, and the figure; its second trace holds them, with their ids as `customdata`.

    Args:
        background: places of latents for comparison, grey.
    """
    latents = np.sort(latents)
    kept = latents[figures.sample(places[latents, 0], places[latents, 1], FOREGROUND)] if len(latents) else latents
    x, y = places[kept].T
    found = figures.scatter(kept, x, y, store.table["label"].iloc[kept], "first axis", "second axis", (False, False)).parts
    grey = {
        "type": figures.points_type(len(background) + len(kept)),
        "x": figures.typed(background[:, 0], "f4"),
        "y": figures.typed(background[:, 1], "f4"),
        "mode": "markers",
        "hoverinfo": "skip",
        "marker": {"color": ELSEWHERE, "size": 4, "opacity": 0.3},
        "selected": {"marker": {"opacity": 0.3}},
        "unselected": {"marker": {"opacity": 0.3}},
    }
    points = {**found["data"][0], "type": grey["type"], "hovertemplate": "%{hovertext}<extra></extra>"}
    layout = {**found["layout"], "height": 560, "dragmode": "pan"}
    for name in ("xaxis", "yaxis"):
        layout[name] = {**layout[name], "showticklabels": False, "zeroline": False, "showgrid": False}
    layout["yaxis"]["scaleanchor"] = "x"  # both axes in one unit: distances on the page are those on the map
    return len(kept), figures.Drawn([grey, points], layout)


def map_fidelity(facts: MapFidelity) -> str:
    """How faithful the map is, in a line: variance and neighbours kept, beside chance."""
    parts = [f"{METHODS.get(facts.method, 'A map')} of the decoder directions at unit length."]
    if facts.explained:
        axes, chance = sum(facts.explained), sum(facts.explained_by_chance)
        parts.append(f"The two axes hold {axes:.1%} of their variance; of random directions they would hold {chance:.1%}.")
    if facts.kept is not None and facts.kept_by_chance is not None:
        parts.append(
            f"Of a latent's ten nearest directions {facts.kept:.1%} are among its ten nearest here, "
            f"{facts.kept_by_chance:.1%} by chance: nearby points need not have similar directions."
        )
    if facts.method == "pca":
        parts.append("UMAP keeps more neighbours: scope map PACK --method umap, with the package umap-learn.")
    return " ".join(parts)


MOST_COMPARED = 4


def comparison_table(store: Pack, latents: list[int]) -> None:
    """A table of their numbers, a column per latent."""
    rows = [store[i].row for i in latents]
    names = {"density": ".3%", "max": ".3g", "p50": ".3g", "top_token_share": ".0%", "out_score": "+.3f", "label_score": ".2f"}
    table = {"measure": ["firing frequency", "largest", "median", "top token's share", "output score", "label's score"]}
    table |= {f"\\#{row['id']}": [number(row[name], form) for name, form in names.items()] for row in rows}
    st.table(table)


def side_by_side(store: Pack, latents: list[int]) -> int | None:
    """A column per latent; returns the latent whose button was pressed."""
    opened = None
    for column, i in zip(st.columns(len(latents)), latents, strict=True):
        feature = store[i]
        with column:
            st.markdown(f"**\\#{i}** {plain(show_line(feature.label, 80))}")
            if st.button(f"Open #{i}", icon=":material/open_in_new:", type="tertiary"):
                opened = i
            if store.pictures is not None:
                with guarded():
                    pictures([example_card(e) for e in feature.pictures("top", 4)], key=f"compare pictures {i}", wide=90)
                continue
            promoted = " ".join(visible_token(token, mark_space=True) for token, _ in feature.promoted[:8])
            st.caption("promotes " + plain(promoted) if promoted else "This pack does not hold its promoted tokens.")
            with guarded():
                rows = [example_row(e, float(feature.row["max"]), 8) for e in feature.examples("top", 5)]
                strips(rows, key=f"compare {i}")
                if not rows:
                    st.caption("It never fired.")
    return opened


def in_common(store: Pack, latents: list[int]) -> str:
    """What the latents have in common, in a line: cosines where known, and tokens on which all of them fire."""
    parts = []
    for n, i in enumerate(latents):
        near = dict(store[i].neighbours)
        parts += [f"cosine of #{i} and #{j}: {near[j]:+.2f}" for j in latents[n + 1 :] if j in near]
    tokens = [{row["token"] for row in store[i].tokens} for i in latents]
    both = set.intersection(*tokens) if tokens else set()
    parts.append(f"{len(both)} of their most frequent tokens are shared by all")
    return "; ".join(parts) + "."

"""The map of a pack's directions: those that were searched for among all, and what the map is worth."""

from typing import Any

import numpy as np
from scope.app.kit import figures
from scope.app.kit.palette import ELSEWHERE

from scope.features.face import Pack

BEHIND = 10_000
"""Latents that are drawn grey behind those asked for."""
FOUND = 5_000
"""Latents of the list that are drawn, with their labels."""
NAMES = {"pca": "PCA", "umap": "UMAP"}


def background(store: Pack, places: np.ndarray) -> np.ndarray:
    """[n 2] places of living latents, thinned where they crowd."""
    living = np.flatnonzero(store.index.column("count") > 0)
    some = living[figures.sample(places[living, 0], places[living, 1], BEHIND)] if len(living) else living
    return places[some]


def drawn(store: Pack, places: np.ndarray, behind: np.ndarray, latents: np.ndarray) -> tuple[int, figures.Drawn]:
    """How many of these latents are drawn, and the figure; its second trace holds them, with their ids as `customdata`.

    Args:
        behind: places of latents for comparison, grey.
    """
    latents = np.sort(latents)
    kept = latents[figures.sample(places[latents, 0], places[latents, 1], FOUND)] if len(latents) else latents
    x, y = places[kept].T
    found = figures.scatter(kept, x, y, store.table["label"].iloc[kept], "first axis", "second axis", (False, False)).parts
    grey = {
        "type": "scattergl",
        "x": figures.typed(behind[:, 0], "f4"),
        "y": figures.typed(behind[:, 1], "f4"),
        "mode": "markers",
        "hoverinfo": "skip",
        "marker": {"color": ELSEWHERE, "size": 4, "opacity": 0.3},
        "selected": {"marker": {"opacity": 0.3}},
        "unselected": {"marker": {"opacity": 0.3}},
    }
    points = {**found["data"][0], "hovertemplate": "%{hovertext}<extra></extra>"}
    layout = {**found["layout"], "height": 560, "dragmode": "pan"}
    for name in ("xaxis", "yaxis"):
        layout[name] = {**layout[name], "showticklabels": False, "zeroline": False, "showgrid": False}
    layout["yaxis"]["scaleanchor"] = "x"  # both axes in one unit: distances on the page are those on the map
    return len(kept), figures.Drawn([grey, points], layout)


def worth(told: dict[str, Any]) -> str:
    """What may be read off the map, in a line: its figures beside their nulls."""
    parts = [f"{NAMES.get(told.get('method', ''), 'A map')} of the decoder directions at unit length."]
    if "explained" in told:
        axes, chance = sum(told["explained"]), sum(told["explained_by_chance"])
        parts.append(f"The two axes hold {axes:.1%} of their variance; of random directions they would hold {chance:.1%}.")
    if "kept" in told:
        parts.append(
            f"Of a latent's ten nearest directions {told['kept']:.1%} are among its ten nearest here, "
            f"{told['kept_by_chance']:.1%} by chance: what lies together need not point the same way."
        )
    if told.get("method") == "pca":
        parts.append("UMAP keeps more neighbours together: scope map PACK --method umap, with the extra umap-learn.")
    return " ".join(parts)

"""The activation histogram beside the examples, drawn by a component: Plotly takes a tenth of a second to draw it anew."""

from pathlib import Path
from typing import Any

import numpy as np
import streamlit as st
from scope.app.kit.component_files import joined

from scope.features.pack.feature import Feature

_HERE = Path(__file__).parent

_mount = st.components.v2.component(
    "scope_columns",
    html='<div class="title"></div><div class="columns" role="img"></div><div class="scale"></div>',
    css=joined(_HERE, "small_histogram.css", "meaning.css"),
    js=joined(_HERE, "meaning.js", "shown_ahead.js", "small_histogram.js"),
)


TITLE = ("Activations when it fires, log scale", "Dotted lines part the strength bands. The Activations tab has more.")
"""The small title and its meaning."""


def columns(feature: Feature) -> dict[str, Any]:
    """Firings by activation, in bins of equal ratio: height, place of a band's edge, and text of each; values below them."""
    edges, counts = feature.histogram
    lit = np.flatnonzero(counts)
    low, high = (int(lit[0]), int(lit[-1]) + 1) if len(lit) else (0, 0)
    heights = counts[low:high] / max(int(counts.max(initial=1)), 1)
    texts = [
        f"{a:.3g} to {b:.3g}: {n:,} firings" for a, b, n in zip(edges[low:], edges[low + 1 :], counts[low:high], strict=False)
    ]
    starts = {int(np.searchsorted(edges, band["low"] * (1 + 1e-6), "right")) - 1 - low for band in feature.bands[1:]}
    row = feature.row
    scale = [f"{edges[low]:.2g}", f"median {row['p50']:.3g}", f"{row['max']:.3g}"] if len(lit) else []
    alt = (
        f"Activations when it fires, log scale: median {row['p50']:.3g}, at most {row['max']:.3g}" if len(lit) else "No firings"
    )
    bars = [[round(float(h), 4), i in starts, text] for i, (h, text) in enumerate(zip(heights, texts, strict=True))]
    return {"title": list(TITLE), "columns": bars, "scale": scale, "alt": alt}


def draw(data: dict[str, Any]) -> None:
    """The histogram with its bands, each value under the pointer."""
    _mount(key="small histogram", data=data)

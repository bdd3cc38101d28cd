"""Plotly figures from plain arrays. Text, grid and background are left to the page's theme."""

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go

from app.components.palette import ELSEWHERE, LOWERED, MARK, RAISED
from scope.features.text import escape, show

SMALL = {"displayModeBar": False}
"""Configuration of figures that are only looked at."""


def _framed(figure: go.Figure, height: int, x: str, y: str = "") -> go.Figure:
    figure.update_layout(height=height, margin={"l": 8, "r": 8, "t": 8, "b": 8}, showlegend=False, bargap=0.08, dragmode=False)
    figure.update_xaxes(title=x, automargin=True)
    figure.update_yaxes(title=y, automargin=True)
    return figure


def histogram(edges: np.ndarray, counts: np.ndarray, bands: Sequence[float] = (), log: bool = True, mark: float | None = None):
    """Activations of one latent when it fires. `bands` are edges of strength bands, `mark` a value to point at."""
    lit = np.flatnonzero(counts)
    low, high = (int(lit[0]), int(lit[-1]) + 1) if len(lit) else (0, 1)
    left, right, counts = edges[low:high], edges[low + 1 : high + 1], counts[low:high]
    told = [f"{a:.3g} to {b:.3g}: {n:,} firings" for a, b, n in zip(left, right, counts, strict=True)]
    middle = np.sqrt(left * right) if log else (left + right) / 2
    figure = go.Figure(
        go.Bar(
            x=left,
            y=counts,
            width=right - left,
            offset=0,
            marker={"color": MARK, "line": {"width": 0}},
            hovertext=told,
            hoverinfo="text",
        )
        if not log
        else go.Bar(
            x=np.log10(middle),
            y=counts,
            width=0.9 * np.log10(right / left),
            marker_color=MARK,
            hovertext=told,
            hoverinfo="text",
        )
    )
    place = np.log10 if log else (lambda v: v)
    for edge in [e for e in bands if left[0] <= e <= right[-1]]:
        figure.add_vline(x=float(place(edge)), line={"color": ELSEWHERE, "width": 1, "dash": "dot"})
    if mark is not None and mark > 0:
        figure.add_vline(x=float(place(mark)), line={"color": RAISED, "width": 2}, annotation_text="your text")
    _framed(figure, 220, "activation when it fires" + (" (log scale)" if log else ""), "firings")
    if log:
        ends = np.log10([left[0], right[-1]])
        ticks = _round_values(float(left[0]), float(right[-1]))
        figure.update_xaxes(
            tickvals=np.log10(ticks), ticktext=[f"{t:g}" for t in ticks], range=[ends[0] - 0.02, ends[1] + 0.02]
        )
    return figure


def _round_values(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten between two positive values; only the powers where there would be many."""
    powers = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
    digits = (1, 2, 5) if len(powers) <= 4 else (1,)
    return [v for p in powers for d in digits if low <= (v := d * 10.0**p) <= high]


def density(densities: np.ndarray, dense: float = 0.1) -> go.Figure:
    """How many latents fire how often. Silent ones have no place on a log axis and are told beside the figure."""
    alive = densities[densities > 0]
    edges = np.linspace(np.floor(np.log10(alive.min())), 0, 49) if len(alive) else np.linspace(-6, 0, 49)
    counts, _ = np.histogram(np.log10(alive), edges)
    middle = (edges[1:] + edges[:-1]) / 2
    told = [f"{10**a:.2g} to {10**b:.2g} of tokens: {n:,} latents" for a, b, n in zip(edges, edges[1:], counts, strict=False)]
    colour = np.where(middle >= np.log10(dense), RAISED, MARK)
    figure = go.Figure(go.Bar(x=middle, y=counts, marker_color=colour, hovertext=told, hoverinfo="text"))
    _framed(figure, 260, "density: share of tokens on which a latent fires", "latents")
    powers = np.arange(np.floor(edges[0]), 1)
    figure.update_xaxes(tickvals=powers, ticktext=[percent(10.0**p) for p in powers])
    return figure


def percent(share: float) -> str:
    """1 %, 0.01 %: as many digits as it takes."""
    return f"{100 * share:.10f}".rstrip("0").rstrip(".") + " %"


def scatter(
    ids: np.ndarray, x: np.ndarray, y: np.ndarray, labels: Sequence[str], x_name: str, y_name: str, logs: tuple[bool, bool]
):
    """Latents as points that can be picked; `customdata` holds the id."""
    told = [f"#{i} {escape(show_line(text))}" for i, text in zip(ids, labels, strict=True)]
    points = go.Scattergl(
        x=x,
        y=y,
        mode="markers",
        customdata=ids,
        hovertext=told,
        hovertemplate=f"%{{hovertext}}<br>{x_name} %{{x:.3g}}<br>{y_name} %{{y:.3g}}<extra></extra>",
        marker={"color": MARK, "size": 6, "opacity": 0.65},
        selected={"marker": {"color": RAISED, "opacity": 1}},
        unselected={"marker": {"opacity": 0.65}},
    )
    figure = _framed(go.Figure(points), 340, x_name, y_name)
    for axis, log, values in zip((figure.update_xaxes, figure.update_yaxes), logs, (x, y), strict=True):
        if log:
            wide = len(values) and max(values) > 100 * min(values)
            axis(type="log", exponentformat="power", dtick=1 if wide else None)
    return figure


def sample(x: np.ndarray, y: np.ndarray, most: int = 10_000) -> np.ndarray:
    """At most `most` indices of points, the sparse regions kept whole and the crowded ones thinned alike; fixed seed."""
    n = len(x)
    if n <= most:
        return np.arange(n)
    ranks = [np.clip(((v - v.min()) / max(np.ptp(v), 1e-12) * 63).astype(int), 0, 63) for v in (x, y)]
    cell = ranks[0] * 64 + ranks[1]
    crowd = np.bincount(cell, minlength=4096)[cell]
    keys = np.random.default_rng(0).random(n) ** crowd.astype(float).clip(1)
    return np.sort(np.argpartition(-(np.log(np.maximum(keys, 1e-300)) / crowd), most)[:most])


def signed_bars(pairs: Sequence[tuple[str, float]], unit: str, form: str = "+.2f") -> go.Figure:
    """Tokens with a signed figure each, largest on top; blue raises, orange lowers, and the sign is written."""
    places, values = list(range(len(pairs))), [value for _, value in pairs]
    names = [escape(show_line(show(token, mark_space=True), 18)) for token, _ in pairs]
    figure = go.Figure(
        go.Bar(
            x=np.abs(values),
            y=places,
            orientation="h",
            marker_color=[RAISED if value >= 0 else LOWERED for value in values],
            text=[f"{value:{form}}" for value in values],
            textposition="outside",
            cliponaxis=False,
            hovertext=[escape(show(token, mark_space=True)) for token, _ in pairs],
            hoverinfo="text",
        )
    )
    _framed(figure, 16 + 22 * len(pairs), "")
    largest = max(np.abs(values), default=1.0)
    figure.update_xaxes(visible=False, range=[0, 1.35 * (largest or 1.0)], title=None)
    figure.update_yaxes(autorange="reversed", tickvals=places, ticktext=names, title=None, showgrid=False)
    figure.update_layout(meta={"unit": unit})
    return figure


def show_line(text: str, most: int = 60) -> str:
    """One line of visible glyphs, cut where it grows long."""
    glyphs = "".join(show(char) if char < " " or not char.isprintable() else char for char in text)
    return glyphs if len(glyphs) <= most else glyphs[: most - 1] + "…"

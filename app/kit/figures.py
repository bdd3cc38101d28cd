"""Plotly figures from plain arrays. Text, grid and background follow the page's theme.

Figures are passed to Plotly as dictionaries: its `update_…` and `add_…` take tens of milliseconds per figure.
"""

from base64 import b64encode
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.basedatatypes import BaseFigure
from scope.app.kit.palette import ELSEWHERE, LOWERED, MARK, RAISED, SERIES
from scope.app.kit.plain import show_line

from scope.escape import is_seen
from scope.features.pack.index import Index

SMALL = {"displayModeBar": False}
"""Configuration of figures without a toolbar."""


class Drawn(BaseFigure):
    """A figure as a plain dictionary. Plotly's objects check each field, which takes ten milliseconds per figure."""

    def __init__(self, traces: Sequence[dict[str, Any]], layout: dict[str, Any]):
        object.__setattr__(self, "parts", {"data": list(traces), "layout": {"template": _template(), **layout}})

    def to_dict(self) -> dict[str, Any]:
        return self.parts


@cache
def _template() -> dict[str, Any]:
    """The template of every figure, through which Streamlit applies the page's theme."""
    return go.Figure().to_dict()["layout"]["template"]


def _figure(trace: dict[str, Any], height: int, x: dict[str, Any], y: dict[str, Any], **layout: Any) -> Drawn:
    return Drawn([trace], _layout(height, x, y, **layout))


def typed(values: np.ndarray, dtype: str) -> dict[str, str] | list:
    """Numbers in Plotly's binary form; as digits, ten thousand points would take too long."""
    if not len(values):
        return []
    return {"dtype": dtype, "bdata": b64encode(np.ascontiguousarray(values, f"<{dtype}").tobytes()).decode()}


def _layout(height: int, x: dict[str, Any], y: dict[str, Any], **layout: Any) -> dict[str, Any]:
    frame = {
        "height": height,
        "margin": {"l": 8, "r": 8, "t": 8, "b": 8},
        "showlegend": False,
        "bargap": 0.08,
        "dragmode": False,
        "xaxis": {"automargin": True, **x},
        "yaxis": {"automargin": True, **y},
    }
    return frame | layout


def _title(text: str) -> dict[str, str]:
    return {"text": text}


def histogram(
    edges: np.ndarray, counts: np.ndarray, bands: Sequence[float] = (), log: bool = True, mark: float | None = None
) -> Drawn:
    """Activations of one latent when it fires. `bands` are edges of strength bands, `mark` a value to mark."""
    lit = np.flatnonzero(counts)
    low, high = (int(lit[0]), int(lit[-1]) + 1) if len(lit) else (0, 1)
    left, right, counts = edges[low:high], edges[low + 1 : high + 1], counts[low:high]
    place = np.log10 if log else np.asarray
    ends = place(np.append(left, right[-1]))
    bars = {
        "type": "bar",
        "x": ((ends[1:] + ends[:-1]) / 2).tolist(),
        "y": counts.tolist(),
        "width": (0.9 * np.diff(ends)).tolist(),
        "marker": {"color": MARK},
        "hovertext": [f"{a:.3g} to {b:.3g}: {n:,} firings" for a, b, n in zip(left, right, counts, strict=True)],
        "hoverinfo": "text",
    }
    lines = [_upright(place(edge), ELSEWHERE, "dot") for edge in bands if left[0] <= edge <= right[-1]]
    if mark is not None and mark > 0:
        lines.append(_upright(place(mark), RAISED, "solid"))
    x: dict[str, Any] = {"title": _title("activation when it fires" + (" (log scale)" if log else ""))}
    if log:
        ticks = _round_values(float(left[0]), float(right[-1]))
        x |= {"tickvals": np.log10(ticks).tolist(), "ticktext": [f"{t:g}" for t in ticks]}
    return Drawn([bars], _layout(220, x, {"title": _title("firings")}, shapes=lines))


def over_vocabulary(edges: np.ndarray, counts: np.ndarray, marks: Sequence[float] = ()) -> Drawn:
    """Tokens by logit, with counts on a log axis so that the few at the ends are visible; `marks` are values to mark."""
    middle = (edges[1:] + edges[:-1]) / 2
    bars = {
        "type": "bar",
        "x": middle.tolist(),
        "y": counts.tolist(),
        "width": (0.9 * np.diff(edges)).tolist(),
        "marker": {"color": [RAISED if x >= 0 else LOWERED for x in middle]},
        "hovertext": [f"{a:+.2f} to {b:+.2f}: {n:,} tokens" for a, b, n in zip(edges[:-1], edges[1:], counts, strict=True)],
        "hoverinfo": "text",
    }
    y = {"title": _title("tokens (log scale)"), "type": "log"}
    lines = [_upright(mark, ELSEWHERE, "dot") for mark in marks]
    return Drawn([bars], _layout(200, {"title": _title("logit by weights")}, y, shapes=lines))


def _upright(x: float, colour: str, dash: str) -> dict[str, Any]:
    line = {"color": colour, "width": 1 if dash == "dot" else 2, "dash": dash}
    return {"type": "line", "x0": float(x), "x1": float(x), "y0": 0, "y1": 1, "yref": "y domain", "line": line}


def _round_values(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten between two positive values; only the powers where there would be too many."""
    powers = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
    digits = (1, 2, 5) if len(powers) <= 4 else (1,)
    return [v for p in powers for d in digits if low <= (v := d * 10.0**p) <= high]


def density(densities: np.ndarray, dense: float = 0.1) -> Drawn:
    """Histogram of firing frequencies. Silent latents have no place on a log axis; the caption counts them."""
    alive = densities[densities > 0]
    edges = np.linspace(np.floor(np.log10(alive.min())), 0, 49) if len(alive) else np.linspace(-6, 0, 49)
    counts, _ = np.histogram(np.log10(alive), edges)
    middle, powers = (edges[1:] + edges[:-1]) / 2, np.arange(np.floor(edges[0]), 1)
    bars = {
        "type": "bar",
        "x": middle,
        "y": counts,
        "marker": {"color": np.where(middle >= np.log10(dense), RAISED, MARK)},
        "hovertext": [
            f"{10**a:.2g} to {10**b:.2g} of tokens: {n:,} latents"
            for a, b, n in zip(edges[:-1], edges[1:], counts, strict=True)
        ],
        "hoverinfo": "text",
    }
    ticks = {"tickvals": powers, "ticktext": [percent(10.0**p) for p in powers]}
    return _figure(
        bars,
        300,
        {"title": _title("firing frequency"), **ticks},
        {"title": _title("latents")},
    )


def percent(share: float) -> str:
    """1 %, 0.01 %: as many digits as needed."""
    return f"{100 * share:.10f}".rstrip("0").rstrip(".") + " %"


def scatter(
    ids: np.ndarray, x: np.ndarray, y: np.ndarray, labels: Iterable[str], x_name: str, y_name: str, logs: tuple[bool, bool]
) -> Drawn:
    """Latents as points that can be clicked; `customdata` holds the id."""
    points = {
        "type": points_type(len(x)),
        "x": typed(x, "f4"),
        "y": typed(y, "f4"),
        "mode": "markers",
        "customdata": typed(ids, "i4"),
        "hovertext": hover_texts(ids, labels),
        "hovertemplate": f"%{{hovertext}}<br>{x_name} %{{x:.3g}}<br>{y_name} %{{y:.3g}}<extra></extra>",
        "marker": {"color": MARK, "size": 6, "opacity": 0.65},
        "selected": {"marker": {"color": RAISED, "opacity": 1}},
        "unselected": {"marker": {"opacity": 0.65}},
    }
    axes = []
    for name, log, values in ((x_name, logs[0], x), (y_name, logs[1], y)):
        ticks = _round_values(float(min(values)), float(max(values))) if log and len(values) else []
        labelled = {"tickvals": ticks, "ticktext": [f"{t:g}" for t in ticks]} if len(ticks) > 1 else {}
        scale = {"type": "log", **labelled} if log else {}
        axes.append({"title": _title(name), **scale})
    return _figure(points, 300, *axes)


def points_type(n: int) -> str:
    """How so many points are drawn: by WebGL only where there are too many for SVG, since not every browser has it."""
    return "scattergl" if n > 3000 else "scatter"


def hover_texts(ids: np.ndarray, labels: Iterable[str]) -> list[str]:
    """Number and label of each latent in one line of literal text; all at once, since there may be ten thousand."""
    lines = [text if len(text) <= 60 and is_seen(text) else show_line(text) for text in labels]
    literal = _literal("\n".join(lines)).split("\n") if lines else []
    return [f"#{i} {text}" for i, text in zip(ids.tolist(), literal, strict=True)]


def chosen(
    index: Index, labels: pd.Series, latents: np.ndarray, columns: tuple[str, str], names: Sequence[str]
) -> tuple[int, Drawn]:
    """How many of these latents are drawn, and the figure; latents without a value, or without a logarithm, are left out."""
    latents, logs = np.sort(latents), tuple(column in ("density", "max", "count") for column in columns)
    x, y = (index.column(column)[latents] for column in columns)
    placed = np.isfinite(x) & np.isfinite(y)
    for log, values in zip(logs, (x, y), strict=True):
        placed &= (values > 0) | (not log)
    latents, x, y = latents[placed], x[placed], y[placed]
    kept = sample(x, y) if len(x) else np.arange(0)
    return len(kept), scatter(latents[kept], x[kept], y[kept], labels.iloc[latents[kept]], *names, logs)


def living(table: pd.DataFrame) -> tuple[Drawn, int, int]:
    """Largest activation by firing frequency of the living latents, how many are drawn, and how many there are."""
    alive = np.flatnonzero(table["count"].to_numpy() > 0)
    x, y = (table[name].to_numpy(float)[alive] for name in ("density", "max"))
    kept = sample(x, y) if len(alive) else np.arange(0)
    labels = table["label"].iloc[alive[kept]]
    figure = scatter(alive[kept], x[kept], y[kept], labels, "firing frequency", "largest activation", (True, True))
    return figure, len(kept), len(alive)


def sample(x: np.ndarray, y: np.ndarray, most: int = 10_000) -> np.ndarray:
    """At most `most` indices of points, drawn with a fixed seed: sparse regions stay, crowded ones are thinned."""
    if len(x) <= most:
        return np.arange(len(x))
    ranks = [np.clip(((v - v.min()) / max(np.ptp(v), 1e-12) * 63).astype(int), 0, 63) for v in (x, y)]
    cell = ranks[0] * 64 + ranks[1]
    crowd = np.bincount(cell, minlength=4096)[cell]
    keys = np.random.default_rng(0).exponential(size=len(x)) * crowd  # weighted sampling, weight 1 / crowd
    return np.sort(np.argpartition(keys, most)[:most])


def remembered(heat: np.ndarray, tokens: Sequence[str], times: Sequence[str], form: str, signed: bool) -> Drawn:
    """Heat map of tokens by time, empty before a token; `signed` values are blue above 0 and red below."""
    most = float(np.nanmax(np.abs(heat))) or 1.0
    colours = (
        [[0, LOWERED], [0.5, "rgba(128,128,128,0.08)"], [1, RAISED]] if signed else [[0, "rgba(207,122,0,0.04)"], [1, MARK]]
    )
    trace = {
        "type": "heatmap",
        "z": [[None if np.isnan(v) else round(float(v), 5) for v in row] for row in heat],
        "zmin": -most if signed else 0,
        "zmax": most,
        "colorscale": colours,
        "colorbar": {"tickformat": form, "thickness": 8, "outlinewidth": 0},
        "hoverongaps": False,
        "customdata": [[f"{_literal(token)}<br>at {_literal(time)}" for time in times] for token in tokens],
        "hovertemplate": f"%{{customdata}}: %{{z:{form}}}<extra></extra>",
    }
    axes = []
    for names, title in ((times, "after this token"), (tokens, "of this token")):
        every = -(-len(names) // (12 if names is times else 48))
        ticks = list(range(0, len(names), every))
        axes.append(
            {
                "title": _title("further tokens" if names is times and times[0].startswith("+") else title),
                "tickvals": ticks,
                "ticktext": [_literal(show_line(names[i], 16)) for i in ticks],
                "showgrid": False,
                "zeroline": False,
            }
        )
    x, y = axes[0] | {"tickangle": -60}, axes[1] | {"autorange": "reversed"}
    return _figure(trace, 140 + 15 * min(len(tokens), 48), x, y)


def decay(
    ages: Sequence[int], profile: Sequence[float | None], state: Sequence[float], half_life: float | None = None
) -> Drawn:
    """What is left of a latent after further tokens, beside the length of all writes, with a mark at its half-life."""
    x = np.log2(ages).tolist()
    each = [("latent", profile, {"color": MARK, "width": 2})]
    if state:
        each.append(("all writes", state, {"color": ELSEWHERE, "width": 1, "dash": "dot"}))
    traces = [
        {
            "type": "scatter",
            "mode": "lines+markers",
            "x": x,
            "y": list(y),
            "name": name,
            "line": line,
            "hovertext": [
                f"{name}: {v:.0%} left after {n} tokens" if v is not None else "" for n, v in zip(ages, y, strict=True)
            ],
            "hoverinfo": "text",
        }
        for name, y, line in each
    ]
    level = {
        "type": "line",
        "x0": 0,
        "x1": 1,
        "xref": "x domain",
        "y0": 0.5,
        "y1": 0.5,
        "line": {"color": ELSEWHERE, "width": 1},
    }
    marks = [level] if half_life is None or half_life < 1 else [level, _upright(np.log2(half_life), RAISED, "solid")]
    axes = (
        {"title": _title("further tokens"), "tickvals": x, "ticktext": [f"{n}" for n in ages]},
        {
            "title": _title("left of what was added"),
            "tickformat": ".0%",
            "rangemode": "tozero",
        },
    )
    layout = {"showlegend": len(traces) > 1, "legend": {"orientation": "h", "y": 1.25}}
    return Drawn(traces, _layout(230, *axes, shapes=marks, **layout))


def curves(lines: dict[str, tuple[Sequence[float], Sequence[float]]], name: str, log: bool) -> Drawn:
    """A line per pack, over training tokens."""
    traces = [
        {"type": "scatter", "mode": "lines", "x": x, "y": y, "name": _literal(slug), "line": {"color": colour, "width": 2}}
        for (slug, (x, y)), colour in zip(lines.items(), SERIES, strict=False)
    ]
    low, high = (extreme([v for _, y in lines.values() for v in y if v > 0 or not log], default=1.0) for extreme in (min, max))
    ticks = _round_values(low, high) if log else []
    scale: dict[str, Any] = {"type": "log"} if log else {"rangemode": "tozero"}
    if len(ticks) > 1:
        scale |= {"tickvals": ticks, "ticktext": [f"{t:g}" for t in ticks]}
    elif not log and high <= 0:
        scale |= {"range": [0, 1]}
    return _figures(traces, 240, {"title": _title("tokens")}, {"title": _title(name), **scale})


def pareto(points: dict[str, tuple[float, float]]) -> Drawn:
    """FVU over L0, a named point per pack."""
    traces = [
        {
            "type": "scatter",
            "mode": "markers+text",
            "x": [x],
            "y": [y],
            "text": [_literal(slug)],
            "textposition": "top center",
            "cliponaxis": False,
            "name": _literal(slug),
            "marker": {"color": colour, "size": 11},
        }
        for (slug, (x, y)), colour in zip(points.items(), SERIES, strict=False)
    ]
    return _figures(
        traces, 280, {"title": _title("L0"), "rangemode": "tozero"}, {"title": _title("FVU"), "rangemode": "tozero"}
    )


def by_position(rows: Sequence[Mapping[str, Any]], name: str, key: str) -> Drawn:
    """A score by position in the context, with intervals; positions that are not counted are grey."""
    some = [row for row in rows if row.get(key) is not None]
    names = [f"{row['from']}" if row["from"] == row["to"] else f"{row['from']}–{row['to']}" for row in some]
    ends = [row.get("interval", {}).get(key) or (row[key], row[key]) for row in some]
    points = {
        "type": "scatter",
        "mode": "markers",
        "x": names,
        "y": [row[key] for row in some],
        "marker": {"color": [MARK if row.get("counted", True) else ELSEWHERE for row in some], "size": 8},
        "error_y": {
            "type": "data",
            "symmetric": False,
            "array": [high - row[key] for (_, high), row in zip(ends, some, strict=True)],
            "arrayminus": [row[key] - low for (low, _), row in zip(ends, some, strict=True)],
            "color": ELSEWHERE,
        },
        "hovertext": [f"{row[key]:.3g} on {row['tokens']:,} tokens" for row in some],
        "hoverinfo": "x+text",
    }
    x = {"title": _title("position in the context"), "type": "category"}
    return Drawn([points], _layout(240, x, {"title": _title(name), "rangemode": "tozero"}))


def spreads(each: dict[str, tuple[np.ndarray, np.ndarray]], log: bool) -> Drawn:
    """Distribution of one quantity in each pack, as steps; shares of the living latents."""
    traces = [
        {
            "type": "scatter",
            "mode": "lines",
            "line": {"shape": "hv", "color": colour, "width": 2},
            "x": np.concatenate([edges[:1], edges]),  # up from zero at the first edge, and down to it at the last
            "y": np.concatenate([[0.0], counts / max(counts.sum(), 1), [0.0]]),
            "name": _literal(slug),
            "fill": "tozeroy" if len(each) == 1 else "none",
        }
        for (slug, (edges, counts)), colour in zip(each.items(), SERIES, strict=False)
    ]
    ticks = {"tickvals": list(range(-6, 1, 2)), "ticktext": [f"{100 * 10.0**p:.6g} %" for p in range(-6, 1, 2)]} if log else {}
    return _figures(traces, 240, ticks, {"title": _title("share of latents"), "tickformat": ".0%"})


def _figures(traces: list[dict[str, Any]], height: int, x: dict[str, Any], y: dict[str, Any]) -> Drawn:
    """A figure of several traces, with a legend unless there is one."""
    return Drawn(
        traces, _layout(height, x, y, showlegend=len(traces) > 1, legend={"orientation": "h", "y": 1.02, "yanchor": "bottom"})
    )


def _literal(text: str) -> str:
    """Text that Plotly shows literally: of the entities it knows &amp; &lt; &gt; and not &quot;."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")

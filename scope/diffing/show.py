"""A comparison drawn: figure, page, and the verdict for a notebook."""

from typing import Any

from scope.escape import escape

HEADINGS = {
    "sites": "Activations by site",
    "weights": "Weights",
    "groups": "Text",
    "tokens": "Tokens at which activations lie most apart",
    "latents": "Latents of the base's SAE that moved most",
    "updates": "Latents that the update reads and writes",
    "transfer": "The base's SAE on either model",
}


def figure(diff: Any):
    """How far apart activations are by layer, a line for each kind of site; beside it each latent's mean activation."""
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    titles = ["|tuned - base| / |base|, mean over tokens"]
    titles += ["mean activation of a latent"] if diff.latents is not None else []
    fig = make_subplots(rows=1, cols=len(titles), subplot_titles=titles)
    kinds: dict[str, list[tuple[int, float]]] = {}
    for row in diff.sites:
        block, _, kind = row.site.removeprefix("blocks.").partition(".")
        kinds.setdefault(kind if block.isdigit() else row.site, []).append((int(block) if block.isdigit() else 0, row.relative))
    for kind, points in kinds.items():
        layers, values = zip(*points, strict=True)
        fig.add_trace(go.Scatter(x=layers, y=values, mode="lines+markers", name=kind), 1, 1)
    fig.update_xaxes(title_text="layer", dtick=1, row=1, col=1)
    if diff.latents is not None:
        for moved, some in diff.latents.groupby("moved"):
            marks = {"color": "#d55e00" if moved else "#b0b0b0", "size": 6 if moved else 4}
            name = "moved beyond the null" if moved else "not beyond the null"
            texts = [f"latent {latent}" for latent in some["latent"]]
            fig.add_trace(
                go.Scattergl(x=some["base"], y=some["tuned"], mode="markers", name=name, text=texts, marker=marks), 1, 2
            )
        fig.update_xaxes(title_text="base", type="log", row=1, col=2)
        fig.update_yaxes(title_text="tuned", type="log", row=1, col=2)
    return fig.update_layout(height=420, margin={"t": 40, "b": 40})


def verdict_html(diff: Any) -> str:
    """The verdict, all text escaped."""
    lines = "".join(f"<li>{escape(line)}</li>" for line in diff.verdict())
    notes = "".join(f"<li><b>note</b>: {escape(note)}</li>" for note in diff.notes)
    return f"<p><b>{escape(diff.title())}</b></p><ul>{lines}{notes}</ul>"


def page(diff: Any, rows: int = 50) -> str:
    """A page that needs nothing else."""
    drawn = diff.plot().to_html(full_html=False, include_plotlyjs=True)
    parts = []
    for table, heading in HEADINGS.items():
        if table == "latents" and diff.latents is None:
            continue
        frame = diff.to_frame(table).head(rows)
        if len(frame):
            cells = frame.map(lambda v: f"{v:.4g}" if isinstance(v, float) else escape(v))
            parts.append(f"<h2>{heading}</h2>{cells.to_html(index=False, escape=False, border=0)}")
    return (
        f"<!doctype html><html><head><meta charset='utf-8'><title>{escape(diff.title())}</title><style>"
        "body{font-family:sans-serif;margin:2em}td,th{padding:2px 8px;text-align:right;unicode-bidi:isolate}"
        "</style></head><body>"
        f"{verdict_html(diff)}{drawn}{''.join(parts)}</body></html>"
    )

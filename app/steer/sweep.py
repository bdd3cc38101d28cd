"""The Sweep view: its settings, expected time, scores by strength beside the controls, and all texts."""

from typing import Any

import pandas as pd
import streamlit as st
from scope.app.kit import figures
from scope.app.kit.plain import number, plain, show_line, whole
from scope.app.kit.tiles import tiles
from scope.app.serve import downloads
from scope.app.steer.state import CONDITION_NAMES, Grid, condition_name, remembered
from scope.app.steer.strengths import parse_strengths

from scope.errors import EditError
from scope.steering.compare.steer import SWEPT
from scope.steering.compare.sweep import Sweep

PROMPTS = "My favourite hobby is\nThe weather today is\nOnce upon a time\nThe best way to learn is"
MEASURES = {
    "score": "harmonic mean of added promoted tokens, relevance and fluency",
    "share": "share of new tokens that the latent promotes",
    "concept": "the latent's activation, read by the unsteered model",
    "relevance": "how much the prompt predicts the text, relative to plain",
    "fluency": "likelihood without repetition, relative to plain",
    "repetition": "share of repeated 4-grams",
    "off_target": "other latents whose activation the edit changes",
    "kl": "KL to plain, nats per token",
}
STRENGTHS = {"norm": "Strengths / norm", "raw": "Strengths, raw", "max": "Strengths × largest", "part": "Parts"}
BY = {"share": "promoted tokens", "concept": "the latent's activation"}
_SHOWN = {"strength": "%.2f", "score": "%.3f", "share": "%.3f", "concept": "%.3f", "relevance": "%.2f", "fluency": "%.2f"}


def grid(unit: str = "norm") -> Grid:
    """The controls of a sweep. Strengths are in the unit of the first edit that has one.

    Raises:
        EditError: strengths that are not numbers, or fewer than two prompts.
    """
    text = st.text_area(
        "Prompts, one per line",
        height=120,
        help="One half chooses a strength, the other half scores it.",
        **remembered("sweep prompts", PROMPTS),
    )
    with st.container(horizontal=True, vertical_alignment="bottom"):
        written = st.text_input(STRENGTHS[unit], width=240, **remembered("sweep strengths", "0.25, 0.5, 0.75, 1"))
        n = st.number_input(
            "Texts each",
            1,
            16,
            step=1,
            width=110,
            help="Per prompt, each with its own random numbers",
            **remembered("sweep n", 1),
        )
        by = st.selectbox("Concept measured by", list(BY), format_func=BY.get, width=230, **remembered("sweep by", "share"))
    usual = ["random", "other", "prompt"]
    controls = st.pills(
        "Controls besides plain",
        ["random", "other", "prompt"],
        selection_mode="multi",
        wrap=True,
        format_func=lambda kind: CONDITION_NAMES[kind] + ("s, three" if kind == "random" else ""),
        help="Random directions are always included: an effect that they share is not due to this latent.",
        **remembered("sweep controls", usual),
    )
    kinds = {"plain", "steered", "random", *(controls or [])}
    conditions = tuple(name for name in SWEPT if name.partition(":")[0] in kinds)
    prompts = tuple(line.strip() for line in text.splitlines() if line.strip())
    if len(prompts) < 2:
        raise EditError("A sweep needs at least two prompts: one half chooses a strength, the other half scores it.")
    return Grid(prompts, tuple(parse_strengths(written)), int(n), conditions, by)


def cost(chosen: Grid, tokens: int, seconds: float | None) -> None:
    """How many texts the grid has, and how long it takes if that was measured."""
    summary = (
        f"{len(chosen.strengths)} strengths × {len(chosen.prompts)} prompts × {chosen.n} × {len(chosen.conditions)} conditions "
        f"= {chosen.texts:,} texts of up to {tokens} tokens"
    )
    st.caption(plain(summary + (f"; about {duration(seconds)} on this machine." if seconds is not None else ".")))


def duration(seconds: float) -> str:
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def progress(state: dict[str, Any]) -> tuple[float, str]:
    """(finished share, a line about it) from the progress of a sweep's job."""
    if "total" not in state:
        return 0.0, "Measuring the expected time."
    done, total = state["done"], state["total"]
    left = f"; about {duration(state['left'])} left" if state.get("left") is not None else ""
    return min(done / total, 1.0), f"Strength {min(int(done) + 1, total)} of {total}{left}"


def result(sweep: Sweep, key: str) -> None:
    """The chosen strength, the scores by strength and the table of texts."""
    best_strength(sweep)
    measures = st.pills(
        "Measures",
        list(MEASURES),
        selection_mode="multi",
        wrap=True,
        format_func=lambda m: m.replace("_", " "),
        **remembered("sweep measures", ["score", "share", "fluency"]),
    )
    if measures:
        drawn = _figure(sweep, tuple(measures), key)
        st.plotly_chart(drawn, config=figures.SMALL, key=f"dose {key}", alt="Each measure by strength, a line per condition")
        st.caption(
            plain("; ".join(f"{m.replace('_', ' ')}: {MEASURES[m]}" for m in measures))
            + ". Bars: 95 % bootstrap intervals over prompts. Grey: random directions of the same length."
        )
    table(sweep, key)


def best_strength(sweep: Sweep) -> None:
    """The strength that scores best on one half of the prompts, and its score on the other half beside the null."""
    if sweep.waiting:
        st.caption(plain(f"So far: {sweep.verdict()}"))
        return
    if sweep.stopped:
        st.warning(f"Stopped after {len(sweep.runs)} strengths.")
    try:
        best = sweep.best
    except EditError as refusal:
        st.warning(plain(refusal))
        return
    known = best["low"] == best["low"]
    interval = f"{best['low']:+.3f} to {best['high']:+.3f}" if known else ""
    tiles(
        [
            ("Chosen strength", f"{best['strength']:g}", "", "Has the best score on every second prompt."),
            ("Score, held out", number(best["score"], ".3f"), "", "On the prompts that did not choose the strength."),
            ("Random, held out", number(best["random"], ".3f"), "", "The null: random directions of equal length."),
            ("Difference", number(best["difference"], "+.3f"), interval, ""),
        ],
        key="sweep",
    )
    if known and best["low"] <= 0:
        st.warning(
            "The interval of the difference contains 0: these prompts do not distinguish the edit from a random direction."
        )
    elif not known:
        st.caption("Too few held-out prompts for an interval.")


def _figure(sweep: Sweep, measures: tuple[str, ...], key: str) -> Any:
    """The figure, cached per sweep and choice, since drawing takes longer than the rest of the page."""
    kept = st.session_state.setdefault("dose figures", {})
    if (key, measures) not in kept:
        while len(kept) >= 8:
            del kept[next(iter(kept))]
        figure = sweep.plot(measures)
        for note in figure.layout.annotations:
            note.text = f"{note.text}".replace("_", " ")
        kept[key, measures] = figure.update_layout(legend={"orientation": "h", "y": -0.25}, height=360)
    return kept[key, measures]


def table(sweep: Sweep, key: str) -> None:
    """A table of every text with its scores, and its CSV."""
    rows = sweep.to_frame()
    if rows.empty:
        return
    shown = pd.DataFrame({name: rows[name] for name in _SHOWN})
    shown.insert(1, "condition", [condition_name(name) for name in rows["direction"]])
    prompts = sweep.runs[0].prompts
    shown.insert(2, "prompt", [show_line(prompts[i], 40) for i in rows["prompt_index"]])
    shown.insert(3, "text", [show_line(text, 160) for text in rows["text"]])
    config = {name: st.column_config.NumberColumn(name, format=form) for name, form in _SHOWN.items()}
    config["text"] = st.column_config.TextColumn("text", width="large")
    st.dataframe(
        shown, hide_index=True, column_config=config, key=f"texts {key}", height=whole(shown, 8), alt="Every text of the sweep"
    )
    downloads.csv_button("Texts as CSV", rows, "sweep.csv", key=f"csv {key}")

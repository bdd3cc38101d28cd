"""A sweep over strengths: what it will cost, its dose-response beside the controls, the texts behind every point."""

from typing import Any

import pandas as pd
import streamlit as st
from scope.app.kit import figures
from scope.app.kit.plain import number, plain, show_line
from scope.app.serve import downloads
from scope.app.steer.state import ARM_NAMES, Grid, arm_name
from scope.app.steer.strengths import parse_strengths

from scope.errors import EditError
from scope.steering.compare.steer import SWEPT
from scope.steering.compare.sweep import Sweep

PROMPTS = "My favourite hobby is\nThe weather today is\nOnce upon a time\nThe best way to learn is"
MEASURES = {
    "score": "harmonic mean of promoted tokens added, relevance and fluency",
    "share": "share of new tokens that the latent promotes",
    "concept": "its own activation, read by the unsteered model",
    "relevance": "what the prompt says about the text, over plain",
    "fluency": "likely, not repeated, over plain",
    "repetition": "share of repeated 4-grams",
    "off_target": "other latents that the edit moves",
    "kl": "KL to plain, nats a step",
}
STRENGTHS = {"norm": "Strengths / norm", "raw": "Strengths, raw", "max": "Strengths × largest"}
BY = {"share": "promoted tokens", "concept": "the latent's own activation"}
_SHOWN = {"strength": "%.2f", "score": "%.3f", "share": "%.3f", "concept": "%.3f", "relevance": "%.2f", "fluency": "%.2f"}


def _kept(name: str, usual: Any) -> dict[str, Any]:
    key = f"steer sweep {name}"
    st.session_state.setdefault(key, usual)
    return {"key": key, "persist_state": "session"}


def grid(unit: str = "norm") -> Grid:
    """The controls of a sweep, whose strengths are in the unit of the first edit that has one.

    Raises:
        EditError: strengths that are no numbers, or fewer than two prompts.
    """
    text = st.text_area(
        "Prompts, one a line",
        height=120,
        help="One half chooses a strength, the other tells its value.",
        **_kept("prompts", PROMPTS),
    )
    with st.container(horizontal=True, vertical_alignment="bottom"):
        written = st.text_input(STRENGTHS[unit], width=240, **_kept("strengths", "0.25, 0.5, 0.75, 1"))
        n = st.number_input("Texts each", 1, 16, step=1, width=110, help="Each with its own noise", **_kept("n", 1))
        by = st.selectbox("Concept is judged by", list(BY), format_func=BY.get, width=230, **_kept("by", "share"))
    usual = ["random", "other", "prompt"]
    controls = st.pills(
        "Beside plain and steered",
        ["random", "other", "prompt"],
        selection_mode="multi",
        wrap=True,
        format_func=lambda kind: ARM_NAMES[kind] + ("s, three" if kind == "random" else ""),
        help="Random directions are always there: an effect that they have too is none of this latent.",
        **_kept("controls", usual),
    )
    kinds = {"plain", "steered", "random", *(controls or [])}
    arms = tuple(arm for arm in SWEPT if arm.partition(":")[0] in kinds)
    found = tuple(line.strip() for line in text.splitlines() if line.strip())
    if len(found) < 2:
        raise EditError("A sweep needs at least two prompts: one half chooses a strength, the other tells its value.")
    return Grid(found, tuple(parse_strengths(written)), int(n), arms, by)


def cost(chosen: Grid, tokens: int, seconds: float | None) -> None:
    """What the grid comes to, and how long it takes where that was measured."""
    told = (
        f"{len(chosen.strengths)} strengths × {len(chosen.prompts)} prompts × {chosen.n} × {len(chosen.arms)} arms = "
        f"{chosen.texts:,} texts of up to {tokens} tokens"
    )
    st.caption(plain(told + (f"; about {duration(seconds)} on this machine." if seconds is not None else ".")))


def duration(seconds: float) -> str:
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def progress(told: dict[str, Any]) -> tuple[float, str]:
    """(share that is done, a line about it) from what a sweep's job tells of itself."""
    if "total" not in told:
        return 0.0, "Measuring how long it will take."
    done, total = told["done"], told["total"]
    left = f"; about {duration(told['left'])} left" if told.get("left") is not None else ""
    return min(done / total, 1.0), f"Strength {min(int(done) + 1, total)} of {total}{left}"


def result(sweep: Sweep, key: str) -> None:
    """The chosen strength, the dose-response and the table of texts."""
    chosen(sweep)
    measures = st.pills(
        "Measures",
        list(MEASURES),
        selection_mode="multi",
        wrap=True,
        format_func=lambda m: m.replace("_", " "),
        **_kept("measures", ["score", "share", "fluency"]),
    )
    if measures:
        drawn = _figure(sweep, tuple(measures), key)
        st.plotly_chart(drawn, config=figures.SMALL, key=f"dose {key}", alt="Each measure by strength, an arm a line")
        st.caption(
            plain("; ".join(f"{m.replace('_', ' ')}: {MEASURES[m]}" for m in measures))
            + ". Bars: 95 % bootstrap intervals over prompts. Grey: random directions of the same length."
        )
    table(sweep, key)


def chosen(sweep: Sweep) -> None:
    """Which strength scores best on one half of the prompts, and what it is worth on the other, beside the null."""
    if sweep.waiting:
        st.caption(plain(sweep.verdict()))
        return
    if sweep.stopped:
        st.warning(f"Stopped: {len(sweep.runs)} of the strengths are here.")
    try:
        best = sweep.best
    except EditError as refusal:
        st.warning(plain(refusal))
        return
    with st.container(horizontal=True):
        st.metric("Chosen strength", f"{best['strength']:g}", border=True, help="Scores best on every other prompt.")
        st.metric("Score, held out", number(best["score"], ".3f"), border=True, help="On the prompts that did not choose it.")
        st.metric("Random, held out", number(best["random"], ".3f"), border=True, help="The null: directions of equal length.")
        known = best["low"] == best["low"]
        interval = f"{best['low']:+.3f} to {best['high']:+.3f}" if known else None
        st.metric("Difference", number(best["difference"], "+.3f"), interval, delta_color="off", delta_arrow="off", border=True)
    if known and best["low"] <= 0:
        st.warning("The interval of the difference holds 0: these prompts do not tell the edit from a random push.")
    elif not known:
        st.caption("Too few prompts are held out for an interval.")


def _figure(sweep: Sweep, measures: tuple[str, ...], key: str) -> Any:
    """Drawing takes longer than the rest of the page, so it is done once for each sweep and choice."""
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
    """Every text with its figures, and the table as CSV."""
    rows = sweep.to_frame()
    if rows.empty:
        return
    shown = pd.DataFrame({name: rows[name] for name in _SHOWN})
    shown.insert(1, "arm", [arm_name(name) for name in rows["direction"]])
    prompts = sweep.runs[0].prompts
    shown.insert(2, "prompt", [show_line(prompts[i], 40) for i in rows["prompt_index"]])
    shown.insert(3, "text", [show_line(text, 160) for text in rows["text"]])
    config = {name: st.column_config.NumberColumn(name, format=form) for name, form in _SHOWN.items()}
    config["text"] = st.column_config.TextColumn("text", width="large")
    st.dataframe(shown, hide_index=True, column_config=config, key=f"texts {key}", height=320, alt="Every text of the sweep")
    downloads.csv_button("Texts as CSV", rows, "sweep.csv", key=f"csv {key}")

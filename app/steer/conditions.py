"""A run's conditions side by side: coloured texts, where each differs from plain, scores, and warnings about the run."""

from collections.abc import Sequence
from typing import Any

import streamlit as st
from scope.app.kit.plain import number, plain
from scope.app.kit.tokens import row, strips
from scope.app.steer.state import condition_name

from scope.steering.compare import show
from scope.steering.compare.run import Condition, Sample
from scope.steering.compare.scores import Judged
from scope.steering.compare.steer import SteeringRun

PER_ROW = 3
KL = "KL to plain"


def colours(run: SteeringRun) -> list[str]:
    """What tokens can be coloured by: the activation of each edited latent, or the change of the next token."""
    return [*run.promoted, KL]


def draw(run: SteeringRun, by: str, key: str) -> None:
    """Every text of every condition, at most three in a row."""
    judged = run.judged() if any(condition.name == "plain" for condition in run.conditions) else {}
    largest = _largest(run, by)
    for i, sample in enumerate(run["steered"].samples):
        _prompt(run, i, sample.prompt)
        for first in range(0, len(run.conditions), PER_ROW):
            in_row = run.conditions[first : first + PER_ROW]
            columns = st.columns(PER_ROW if len(run.conditions) > PER_ROW else len(run.conditions))
            for column, condition in zip(columns, in_row, strict=False):
                with column:
                    _text(condition, i, by, largest, f"{key} {condition.name} {i}")
                    _score_line(condition.samples[i], judged.get(condition.name, [None] * (i + 1))[i], next(iter(run.promoted)))
    what = "change of the next token by the edit there, KL in nats" if by == KL else f"{by}, read by the unsteered model"
    st.caption(
        plain(
            f"Colour: {what}; darkest at {largest:.3g}. Dotted: tokens at which the edit acted. "
            "Bar: the first difference from plain."
        )
    )


def _prompt(run: SteeringRun, place: int, prompt: str) -> None:
    """The prompt, and how many of its tokens were edited."""
    touched = [
        condition
        for condition in run.conditions
        if condition.report and place < len(condition.report.edited_at) and condition.report.edited_at[place]
    ]
    edited = f" ({touched[0].report.edited_at[place][0]} of its tokens edited)" if touched else ""
    which = f"Text {place + 1}: " if len(run["steered"].samples) > 1 else ""
    st.caption(plain(f"{which}{prompt} …") + plain(edited))


def _text(condition: Condition, place: int, by: str, largest: float, key: str) -> None:
    sample = condition.samples[place]
    st.markdown(f"**{plain(condition_name(condition.name))}**")
    if not sample.new_ids:
        st.caption("The model ended the text immediately.")
        return
    readings = _readings(sample, by) or [0.0] * len(sample.pieces)
    touched = condition.report.touched(place, len(sample.pieces)) if condition.report else []
    at = None if condition.name == "plain" else sample.diverges_at
    notes = [] if condition.name == "plain" else [_difference(sample)]
    strips([row(sample.pieces, readings, largest, notes=notes, steered=touched, parts=at)], key=key, breaks=True)


def _readings(sample: Sample, by: str) -> Sequence[float]:
    if sample.scores is None:
        return []
    return sample.scores.kl_steps if by == KL else sample.scores.readings.get(by, [])


def _largest(run: SteeringRun, by: str) -> float:
    """The value of the darkest colour: the latent's maximum in the pack, otherwise the largest in these texts."""
    known = {f"latent {i}": value for units in run.strength_units.values() for i, value in units.maximum.items()}
    seen = max((v for condition in run.conditions for s in condition.samples for v in _readings(s, by)), default=0.0)
    return known.get(by) or max(seen, 1e-9)


def _difference(sample: Sample) -> str:
    at = sample.diverges_at
    return "same as plain" if at is None else f"differs from token {at + 1}"


def _score_line(sample: Sample, judged: Judged | None, target: str) -> None:
    """The scores of one text in a line; the table below explains them."""
    if sample.scores is None:
        return
    s = sample.scores
    parts = [f"concept {s.concept[target]:.2f}"]
    if judged is not None:
        parts += [f"relevance {number(judged.relevance, '.2f')}", f"fluency {judged.fluency:.2f}", f"score {judged.score:.2f}"]
    parts.append(f"repetition {s.repetition:.0%}")
    if s.off_target is not None:
        parts.append(f"off-target latents {s.off_target}")
    st.caption(plain(" · ".join(parts)))


def figures(run: SteeringRun) -> None:
    """Table of the scores of every condition, means over its texts, with what each means."""
    rows = show.figures(run)
    table: dict[str, list[Any]] = {"score": [plain(name) for name, _, _ in rows]}
    for i, condition in enumerate(run.conditions):
        table[condition_name(condition.name)] = [show.number(values[i]) for _, _, values in rows]
    table["meaning"] = [plain(meaning) for _, meaning, _ in rows]
    st.table(table, border="horizontal")


def warnings(run: SteeringRun) -> None:
    """Notes on the run: an edit without effect, too strong an edit, and so on."""
    for note in run.notes:
        if note.startswith("No effect"):
            what, _, reasons = note.partition(". ")
            st.warning(f"**{plain(what)}.**  \n{plain(reasons)}", icon=":material/block:")
        elif "times the typical" in note:
            st.warning(plain(note), icon=":material/warning:")
        else:
            st.info(plain(note))


def self_check(run: SteeringRun) -> None:
    """Each edit in its three units, then how often the hooks acted."""
    bos = "" if any(edit.positions.kind == "all" for edit in run.edits) else " BOS is not edited."
    lines = [*show.edit_lines(run), *(line + (bos if ": edited " in line else "") for line in show.self_check(run))]
    for line in lines:
        st.caption(plain(line))


def streamed(names: Sequence[str], texts: list[list[str]], places: list[Any]) -> None:
    """Draw texts while they are generated, `texts[condition][i]`, into one placeholder per condition."""
    for name, own_texts, place in zip(names, texts, places, strict=True):
        body = "  \n\n".join(plain(text) or "…" for text in own_texts)
        place.markdown(f"**{plain(condition_name(name))}**  \n{body}")

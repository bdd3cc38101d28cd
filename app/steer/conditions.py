"""The arms side by side: coloured texts, where each parts from plain, its figures, and what to know before believing it."""

from collections.abc import Sequence
from typing import Any

import streamlit as st
from scope.app.kit.plain import number, plain
from scope.app.kit.tokens import row, strips
from scope.app.steer.state import arm_name

from scope.steering.compare import show
from scope.steering.compare.run import Condition, Sample
from scope.steering.compare.scores import Judged
from scope.steering.compare.steer import SteeringRun

ABREAST = 3
KL = "KL to plain"


def colours(run: SteeringRun) -> list[str]:
    """By what tokens can be coloured: what each edit's target reads, or how far the edit moves the next token."""
    return [*run.promoted, KL]


def draw(run: SteeringRun, by: str, key: str) -> None:
    """Every text of every arm, at most three abreast."""
    judged = run.judged() if any(arm.name == "plain" for arm in run.conditions) else {}
    largest = _largest(run, by)
    for i, sample in enumerate(run["steered"].samples):
        _prompt(run, i, sample.prompt)
        for first in range(0, len(run.conditions), ABREAST):
            abreast = run.conditions[first : first + ABREAST]
            columns = st.columns(ABREAST if len(run.conditions) > ABREAST else len(run.conditions))
            for column, arm in zip(columns, abreast, strict=False):
                with column:
                    _text(arm, i, by, largest, f"{key} {arm.name} {i}")
                    _strip_of_figures(arm.samples[i], judged.get(arm.name, [None] * (i + 1))[i], next(iter(run.promoted)))
    what = "how far the edit moves the next token there, nats" if by == KL else f"{by}, read by the unsteered model"
    st.caption(
        plain(f"Colour: {what}; darkest at {largest:.3g}. Dotted: tokens at which the edit acted. Bar: parts from plain.")
    )


def _prompt(run: SteeringRun, place: int, prompt: str) -> None:
    """The prompt, and how much of it each edited arm touched."""
    touched = [
        arm for arm in run.conditions if arm.report and place < len(arm.report.edited_at) and arm.report.edited_at[place]
    ]
    edited = f" ({touched[0].report.edited_at[place][0]} of its tokens edited)" if touched else ""
    which = f"Text {place + 1}: " if len(run["steered"].samples) > 1 else ""
    st.caption(plain(f"{which}{prompt} …") + plain(edited))


def _text(arm: Condition, place: int, by: str, largest: float, key: str) -> None:
    mine = arm.samples[place]
    st.markdown(f"**{plain(arm_name(arm.name))}**")
    if not mine.new_ids:
        st.caption("The model ended the text at once.")
        return
    readings = _readings(mine, by) or [0.0] * len(mine.pieces)
    touched = arm.report.touched(place, len(mine.pieces)) if arm.report else []
    at = None if arm.name == "plain" else mine.diverges_at
    notes = [] if arm.name == "plain" else [_parted(mine)]
    strips([row(mine.pieces, readings, largest, notes=notes, steered=touched, parts=at)], key=key, breaks=True)


def _readings(sample: Sample, by: str) -> Sequence[float]:
    if sample.scores is None:
        return []
    return sample.scores.kl_steps if by == KL else sample.scores.readings.get(by, [])


def _largest(run: SteeringRun, by: str) -> float:
    """What the darkest step stands for: the latent's maximum in the pack, otherwise the largest in these texts."""
    known = {f"latent {i}": value for units in run.strength_units.values() for i, value in units.maximum.items()}
    seen = max((v for arm in run.conditions for s in arm.samples for v in _readings(s, by)), default=0.0)
    return known.get(by) or max(seen, 1e-9)


def _parted(sample: Sample) -> str:
    at = sample.diverges_at
    return "equals plain" if at is None else f"parts at token {at + 1}"


def _strip_of_figures(sample: Sample, judged: Judged | None, target: str) -> None:
    """The few figures of one text; what they mean is told in the table below."""
    if sample.scores is None:
        return
    s = sample.scores
    parts = [f"concept {s.concept[target]:.2f}"]
    if judged is not None:
        parts += [f"relevance {number(judged.relevance, '.2f')}", f"fluency {judged.fluency:.2f}", f"score {judged.score:.2f}"]
    parts.append(f"repetition {s.repetition:.0%}")
    if s.off_target is not None:
        parts.append(f"off target {s.off_target}")
    st.caption(plain(" · ".join(parts)))


def figures(run: SteeringRun) -> None:
    """The scores of every arm, means over its texts; what each means stands beside it."""
    rows = show.figures(run)
    table: dict[str, list[Any]] = {"": [plain(name) for name, _, _ in rows]}
    for i, arm in enumerate(run.conditions):
        table[arm_name(arm.name)] = [show.number(values[i]) for _, _, values in rows]
    table["what it is"] = [plain(meaning) for _, meaning, _ in rows]
    st.table(table, border="horizontal")


def told(run: SteeringRun) -> None:
    """What should be known before the texts are believed."""
    for note in run.notes:
        if note.startswith("No effect"):
            what, _, reasons = note.partition(". ")
            st.warning(f"**{plain(what)}.**  \n{plain(reasons)}", icon=":material/block:")
        elif "times the typical" in note:
            st.warning(plain(note), icon=":material/warning:")
        else:
            st.info(plain(note))


def self_check(run: SteeringRun) -> None:
    """Each edit in its three units, then what the hooks counted."""
    bos = "" if any(edit.positions.kind == "all" for edit in run.edits) else " BOS is left alone."
    lines = [*show.edit_lines(run), *(line + (bos if ": edited " in line else "") for line in show.self_check(run))]
    for line in lines:
        st.caption(plain(line))


def streamed(names: Sequence[str], texts: list[list[str]], places: list[Any]) -> None:
    """Texts while they grow, `texts[arm][i]`, into one empty place an arm."""
    for name, mine, place in zip(names, texts, places, strict=True):
        body = "  \n\n".join(plain(text) or "…" for text in mine)
        place.markdown(f"**{plain(arm_name(name))}**  \n{body}")

"""A run's conditions side by side: coloured texts, where each differs from plain, scores, and warnings about the run."""

import re
from collections.abc import Sequence
from difflib import SequenceMatcher
from typing import Any

import numpy as np
import streamlit as st
from scope.app.kit.plain import number, plain
from scope.app.kit.tokens import row, strips
from scope.app.steer.state import condition_name

from scope.models.text.characters import characters
from scope.steering.compare import show
from scope.steering.compare.run import Condition, Sample
from scope.steering.compare.scores import Judged
from scope.steering.compare.steer import SteeringRun

KL = "KL to plain"
_MEANINGS = {
    "concept": "Mean activation of the edited latent on this text, read by the model without the edit.",
    "promoted": "Share of the new tokens that are among those that the latent promotes.",
    "relevance": "How much the prompt foretells this text, beside plain: 1 is as much, 0 is not at all.",
    "fluency": "How likely and how little repeated the text is, beside plain: 1 is as fluent.",
    "score": "Harmonic mean of promoted tokens added, relevance and fluency: 1 is best, and 0 where one of the three is 0.",
    "repetition": "Share of the text's sequences of four tokens that occurred in it before.",
    "off target": "How many other latents the edit moves on this text; the random direction shows what is usual.",
}
"""What each number under a text says, in a sentence."""


def colours(run: SteeringRun) -> list[str]:
    """What tokens can be coloured by: the activation of each edited latent, or the change of the next token."""
    return [*run.promoted, KL]


def draw(run: SteeringRun, by: str, key: str) -> None:
    """Every text of every condition: side by side where the page is wide enough for lines to read, else one below another."""
    judged = run.judged() if any(condition.name == "plain" for condition in run.conditions) else {}
    largest = _largest(run, by)
    verdict(run, judged)
    for i, sample in enumerate(run["steered"].samples):
        _prompt(run, i, sample.prompt)
        plainly = next((c.samples[i].pieces for c in run.conditions if c.name == "plain"), None)
        with st.container(key=f"steer texts {key} {i}"), st.container(key=f"steer row of texts {key} {i}"):
            for condition in run.conditions:
                with st.container(border=True, gap=None, key=f"steer text {key} {i} {condition.name}"):
                    scores = _scores(
                        condition.samples[i], judged.get(condition.name, [None] * (i + 1))[i], next(iter(run.promoted))
                    )
                    _text(condition, i, by, largest, plainly, scores, f"{key} {condition.name} {i}")
    what = "change of the next token by the edit there, KL in nats" if by == KL else f"{by}, read by the unsteered model"
    st.caption(
        plain(
            f"Underlined: words that plain does not have; the bar is the first difference. Colour: {what}; darkest at "
            f"{largest:.3g}. Dotted: tokens at which the edit acted. Each number explains itself under the pointer."
        )
    )


def verdict(run: SteeringRun, judged: dict[str, list[Judged]]) -> None:
    """Whether the edit did more than a random direction, in a sentence, and how little a text proves."""
    mean = {name: [one.score for one in scores if one] for name, scores in judged.items() if name.partition(":")[0] != "plain"}
    means = {name: sum(scores) / len(scores) for name, scores in mean.items() if scores}
    nulls = [means[name] for name in means if name.partition(":")[0] == "random"]
    if "steered" not in means or not nulls:
        return
    steered, null, n = means["steered"], max(nulls), len(mean["steered"])
    than = "more than" if steered > null else "no more than"
    st.markdown(
        plain(f"Steered scores {number(steered, '.2f')}, {than} a random direction of the same length ({number(null, '.2f')}).")
        + f" :gray[{'One text proves' if n == 1 else f'{n} texts prove'} little: a sweep compares many.]"
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


def _text(
    condition: Condition,
    place: int,
    by: str,
    largest: float,
    plainly: Sequence[str] | None,
    scores: list[tuple[str, str, str]],
    key: str,
) -> None:
    sample = condition.samples[place]
    st.markdown(f"**{plain(condition_name(condition.name))}**")
    if not sample.new_ids:
        st.caption("The model ended the text immediately.")
        return
    readings = _readings(sample, by) or [0.0] * len(sample.pieces)
    touched = condition.report.touched(place, len(sample.pieces)) if condition.report else []
    is_plain = condition.name == "plain" or plainly is None
    notes = [] if is_plain else [_difference(sample)]
    differs = [] if is_plain else words_changed(plainly, sample.pieces)
    at = None if is_plain else sample.diverges_at
    marks = {"steered": touched, "parts": at, "changed": differs, "scores": scores, "notes": notes}
    strips([row(sample.pieces, readings, largest, **marks)], key=key, breaks=True)


def words_changed(before: Sequence[str], after: Sequence[str]) -> list[bool]:
    """Which tokens of a text belong to words that another text does not have in their place."""
    pieces = characters(after)
    old, new = "".join(text for *_, text in characters(before)), "".join(text for *_, text in pieces)
    words = list(re.finditer(r"\S+", new))
    blocks = SequenceMatcher(None, old.split(), [word[0] for word in words], autojunk=False).get_matching_blocks()
    same = {n for block in blocks for n in range(block.b, block.b + block.size)}
    is_new = np.zeros(len(new), bool)
    for n, word in enumerate(words):
        is_new[word.start() : word.end()] = n not in same
    changed, at = [False] * len(after), 0
    for start, stop, text in pieces:
        changed[start:stop] = [bool(is_new[at : at + len(text)].any())] * (stop - start)
        at += len(text)
    return changed


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


def _scores(sample: Sample, judged: Judged | None, target: str) -> list[tuple[str, str, str]]:
    """The scores of one text, each with its meaning; the table below has all."""
    if sample.scores is None:
        return []
    s = sample.scores
    values = {"concept": f"{s.concept[target]:.2f}"}
    if target in s.share:
        values["promoted"] = f"{s.share[target]:.0%}"
    if judged is not None:
        values |= {
            "relevance": number(judged.relevance, ".2f"),
            "fluency": f"{judged.fluency:.2f}",
            "score": f"{judged.score:.2f}",
        }
    values["repetition"] = f"{s.repetition:.0%}"
    if s.off_target is not None:
        values["off target"] = f"{s.off_target}"
    return [(name, value, _MEANINGS[name]) for name, value in values.items()]


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


def places_for(names: Sequence[str]) -> list[Any]:
    """The placeholders of `streamed`, laid out as the finished texts will be."""
    places = []
    with st.container(key="steer texts live"), st.container(key="steer row of texts live"):
        for name in names:
            with st.container(border=True, key=f"steer text live {name}"):
                places.append(st.empty())
    return places

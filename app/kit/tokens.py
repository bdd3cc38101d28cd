"""Token strips: text coloured by activation, with the value of each token under the pointer.

Token text enters the page by `textContent` alone (tokens.js), so markup in a token is shown and never obeyed.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import streamlit as st
from scope.app.kit.component_files import joined

from scope.escape import direction, joins, stands_alone, visible_token
from scope.features.exports.strip import RAMPS, strength
from scope.features.pack.feature import Example
from scope.models.text.characters import characters

STEPS = 5
_HERE = Path(__file__).parent


def _colours() -> str:
    pairs = zip(RAMPS["light"], RAMPS["dark"], strict=True)
    return "\n".join(
        f".s{step} {{ background: light-dark({light[0]}, {dark[0]}); color: light-dark({light[1]}, {dark[1]}); }}"
        for step, (light, dark) in enumerate(pairs, 1)
    )


_mount = st.components.v2.component(
    "scope_tokens",
    html='<div class="strips"></div>',
    css=joined(_HERE, "tokens.css", "meaning.css") + _colours(),
    js=joined(_HERE, "meaning.js", "shown_ahead.js", "tokens.js"),
)


def row(
    tokens: Sequence[str],
    values: Sequence[float] | np.ndarray,
    largest: float,
    peak: int | None = None,
    *,
    value: str = "",
    notes: Sequence[str] = (),
    steered: Sequence[bool] = (),
    parts: int | None = None,
    chosen: int | None = None,
    changed: Sequence[bool] = (),
    scores: Sequence[tuple[str, str, str]] = (),
) -> dict[str, Any]:
    """One strip. Bytes that make up a character become that character, with the largest of their values.

    Args:
        largest: the value of the darkest step; steps are fifths of it.
        value: written at the right, such as the activation at the peak.
        notes: written small below, such as the document's name.
        steered: which tokens are underlined with dots: where an edit acted.
        parts: the first token that differs from another text's; marked by a bar.
        chosen: a token with a frame around it.
        changed: which tokens another text does not have; underlined.
        scores: (name, value, meaning) of numbers below the text; the meaning is shown on hover and focus.
    """
    cells, pieces = [], characters(tokens)
    for start, stop, text in pieces:
        high = max((float(v) for v in values[start:stop]), default=0.0)
        marks = ("p" if peak is not None and start <= peak < stop else "") + ("d" if any(steered[start:stop]) else "")
        marks += "x" if parts is not None and start <= parts < stop else ""
        marks += "w" if any(changed[start:stop]) else ""
        marks += "c" if chosen is not None and start <= chosen < stop else ""
        glyphs, breaks = visible_token(text), text.count("\n")
        marks += ("j" if joins(text) else "") + ("a" if stands_alone(glyphs) else "")
        cells.append([glyphs, strength(high, largest, STEPS), f"{high:.3g}" if high > 0 else "", marks, breaks, start])
    way = direction("".join(text for *_, text in pieces))
    shown = {"cells": cells, "value": value, "notes": [visible_token(note) for note in notes], "direction": way}
    return shown | ({"scores": [list(score) for score in scores]} if scores else {})


def example_row(example: Example, largest: float, window: int, unit: str = "", chosen: int | None = None) -> dict[str, Any]:
    """The strip of an example, `window` tokens to either side of its peak; 0 shows the whole example. `chosen` is an index into
    the example's tokens."""
    start, stop = first_shown(example, window), example.peak + (window or len(example.tokens)) + 1
    shade = largest or float(np.max(example.acts, initial=0.0))
    value = f"{example.value:.3g}" if example.value > 0 else "silent"
    return row(
        example.tokens[start:stop],
        example.acts[start:stop],
        shade,
        example.peak - start,
        value=value,
        notes=[part for part in (unit, f"{example.document}, token {example.offset}") if part],
        chosen=None if chosen is None else chosen - start,
    )


def first_shown(example: Example, window: int) -> int:
    """Index of the first token of an example's strip."""
    return max(0, example.peak - window) if window else 0


def strips(
    rows: list[dict[str, Any]],
    *,
    key: str,
    breaks: bool = False,
    line: bool = False,
    actions: Sequence[str] = (),
    pick: bool = False,
    on_pick: Callable[[int, int], None] | None = None,
    more: Mapping[str, Any] | None = None,
) -> Any:
    """Draw strips. Returns (row, action) in the run in which a button of `actions` was pressed, with `pick` (row, token) when a
    token was clicked, else None.

    Args:
        breaks: begin a new line at each line break, besides showing its glyph.
        line: draw each row in one line, cut at both ends, in which the peak begins at the same place.
        actions: buttons on each row.
        on_pick: called with row and token before the run that a click begins; it makes tokens clickable.
        more: further data of the component, such as whose strips they are.
    """

    def changed() -> None:
        picked = st.session_state[key].picked
        if on_pick is not None and isinstance(picked, list | tuple) and not isinstance(picked[1], str):
            on_pick(int(picked[0]), int(picked[1]))

    component = _mount(
        key=key,
        data=strips_data(rows, breaks, line, actions, pick or on_pick is not None) | dict(more or {}),
        on_picked_change=changed,
    )
    if not isinstance(component.picked, list | tuple):
        return None
    number, what = component.picked
    return int(number), what if isinstance(what, str) else int(what)


def strips_data(rows: list[dict[str, Any]], breaks: bool, line: bool, actions: Sequence[str], pick: bool) -> dict[str, Any]:
    """What the component draws."""
    return {"rows": rows, "breaks": breaks, "line": line, "actions": list(actions), "pick": pick}

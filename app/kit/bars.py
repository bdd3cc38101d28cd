"""Bars of tokens with signed values, drawn by a component: Plotly would redraw its figures for every latent.

Token text enters the page by `textContent` alone (bars.js), so markup in a token is shown and never obeyed.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import streamlit as st
from scope.app.kit.component_files import joined
from scope.app.kit.palette import lowered_or_raised
from scope.app.kit.plain import show_line

from scope.escape import visible_token

_HERE = Path(__file__).parent

_mount = st.components.v2.component(
    "scope_bars",
    html='<div class="title"></div><div class="bars" role="list"></div>',
    css=joined(_HERE, "bars.css", "meaning.css"),
    js=joined(_HERE, "meaning.js", "shown_ahead.js", "bars.js"),
)


def bar(token: str, value: float, largest: float, form: str = "+.2f") -> dict[str, Any]:
    """One bar: the token cut to 18 glyphs and whole, its value as text, its length as a share of the largest, its colour."""
    glyphs = visible_token(token, mark_space=True)
    length = abs(float(value)) / largest if largest > 0 else 0.0
    return {
        "name": show_line(glyphs, 18),
        "whole": glyphs,
        "value": f"{value:{form}}",
        "length": length,
        "colour": lowered_or_raised(value),
    }


def signed_bars(
    pairs: Sequence[tuple[str, float]], form: str = "+.2f", *, key: str, alt: str, title: tuple[str, str] = ("", "")
) -> None:
    """Draw tokens with their values, in the order given; the colour shows the sign, which is written too.

    Args:
        form: format of a value.
        key: the same for every latent, so that the bars are updated and not replaced.
        alt: the description for screen readers.
        title: a small title and its meaning.
    """
    draw(bars_data(pairs, form, alt, title), key)


def bars_data(
    pairs: Sequence[tuple[str, float]], form: str = "+.2f", alt: str = "", title: tuple[str, str] = ("", "")
) -> dict[str, Any]:
    """What the component draws."""
    largest = max((abs(float(value)) for _, value in pairs), default=0.0)
    bars = [bar(token, value, largest, form) for token, value in pairs]
    return {"bars": bars, "alt": alt, "title": list(title)}


def draw(data: dict[str, Any], key: str) -> None:
    _mount(key=key, data=data)

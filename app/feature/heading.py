"""The heading of the latent page: number and label, where the label comes from, flags, and the place in the last list."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import streamlit as st
from scope.app.feature import notes
from scope.app.kit.component_files import joined
from scope.app.kit.plain import show_line

from scope.escape import visible_token
from scope.features.pack.feature import Feature

LONGEST = 160
"""Most glyphs of a label in the heading; its tooltip shows the rest."""

WARNS = ("dead", "dense", "duplicate")
"""Flags of latents that tell little."""

_HERE = Path(__file__).parent

_mount = st.components.v2.component(
    "scope_heading",
    html='<div class="scope-heading"></div>',
    css=(_HERE / "heading.css").read_text(encoding="utf-8"),
    js=joined(_HERE, "meaning.js", "shown_ahead.js", "heading.js"),
    isolate_styles=False,  # one heading of the page, where everything that looks for headings finds it
)


def heading(feature: Feature, label: Any, place: str) -> dict[str, Any]:
    """What the component draws.

    Args:
        label: the label that was given by hand or imported, or None.
        place: where the latent stands in the last list; "" without a list.
    """
    return {
        "number": f"#{feature.id}",
        "label": show_line(feature.label, LONGEST),
        "whole": visible_token(feature.label) if len(feature.label) > LONGEST else "",
        "source": notes.source(feature, label),
        "flags": [[flag, flag in WARNS] for flag in feature.flags],
        "place": place,
    }


def draw(data: dict[str, Any], on_edit: Callable[[], None]) -> None:
    """Draw the heading; `on_edit` is called before the run that a press of "Edit label" begins."""
    _mount(key="heading", data=data, on_edit_change=on_edit)

"""Tiles: a number with its name, a note below it and its meaning as a tooltip.

Drawn by one component: Streamlit's own metric loads a library of charts, which takes the browser a tenth of a second.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import streamlit as st
from scope.app.kit.component_files import joined

_HERE = Path(__file__).parent

_mount = st.components.v2.component(
    "scope_tiles",
    html='<dl class="tiles"></dl>',
    css=joined(_HERE, "tiles.css", "meaning.css"),
    js=joined(_HERE, "meaning.js", "shown_ahead.js", "tiles.js"),
)


def tiles(rows: Iterable[tuple[str, str, str, str]], *, key: str, border: bool = True) -> None:
    """Draw a row of tiles from (name, value, note, meaning); an empty note or meaning is left out.

    Args:
        key: the same for every latent or run, so that the tiles are updated and not replaced.
        border: with False, the tiles are small and without a frame.
    """
    draw(tiles_data(rows, border), key)


def tiles_data(rows: Iterable[tuple[str, str, str, str]], border: bool = True) -> dict[str, Any]:
    """What the component draws."""
    return {"tiles": [list(row) for row in rows], "border": border}


def draw(data: dict[str, Any], key: str) -> None:
    _mount(key=f"tiles {key}", data=data)

"""Tiles: a number with its name, a note below it and its meaning as a tooltip.

Drawn by one component: Streamlit's own metric loads a library of charts, which takes the browser a tenth of a second.
"""

from collections.abc import Iterable
from pathlib import Path

import streamlit as st
from scope.app.kit.component_files import joined

_HERE = Path(__file__).parent

_mount = st.components.v2.component(
    "scope_tiles",
    html='<dl class="tiles"></dl>',
    css=joined(_HERE, "tiles.css", "meaning.css"),
    js=joined(_HERE, "meaning.js", "tiles.js"),
)


def tiles(rows: Iterable[tuple[str, str, str, str]], *, key: str, border: bool = True) -> None:
    """Draw a row of tiles from (name, value, note, meaning); an empty note or meaning is left out.

    Args:
        key: the same for every latent or run, so that the tiles are updated and not replaced.
        border: with False, the tiles are small and without a frame.
    """
    _mount(key=f"tiles {key}", data={"tiles": [list(row) for row in rows], "border": border})

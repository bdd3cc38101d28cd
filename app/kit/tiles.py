"""Tiles: a number with its name, a note below it and its meaning as a tooltip."""

from collections.abc import Iterable

import streamlit as st


def tiles(rows: Iterable[tuple[str, str, str, str]], border: bool = True) -> None:
    """Draw a row of tiles from (name, value, note, meaning); an empty note or meaning is left out."""
    with st.container(horizontal=True, gap="small"):
        for name, value, note, meaning in rows:
            st.metric(name, value, note or None, delta_color="off", delta_arrow="off", help=meaning or None, border=border)

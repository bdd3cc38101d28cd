"""The lines of Python beside each panel that give the same numbers."""

from collections.abc import Mapping

import streamlit as st


def copy_as_python(lines: str, key: str) -> None:
    """A button that shows code to copy."""
    with st.popover("Python", icon=":material/code:", type="tertiary", key=key):
        st.code(lines, language="python")


def opening(folder: str) -> str:
    """The lines that open a pack."""
    return f"from scope import Pack\n\npack = Pack.open({folder!r})\n"


def openings(packs: Mapping[str, object]) -> str:
    """The lines that open several packs, by name."""
    lines = "".join(f"    {name!r}: Pack.open({str(folder)!r}),\n" for name, folder in packs.items())
    return f"from scope import Pack\n\npacks = {{\n{lines}}}\n"


def heading(title: str, lines: str, key: str, *, meaning: str | None = None) -> None:
    """A panel's title with its lines of Python beside it."""
    with st.container(horizontal=True, vertical_alignment="center", gap="small", key=f"heading {key}"):
        st.header(title, anchor=False, help=meaning, width="content")
        copy_as_python(lines, key)

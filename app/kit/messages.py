"""Refusals and damage as pages show them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import streamlit as st
from scope.app.kit.plain import plain

from scope.errors import PackError, ScopeError


def refuse(refusal: ScopeError) -> None:
    """A refusal as pages show it: what is wrong, then the way out to be copied."""
    what, _, way_out = str(refusal).partition("\n")
    st.error(plain(what), icon=":material/error:")
    if way_out:
        st.code(way_out.strip("\n"), language=None)


@contextmanager
def guarded() -> Iterator[None]:
    """Damage in one part of a pack is told in that panel; the others stand."""
    try:
        yield
    except PackError as damage:
        what, _, way_out = str(damage).partition("\n")
        st.warning(plain(what), icon=":material/healing:")
        if way_out:
            st.code(way_out.strip("\n"), language=None)


def written(action: Callable[[], None]) -> None:
    """Write; a refusal, as for a folder that cannot be written, is kept to be told on the page."""
    try:
        action()
    except PackError as refusal:
        st.session_state["not written"] = str(refusal)


def refused() -> None:
    """Tell what could not be written, once."""
    if refusal := st.session_state.pop("not written", None):
        st.error(plain(refusal), icon=":material/edit_off:")

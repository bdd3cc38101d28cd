"""Error messages: refusals of the library, damaged parts of a pack, notes that could not be written."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import streamlit as st
from scope.app.kit.plain import plain

from scope.errors import PackError, ScopeError


def show_refusal(refusal: ScopeError, box: Callable[..., Any] = st.error, icon: str = ":material/error:") -> None:
    """Show a refusal: what is wrong, then the way out as text to copy."""
    what, _, way_out = str(refusal).partition("\n")
    box(plain(what), icon=icon)
    if way_out:
        st.code(way_out.strip("\n"), language=None, wrap_lines=True)


@contextmanager
def guarded() -> Iterator[None]:
    """Show damage in one part of a pack within its panel; the other panels still work."""
    try:
        yield
    except PackError as damage:
        show_refusal(damage, st.warning, ":material/healing:")


def try_to_write(action: Callable[[], None]) -> bool:
    """Write a note, and say whether that worked; if not, as in a read-only folder, `show_write_error` says why."""
    try:
        action()
    except (PackError, OSError) as refusal:
        st.session_state["not written"] = str(refusal)
        return False
    return True


def show_write_error() -> None:
    """Show once what could not be written."""
    if refusal := st.session_state.pop("not written", None):
        st.error(plain(refusal), icon=":material/edit_off:")


def warn_of_poor_fit(fvu: float, text: str) -> None:
    """Warn where the SAE leaves more than half of a text unexplained."""
    if fvu > 0.5:
        explained = max(0.0, 1 - fvu)
        st.warning(f"The SAE explains only {explained:.0%} of {text}: where a latent is silent, that means little.")


_TURNING = re.compile("[\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def show_turning_marks(text: str | None) -> None:
    """Under a field, its text with the marks that change the reading direction made visible: a browser obeys them in fields,
    where no style can stop it, so what a field shows may stand in another order than what a model reads."""
    if text and _TURNING.search(text):
        st.caption(f"With marks that turn the reading direction, in the order in which it is read: {plain(text)}")

"""Keyboard shortcuts that belong to no button: arrows, digits, and letters that focus a field."""

from collections.abc import Callable, Sequence
from pathlib import Path

import streamlit as st
from scope.app.kit.component_files import joined

_HERE = Path(__file__).parent

_mount = st.components.v2.component("scope_keys", js=joined(_HERE, "typing.js", "keys.js"), html="<span></span>")

SHORTCUTS = {
    "J, K or the arrows": "next and previous latent of the list",
    "A": "a random latent",
    "E": "edit the label; Enter saves it",
    "X": "star",
    "S": "steer with it",
    "T": "type a text to test",
    "N": "the next latent that nobody labelled",
    "1, 2, 3, 4": "top, bands, random, near misses",
}
"""The list under "Keys" on the Feature page."""


def keys(
    names: dict[str, str],
    *,
    key: str,
    focus: str = "",
    fields: Sequence[str] = (),
    on_key: Callable[[str], None] = lambda name: None,
) -> str | None:
    """The name of the key that was pressed in this run, else None. Keys are ignored while the reader types.

    Args:
        names: name by key, as browsers call keys; a name "focus LABEL" puts the cursor into the field of that label.
        focus: label of a field that gets the cursor now.
        fields: names of keys that ask for such a field; until it has come, no key acts.
        on_key: gets the name before the run that the key begins.
    """

    def changed() -> None:
        on_key(st.session_state[key].pressed)

    with st.container(key="frame keys"):
        component = _mount(key=key, data={"keys": names, "focus": focus, "fields": list(fields)}, on_pressed_change=changed)
    return component.pressed


def keys_popover() -> None:
    """A button that lists the shortcuts."""
    with st.popover("Keys", icon=":material/keyboard:", type="tertiary"):
        st.markdown("  \n".join(f"**{key}** {does}" for key, does in SHORTCUTS.items()))

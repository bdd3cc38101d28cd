"""Keys for what is no button: arrows that walk, digits that choose, a letter that puts the cursor into a field."""

from collections.abc import Callable
from pathlib import Path

import streamlit as st

_HERE = Path(__file__).parent

_mount = st.components.v2.component("scope_keys", js=(_HERE / "keys.js").read_text(encoding="utf-8"), html="<span></span>")

TOLD = {
    "J, K or the arrows": "next and previous latent of the list",
    "A": "a latent at random",
    "E": "edit the label; Enter keeps it",
    "X": "star",
    "S": "steer with it",
    "T": "write a text to test",
    "1, 2, 3, 4": "top, bands, random, near misses",
}
"""What is told under "Keys" on a latent's page."""


def keys(names: dict[str, str], *, key: str, focus: str = "", on_key: Callable[[str], None] = lambda name: None) -> str | None:
    """The name of the key that was pressed in this run, else None. None is heard while somebody types.

    Args:
        names: name by key, as the browser calls keys; a name "focus LABEL" puts the cursor into the field of that label.
        focus: label of a field that gets the cursor at once.
        on_key: gets the name before the run that the key begins.
    """

    def heard() -> None:
        on_key(st.session_state[key].pressed)

    with st.container(height=1, border=False):
        done = _mount(key=key, data={"keys": names, "focus": focus}, on_pressed_change=heard)
    return done.pressed


def told() -> None:
    """Which keys there are."""
    with st.popover("Keys", icon=":material/keyboard:", type="tertiary"):
        st.markdown("  \n".join(f"**{key}** {does}" for key, does in TOLD.items()))

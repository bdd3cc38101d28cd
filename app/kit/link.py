"""A button that shows the whole address of a page, to copy."""

from collections.abc import Sequence
from pathlib import Path

import streamlit as st
from scope.app.kit.component_files import joined

_HERE = Path(__file__).parent

_mount = st.components.v2.component(
    "scope_link",
    html='<div class="link"><code></code><button type="button"></button></div>',
    css=joined(_HERE, "link.css"),
    js=joined(_HERE, "link.js"),
)


def link_popover(address: str, live: Sequence[str] = ()) -> None:
    """Draw the button.

    Args:
        address: a whole address.
        live: parameters that are taken from the browser's own address when the button is pressed.
    """
    with st.popover("Link", icon=":material/link:", type="tertiary"):
        _mount(data={"address": address, "live": list(live)})

"""Heat strips: a row a latent, a column a token, with the value under the pointer or the cursor.

Labels and tokens enter the page by `textContent` alone (heat.js), so markup in them is shown and never obeyed.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import streamlit as st

from scope.escape import visible_token

_HERE = Path(__file__).parent
_mount = st.components.v2.component(
    "scope_heat",
    html='<div class="heat"></div>',
    css=(_HERE / "heat.css").read_text(encoding="utf-8"),
    js=(_HERE / "heat.js").read_text(encoding="utf-8"),
)


def heat_row(name: str, label: str, values: Sequence[float] | np.ndarray, shares: np.ndarray) -> dict[str, Any]:
    """The strip of one latent.

    Args:
        values: its activation on each token.
        shares: the same as shares of its maximum, 0 to 1; they are the colour.
    """
    cells = [
        [round(float(share), 3), f"{value:.3g}, {share:.0%} of its maximum"] if value > 0 else [0, ""]
        for value, share in zip(values, shares, strict=True)
    ]
    return {"name": name, "label": visible_token(label), "cells": cells}


def heat(strips: list[dict[str, Any]], tokens: Sequence[str], *, key: str, chosen: int | None = None) -> int | None:
    """Draw strips below their tokens. Returns the row whose name was pressed in this run, else None.

    Args:
        chosen: the column that is framed.
    """
    shown = [visible_token(token, mark_space=True) for token in tokens]
    component = _mount(key=key, data={"strips": strips, "tokens": shown, "chosen": chosen}, on_picked_change=lambda: None)
    return None if component.picked is None else int(component.picked)

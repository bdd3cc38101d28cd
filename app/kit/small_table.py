"""Tables of some dozen rows, sorted by a click on a column's name.

Drawn by a component as a table of HTML: Streamlit's grid, made for millions of rows, takes the browser a tenth of a second.
Text enters the page by `textContent` alone (small_table.js), so markup in a token is shown and never obeyed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import streamlit as st
from scope.app.kit.component_files import joined
from scope.app.kit.plain import number

_HERE = Path(__file__).parent

_mount = st.components.v2.component(
    "scope_small_table",
    html='<div class="scroll" tabindex="0" role="group"><table><thead></thead><tbody></tbody></table></div>',
    css=joined(_HERE, "meaning.css", "small_table.css"),
    js=joined(_HERE, "meaning.js", "small_table.js"),
)


@dataclass(frozen=True)
class Column:
    """A column's name, its values, the format of numbers ("" for text), and what it means, as a tooltip."""

    name: str
    values: Sequence[str] | Sequence[int] | Sequence[float]
    form: str = ""
    meaning: str = ""


def text_columns(frame: pd.DataFrame) -> list[Column]:
    """The columns of a table of texts."""
    return [Column(name, frame[name].tolist()) for name in frame]


def small_table(columns: Sequence[Column], *, key: str, alt: str) -> None:
    """Draw a table.

    Args:
        key: the same for every latent, so that the table is updated and not replaced.
        alt: the description for screen readers.
    """
    drawn = [
        {
            "name": column.name,
            "meaning": column.meaning,
            "texts": [number(value, column.form) if column.form else f"{value}" for value in column.values],
            "numbers": [float(value) for value in column.values] if column.form else None,
        }
        for column in columns
    ]
    _mount(key=key, data={"table": drawn, "alt": alt})

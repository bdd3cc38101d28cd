"""Latents as a file to take along. Files are written when the button is pressed, not before: pages stay fast."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import streamlit as st
from scope.app.kit.plain import show_line

from scope.features.exports.export import SUFFIX, export
from scope.features.exports.page import MOST
from scope.features.exports.tables import csv_cell
from scope.features.face import Pack

OFFERED = {
    "csv": ("CSV", "text/csv", "the table; no cell can be run as a formula"),
    "parquet": ("Parquet", "application/vnd.apache.parquet", "the table, lists as lists"),
    "json": ("JSON", "application/json", "everything: rows, histograms, examples, relations, notes"),
    "html": ("HTML", "text/html", "cards on one page that needs nothing else"),
}
"""(name, media type, what it holds) by format."""
WHOLE = ("csv", "parquet")
"""Formats of which the whole result is taken, however long."""


def written(store: Pack, to: str, latents: Sequence[int] | np.ndarray) -> bytes:
    """The bytes of an export."""
    with tempfile.TemporaryDirectory() as folder:
        return export(store, to, Path(folder) / f"latents{SUFFIX[to]}", [int(i) for i in latents]).read_bytes()


def offered(store: Pack, latents: Sequence[int] | np.ndarray) -> None:
    """A popover with a button a format; cards and JSON only of as many latents as a page or a browser holds."""
    with st.popover("Export", icon=":material/download:", type="tertiary"):
        st.caption(f"{len(latents):,} latents, in the order of the list.")
        for to, (name, media, holds) in OFFERED.items():
            much = to not in WHOLE and len(latents) > MOST
            st.download_button(
                name,
                lambda to=to: written(store, to, latents),
                f"latents{SUFFIX[to]}",
                media,
                icon=":material/download:",
                type="tertiary",
                disabled=much,
                help=f"Up to {MOST:,} latents; for more: scope export" if much else holds,
                on_click="ignore",
            )


def frame_csv(rows: pd.DataFrame) -> bytes:
    """Any table as CSV; no cell can be run as a formula."""
    texts = rows.select_dtypes(exclude="number").columns
    safe = rows.assign(**{name: [csv_cell(show_line(str(text), 10_000)) for text in rows[name]] for name in texts})
    return safe.to_csv(index_label=rows.index.name or "id").encode("utf-8")

"""Tables and latents as files to download. A file is written when its button is pressed, so that pages stay fast."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import streamlit as st

from scope.features.exports import tables
from scope.features.exports.export import SUFFIX, export
from scope.features.exports.page import MOST
from scope.features.face import Pack

OFFERED = {
    "csv": ("CSV", "text/csv", "the table; no cell can be run as a formula"),
    "parquet": ("Parquet", "application/vnd.apache.parquet", "the table, lists as lists"),
    "json": ("JSON", "application/json", "everything: rows, histograms, examples, relations, notes"),
    "html": ("HTML", "text/html", "cards on one page that needs nothing else"),
}
"""(name, media type, content) by format."""
WHOLE = ("csv", "parquet")
"""Formats that take a result of any length."""


def export_bytes(store: Pack, to: str, latents: Sequence[int] | np.ndarray) -> bytes:
    """The bytes of an export."""
    with tempfile.TemporaryDirectory() as folder:
        return export(store, to, Path(folder) / f"latents{SUFFIX[to]}", [int(i) for i in latents]).read_bytes()


def export_menu(store: Pack, latents: Sequence[int] | np.ndarray) -> None:
    """A popover with a button per format; cards and JSON only up to as many latents as a page or a browser holds."""
    with st.popover("Export", icon=":material/download:", type="tertiary"):
        st.caption(f"{len(latents):,} latents, in the order of the list.")
        for to, (name, media, holds) in OFFERED.items():
            much = to not in WHOLE and len(latents) > MOST
            st.download_button(
                name,
                lambda to=to: export_bytes(store, to, latents),
                f"latents{SUFFIX[to]}",
                media,
                icon=":material/download:",
                type="tertiary",
                disabled=much,
                help=f"Up to {MOST:,} latents; for more: scope export" if much else holds,
                on_click="ignore",
            )


def csv_button(label: str, rows: pd.DataFrame, file: str, key: str) -> None:
    """A button that downloads a table."""
    icon = ":material/download:"
    st.download_button(label, lambda: tables.csv(rows), file, "text/csv", icon=icon, type="tertiary", key=key)

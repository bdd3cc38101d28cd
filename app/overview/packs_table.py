"""The table of all open packs: model, site, scores and size of each, or why it cannot be opened."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import streamlit as st
from scope.app.kit.plain import short_name, show_line
from scope.app.serve import pack_facts

from scope.features.face import Pack


def row(store: Pack) -> dict[str, Any]:
    """The row of a pack. Scores of the evaluation are None without one."""
    manifest, own = store.manifest, pack_facts.sae_scores(store)
    counts = store.read_columns(["count"])["count"]
    return {
        "state": "ready",
        "model": short_name(store.model_name),
        "site": store.site,
        "kind": store.dictionary.kind or "",
        "latents": store.d_sae,
        "L0": float(counts.sum() / max(store.n_tokens, 1)),
        "FVU": own.get("fvu"),
        "recovered": own.get("recovered_vs_mean"),
        "dead": float((counts == 0).mean()),
        "tokens": store.n_tokens,
        "corpus": pack_facts.corpus_name(store),
        "made": manifest.made.date[:10],
        "MB": sum(file.size for file in manifest.files.values()) / 1e6,
    }


def row_without_pack(folder: Path, refusal: str, building: tuple[int, int] | None) -> dict[str, Any]:
    """The row of a pack that is being built or cannot be opened."""
    if building is not None:
        done, total = building
        return {"state": f"being built, {done / total:.0%}"}
    return {"state": refusal.splitlines()[0].replace(f"{folder.absolute()}", "").replace(f"{folder}", "").lstrip("/ ")}


def table(rows: Mapping[str, dict[str, Any]], current: str) -> str | None:
    """Draw the table; returns the slug of the pack whose cell was clicked, if it is not the current one."""
    shown = pd.DataFrame([{"pack": slug, **row} for slug, row in rows.items()])
    texts = [name for name in ("pack", "state", "model", "site", "kind", "corpus") if name in shown]
    shown = shown.assign(**{name: [show_line(f"{text}", 60) if text == text else "" for text in shown[name]] for name in texts})
    number = st.column_config.NumberColumn
    config = {
        "latents": number(format="localized"),
        "L0": number(format="%.1f", help="Latents that fire per token, mean over the pack's tokens."),
        "FVU": number(format="%.3f", help="Fraction of variance unexplained, on the evaluation's text."),
        "recovered": number(
            "loss recovered", format="percent", help="Share of the loss that mean-ablation of the site adds and the SAE avoids."
        ),
        "dead": number(format="percent", help="Share of latents that never fired."),
        "tokens": number(format="localized"),
        "MB": number(format="%.1f"),
    }
    picked = st.dataframe(
        shown,
        hide_index=True,
        column_config={name: column for name, column in config.items() if name in shown},
        on_select="rerun",
        selection_mode="single-cell",
        key=f"packs {current}",  # a choice ends with the pack it led away from
        alt=f"{len(shown)} packs; a click on a row opens one",
    )
    cells = picked.selection.cells
    slug = list(rows)[cells[0][0]] if cells else None
    return slug if slug != current else None

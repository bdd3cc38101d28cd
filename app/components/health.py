"""The few figures that say whether a dictionary is worth reading, each with what it should be compared to."""

from typing import Any

import pandas as pd

from app.components.plain import number
from scope.features.store import FeatureStore


def dead_share(store: FeatureStore) -> float:
    return float((store.table["count"] == 0).mean())


def l0(store: FeatureStore) -> float:
    """Latents that fire per token, from the pack's own counts."""
    return float(store.table["density"].sum())


def start_here(table: pd.DataFrame) -> dict[str, int]:
    """A few latents worth opening first, by what makes them so; chosen from the table alone."""
    flagged = table["flags"].str.contains("dead|dense|rare|duplicate")
    living = table[~flagged] if (~flagged).any() else table[table["count"] > 0]
    if living.empty:
        return {}
    broad = living[living["n_tokens_half"] >= 3]
    found: dict[str, int] = {}
    kinds = {
        "Says what it will write": (living, "out_score"),
        "Its label explains it best": (living, "label_score"),
        "One idea, many tokens": (broad[broad["out_score"].rank(pct=True) > 0.5], "logit_kurtosis"),
        "Fires hardest": (living, "max"),
    }
    for name, (rows, column) in kinds.items():
        rows = rows[column].drop(index=list(found.values()), errors="ignore").dropna()
        if len(rows):
            found[name] = int(rows.idxmax())
    return found


def tiles(store: FeatureStore) -> list[tuple[str, str, str, str]]:
    """(name, value, what to compare it to, what it means) for the top of the overview."""
    rows = [
        ("Latents", f"{store.d_sae:,}", f"{dead_share(store):.1%} never fired", "Units of the dictionary."),
        ("L0", number(l0(store)), f"of {store.d_sae:,}", "Latents that fire on a token, mean over the pack's tokens."),
        ("Tokens read", f"{store.n_tokens:,}", "", "Positions the pack was collected from; special tokens are left out."),
    ]
    return rows + [row for row in reported(store.health or {}) if row]


def reported(health: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    return []

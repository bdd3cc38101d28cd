"""The few figures that say whether a dictionary is worth reading, each with what it should be compared to."""

from typing import Any

import numpy as np
import pandas as pd

from app.components.plain import number
from scope.features.store import FeatureStore


def dead_share(store: FeatureStore) -> float:
    return float((store.table["count"] == 0).mean())


def l0(store: FeatureStore) -> float:
    """Latents that fire per token, from the pack's own counts."""
    return float(store.table["density"].sum())


def start_here(store: FeatureStore) -> dict[str, int]:
    """A few latents worth opening first, by what makes them so; chosen from the table alone."""
    index = store.index
    fired = index.column("count") > 0
    living = fired & ~index.flagged(("dead", "dense", "rare", "duplicate"))
    living = living if living.any() else fired
    score = index.column("out_score")
    known = score[living & ~np.isnan(score)]
    broad = living & (index.column("n_tokens_half") >= 3) & (score >= (np.median(known) if len(known) else np.inf))
    steerable = np.zeros(store.d_sae, bool)
    steerable[store.steerable(1).index] = True
    found: dict[str, int] = {}
    for name, among, column in (
        ("Says what it will write", steerable, "out_score"),
        ("Its label explains it best", living, "label_score"),
        ("One idea, many tokens", broad, "logit_kurtosis"),
        ("Fires hardest", living, "max"),
    ):
        best = index.order(column)
        best = best[among[best] & ~np.isnan(index.column(column)[best])]
        latent = next((int(i) for i in best[: len(found) + 1] if i not in found.values()), None)
        if latent is not None:
            found[name] = latent
    return found


def tiles(store: FeatureStore) -> list[tuple[str, str, str, str]]:
    """(name, value, what to compare it to, what it means) for the top of the overview."""
    rows = [
        ("Latents", f"{store.d_sae:,}", f"{dead_share(store):.1%} never fired", "Units of the dictionary."),
        ("L0", number(l0(store)), f"of {store.d_sae:,}", "Latents that fire on a token, mean over the pack's tokens."),
        (
            "Tokens read",
            f"{store.n_tokens:,}",
            f"from {store.manifest.get('n_contexts', 0):,} contexts",
            "Positions the pack was collected from; special tokens are left out.",
        ),
    ]
    scored = reported(store)
    return rows[:2] + scored if scored else rows


def evaluation(store: FeatureStore) -> dict[str, Any] | None:
    """The evaluation that lies in the pack, by arm: the dictionary ("sae") and its nulls."""
    report = (store.health or {}).get("evaluation", store.health or {})
    return report if "sae" in report.get("arms", {}) else None


def reported(store: FeatureStore) -> list[tuple[str, str, str, str]]:
    """Tiles from the evaluation; [] without one."""
    report = evaluation(store)
    if report is None:
        return []
    arms, own, rows = report["arms"], report["arms"]["sae"], []
    for name, key, form, nulls, meaning in (
        (
            "FVU",
            "fvu",
            ".3f",
            ("random", "pca"),
            "Fraction of variance unexplained: 0 is perfect, 1 is what predicting the mean would score.",
        ),
        (
            "Delta loss, nats",
            "delta_loss",
            "+.3f",
            ("mean", "random"),
            "Rise of the model's loss with the reconstruction in place of the activations.",
        ),
    ):
        if own.get(key) is not None:
            beside = " · ".join(f"{ARMS[null]} {number(arms[null].get(key), form)}" for null in nulls if null in arms)
            rows.append((name, number(own[key], form), beside, meaning))
    return rows


ARMS = {"sae": "dictionary", "random": "random", "pca": "PCA", "mean": "mean-ablation", "zero": "zero-ablation"}
SCORES = {
    "l0": ("L0", ".1f"),
    "fvu": ("FVU, pooled", ".3f"),
    "fvu_per_token": ("FVU, mean over tokens", ".3f"),
    "fvu_per_dimension": ("FVU, mean over dimensions", ".3f"),
    "cosine": ("cosine", ".3f"),
    "shrinkage": ("shrinkage (1 is none)", ".3f"),
    "delta_loss": ("delta loss, nats", "+.3f"),
    "kl": ("KL, nats", ".3f"),
    "recovered_vs_mean": ("loss recovered, against mean-ablation", ".1%"),
    "recovered_vs_zero": ("loss recovered, against zero-ablation", ".1%"),
}


def scores(report: dict[str, Any]) -> pd.DataFrame:
    """Each score in a row, the dictionary beside its nulls; intervals are 95 %, over contexts."""
    arms, rows = report["arms"], []
    for key, (name, form) in SCORES.items():
        row = {"score": name}
        for arm in (a for a in ARMS if a in arms):
            row[ARMS[arm]] = "" if arms[arm].get(key) is None else number(arms[arm][key], form)
        low, high = (arms["sae"].get("interval") or {}).get(key) or (None, None)
        row["95 % interval"] = "" if low is None else f"{number(low, form)} to {number(high, form)}"
        if row[ARMS["sae"]]:
            rows.append(row)
    return pd.DataFrame(rows)

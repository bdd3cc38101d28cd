"""Notes on an evaluation: findings that a reader of its table could overlook."""

import math
from typing import Any

from scope.sae.base import SAE
from scope.sae.claims import claims_of

NULLS = {
    "pca": "PCA with as many components",
    "random": "a random dictionary",
    "mean": "mean-ablation",
    "random_model": "the same dictionary on a model of random weights",
}
FEW_UNITS = 20


def notes_of(
    arms: dict[str, dict[str, Any]],
    counted: dict[str, Any],
    latents: dict[str, Any],
    positions: list[dict[str, Any]],
    sae: SAE,
) -> list[str]:
    own = arms["sae"]
    notes = _no_better(own, arms)
    if not set(NULLS) & set(arms):
        notes.append("Scored without baselines: there is nothing to compare these numbers with.")
    if counted[counted["units"]] < FEW_UNITS:
        notes.append(f"Intervals are over {counted[counted['units']]} {counted['units']} only: they are rough estimates.")
    if counted["units"] == "contexts":
        why = "All of it is one document" if counted["one_document"] else "The document of each token is not known"
        notes.append(f"{why}: intervals are over contexts, and may be too narrow.")
    if latents["never_fired"] > 0.2:
        notes.append(f"{latents['never_fired']:.0%} of the latents never fired on this text.")
    bias = own["length_bias"]
    if bias is None or abs(bias - 1) > 0.1:
        notes.append(f"Reconstructions are {bias or 0:.2f} times as long as they should be: is a scale missing?")
    return notes + _left_out(own) + _early(own, positions) + _declared(own, sae)


def _no_better(scores: dict[str, Any], arms: dict[str, dict[str, Any]]) -> list[str]:
    notes = []
    for null, name in NULLS.items():
        if null not in arms:
            continue
        if scores["fvu"] >= arms[null]["fvu"]:
            notes.append(f"FVU is no better than that of {name}: {scores['fvu']:.3f} beside {arms[null]['fvu']:.3f}.")
        measure = "delta_loss" if "delta_loss" in scores else "output_change"
        if scores.get(measure, -math.inf) >= arms[null].get(measure, math.inf) and measure == "output_change":
            notes.append(f"What the model gives changes no less with it than with {name} ({arms[null][measure]:.3f}).")
        elif scores.get(measure, -math.inf) >= arms[null].get(measure, math.inf):
            notes.append(f"Delta loss is no better with it than with {name} ({arms[null]['delta_loss']:.3f}).")
    return notes


def _left_out(scores: dict[str, Any]) -> list[str]:
    notes = []
    if "with_bos" in scores and scores["with_bos"]["fvu"] > 2 * scores["fvu"] + 0.05:
        notes.append(f"With position 0 counted, FVU would be {scores['with_bos']['fvu']:.2f}: it was not trained on <bos>.")
    usual = scores["without_outliers"]
    if usual["left_out"] and not 0.9 < usual.get("fvu", 0.0) / max(scores["fvu"], 1e-12) < 1.1:
        notes.append(
            f"{usual['left_out']} counted tokens have a {usual['rule']}: FVU is {scores['fvu']:.3f} with them and "
            f"{usual.get('fvu', math.nan):.3f} without."
        )
    return notes


def _early(scores: dict[str, Any], positions: list[dict[str, Any]]) -> list[str]:
    """Notes on positions where the first tokens of a context are much worse than the mean (P8)."""
    bad = [row for row in positions if row["counted"] and row["to"] <= 8 and (row["fvu"] or 0) > 2 * scores["fvu"] + 0.02]
    if not bad:
        return []
    worst = max(bad, key=lambda row: row["fvu"])
    return [f"At position {worst['from']} of a context FVU is {worst['fvu']:.2f}, beside {scores['fvu']:.2f} on average."]


def _declared(scores: dict[str, Any], sae: SAE) -> list[str]:
    """Notes on declared numbers that this evaluation does not reproduce (P30)."""
    claims, notes = claims_of(sae.provenance), []
    when = "at the end of training it was" if claims.get("from") == "its training" else "the declared value is"
    for name in ("l0", "fvu"):
        now, then = scores[name], claims.get(name)
        if isinstance(then, int | float) and then > 0 and abs(math.log(max(now, 1e-9) / then)) > math.log(1.3):
            notes.append(f"{name} is {now:.3g} here; {when} {then:.3g}.")
        if isinstance(then, list | tuple) and not then[0] / 1.3 <= now <= then[1] * 1.3:
            notes.append(f"{name} is {now:.3g} here; {when} {then[0]:g} to {then[1]:g}.")
    return notes

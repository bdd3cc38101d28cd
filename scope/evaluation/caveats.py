"""The verdict on an evaluation in words, and notes on it: findings that a reader of its table could overlook."""

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


USABLE, WEAK = (0.9, 0.8), (0.7, 0.5)
"""Shares kept of what zero and mean ablation lose."""
DEAD, DENSE = 0.2, 0.1


def verdict(arms: dict[str, dict[str, Any]], latents: dict[str, Any]) -> str:
    """One line of words on an evaluation, decided by how much is kept of the loss that an ablation costs (or, of a model that
    gives vectors, of the change that it makes), and by whether the SAE beats its baselines:

        Usable       at least 90 % of what zero ablation loses is kept and 80 % of what mean ablation loses
        Weak         at least 70 % and 50 %
        Not usable   less, or FVU no better than that of a random dictionary of equal L0, or FVU at least 1
        Not judged   scored without baselines (--no-nulls), so there is nothing to judge by

    Behind the colon are the numbers themselves; "but" (or "also") adds what limits them: FVU no better than PCA's with as many
    components, more than 20 % of the latents that never fired, more than 10 % that fire on a tenth of the tokens. Nothing is
    said about whether latents are interpretable.
    """
    scores = arms["sae"]
    zero, mean = (_share_kept(arms, name) for name in ("zero", "mean"))
    numbers = [f"FVU {scores['fvu']:.3f}"] if zero is None else [f"keeps {zero:.0%} of {_lost(scores)}"]
    numbers += [f"L0 {scores['l0']:.0f}"] if scores.get("l0") is not None else []
    numbers += [f"{latents['never_fired']:.0%} never fired"] if "never_fired" in latents else []
    limits = []
    if latents.get("never_fired", 0.0) > DEAD:
        limits.append(f"more than {DEAD:.0%} of the latents never fired on this text")
    if "pca" in arms and scores["fvu"] >= arms["pca"]["fvu"]:
        limits.append("PCA with as many components explains as much")
    if latents.get("dense", 0.0) > DENSE:
        limits.append(f"{latents['dense']:.0%} fire on more than {latents.get('dense_above', 0.1):.0%} of the tokens")
    word = _word(scores, arms, zero, mean)
    judged = f"{word}: {', '.join(numbers)}"
    joined = "but" if word in ("Usable", "Weak") else "also"
    return f"{judged}; {joined} {', and '.join(limits)}" if limits else judged


def _word(scores: dict[str, Any], arms: dict[str, dict[str, Any]], zero: float | None, mean: float | None) -> str:
    if "random" not in arms or zero is None:
        return "Not judged"
    if scores["fvu"] >= 1 or scores["fvu"] >= arms["random"]["fvu"]:
        return "Not usable"
    for word, (of_zero, of_mean) in (("Usable", USABLE), ("Weak", WEAK)):
        if zero >= of_zero and (mean is None or mean >= of_mean):
            return word
    return "Not usable"


def _share_kept(arms: dict[str, dict[str, Any]], ablation: str) -> float | None:
    """The share of what an ablation loses that is kept; None where it was not measured or lost nothing."""
    scores = arms["sae"]
    if "output_change" in scores:
        lost = arms.get(ablation, {}).get("output_change") or math.nan
        kept = 1 - scores["output_change"] / lost
        return None if math.isnan(kept) else kept
    return scores.get(f"recovered_vs_{ablation}")


def _lost(scores: dict[str, Any]) -> str:
    return "the output that zero ablation changes" if "output_change" in scores else "the loss that zero ablation costs"

"""`verdict`: one line of words on an evaluation, by fixed rules on its numbers.

The words are decided by how much is kept of the loss that an ablation costs (or, of a model that gives vectors, of the change
that it makes), and by whether the SAE beats its baselines:

    Usable       at least 90 % of what zero ablation loses is kept and 80 % of what mean ablation loses
    Weak         at least 70 % and 50 %
    Not usable   less, or FVU no better than that of a random dictionary of equal L0, or FVU at least 1
    Not judged   scored without baselines (--no-nulls), so there is nothing to judge by

What follows the colon are the numbers themselves; "but" adds what limits them: FVU no better than PCA's with as many
components, more than 20 % of the latents that never fired, more than 10 % that fire on a tenth of the tokens. Nothing is said
about whether latents are interpretable.
"""

import math
from typing import Any

from scope.evaluation.result import Evaluation

USABLE, WEAK = (0.9, 0.8), (0.7, 0.5)
"""Shares kept of what zero and mean ablation lose."""
DEAD, DENSE = 0.2, 0.1


def verdict(evaluation: Evaluation) -> str:
    """The verdict, the numbers that it rests on, and what limits them."""
    own, arms, latents = evaluation.arms["sae"], evaluation.arms, evaluation.latents
    zero, mean = (_kept(arms, name) for name in ("zero", "mean"))
    numbers = [f"FVU {own['fvu']:.3f}"] if zero is None else [f"keeps {zero:.0%} of {_lost(own)}"]
    numbers += [f"L0 {own['l0']:.0f}"] if own.get("l0") is not None else []
    numbers += [f"{latents['never_fired']:.0%} never fired"] if "never_fired" in latents else []
    limits = []
    if "pca" in arms and own["fvu"] >= arms["pca"]["fvu"]:
        limits.append("PCA with as many components explains as much")
    if latents.get("never_fired", 0.0) > DEAD:
        limits.append(f"{latents['never_fired']:.0%} of the latents were silent")
    if latents.get("dense", 0.0) > DENSE:
        limits.append(f"{latents['dense']:.0%} fire on more than {latents.get('dense_above', 0.1):.0%} of the tokens")
    told = f"{_word(own, arms, zero, mean)}: {', '.join(numbers)}"
    return f"{told}; but {', and '.join(limits)}" if limits else told


def _word(own: dict[str, Any], arms: dict[str, dict[str, Any]], zero: float | None, mean: float | None) -> str:
    if "random" not in arms or zero is None:
        return "Not judged"
    if own["fvu"] >= 1 or own["fvu"] >= arms["random"]["fvu"]:
        return "Not usable"
    for word, (of_zero, of_mean) in (("Usable", USABLE), ("Weak", WEAK)):
        if zero >= of_zero and (mean is None or mean >= of_mean):
            return word
    return "Not usable"


def _kept(arms: dict[str, dict[str, Any]], ablation: str) -> float | None:
    """The share of what an ablation loses that is kept; None where it was not measured or lost nothing."""
    own = arms["sae"]
    if "output_change" in own:
        lost = arms.get(ablation, {}).get("output_change") or math.nan
        kept = 1 - own["output_change"] / lost
        return None if math.isnan(kept) else kept
    return own.get(f"recovered_vs_{ablation}")


def _lost(own: dict[str, Any]) -> str:
    return "the output that zero ablation changes" if "output_change" in own else "the loss that zero ablation costs"

"""Means, intervals and the choice of a strength, from the rows of a sweep."""

import math
from typing import Any

import numpy as np

from scope.errors import EditError


def by_text(table, condition: str, measure: str):
    """The measure of each text of a condition, averaged over the condition's directions."""
    return table[table["condition"] == condition].astype({measure: float}).groupby("text_index")[measure].mean()


def by_prompt(table, values) -> np.ndarray:
    """Texts of one prompt are not independent: their mean is one value."""
    prompt = table.groupby("text_index")["prompt_index"].first()
    return values.groupby(prompt.reindex(values.index)).mean().to_numpy()


def mean(values) -> float:
    """Mean of the values that are finite; nan if none is."""
    finite = np.asarray(values, dtype=float)
    finite = finite[np.isfinite(finite)]
    return float(finite.mean()) if len(finite) else math.nan


def choose(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The strength whose steered texts score best on the even prompts, and its value on the odd ones.

    Raises:
        EditError: nothing was written.
    """

    def values(strength: float, condition: str, half: int) -> dict[int, float]:
        """Prompt -> mean score of its texts."""
        scores: dict[int, list[float]] = {}
        for r in rows:
            if r["strength"] == strength and r["condition"] == condition and r["prompt_index"] % 2 == half:
                scores.setdefault(r["prompt_index"], []).append(r["score"])
        return {i: mean(v) for i, v in scores.items()}

    strengths = sorted({r["strength"] for r in rows})
    if not strengths:
        raise EditError(
            "No condition wrote anything, so there is nothing to choose a strength by. Ask for more tokens or other prompts."
        )
    best = max(strengths, key=lambda s: (mean([*values(s, "steered", 0).values()]), -abs(s)))
    there, steered, random = values(best, "steered", 0), values(best, "steered", 1), values(best, "random", 1)
    difference = np.array([steered[i] - random[i] for i in steered if i in random])
    low, high = interval(difference)
    return {
        "strength": best,
        "score_there": mean([*there.values()]),
        "chosen_on": len(there),
        "told_on": len(steered),
        "score": mean([*steered.values()]),
        "random": mean([*random.values()]),
        "difference": mean(difference),
        "low": low,
        "high": high,
    }


def interval(values: np.ndarray, seed: int = 0, draws: int = 2000) -> tuple[float, float]:
    """95 % bootstrap interval of the mean; (nan, nan) for fewer than two values."""
    values = np.asarray(values, dtype=np.float64)
    values = values[np.isfinite(values)]
    if len(values) < 2:
        return math.nan, math.nan
    picks = np.random.default_rng(seed).integers(0, len(values), (draws, len(values)))
    low, high = np.quantile(values[picks].mean(1), (0.025, 0.975))
    return float(low), float(high)

"""Means, intervals and the choice of a strength, from the rows of a sweep."""

import math
from typing import Any

import numpy as np

from scope.errors import EditError


def by_text(table, arm: str, measure: str):
    """The measure of each text of an arm, averaged over the arm's directions."""
    return table[table["arm"] == arm].astype({measure: float}).groupby("text_index")[measure].mean()


def by_prompt(table, values) -> np.ndarray:
    """Texts of one prompt are not independent: their mean is one value."""
    prompt = table.groupby("text_index")["prompt_index"].first()
    return values.groupby(prompt.reindex(values.index)).mean().to_numpy()


def mean(values) -> float:
    """Of the values that are finite; nan if none is."""
    found = np.asarray(values, dtype=float)
    found = found[np.isfinite(found)]
    return float(found.mean()) if len(found) else math.nan


def choose(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The strength whose steered texts score best on the even prompts, and its value on the odd ones.

    Raises:
        EditError: nothing was written.
    """

    def values(strength: float, arm: str, half: int) -> dict[int, float]:
        """Prompt -> mean score of its texts."""
        found: dict[int, list[float]] = {}
        for r in rows:
            if r["strength"] == strength and r["arm"] == arm and r["prompt_index"] % 2 == half:
                found.setdefault(r["prompt_index"], []).append(r["score"])
        return {i: mean(v) for i, v in found.items()}

    strengths = sorted({r["strength"] for r in rows})
    if not strengths:
        raise EditError(
            "No arm wrote anything, so there is nothing to choose a strength by. Ask for more tokens or other prompts."
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

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


def ratio_interval(sums: np.ndarray, counts: np.ndarray, seed: int = 0, draws: int = 2000) -> tuple[float, float]:
    """95 % bootstrap interval of sum(sums) / sum(counts), rows drawn anew together; (nan, nan) for fewer than two rows."""
    if len(sums) < 2:
        return math.nan, math.nan
    picks = np.random.default_rng(seed).integers(0, len(sums), (draws, len(sums)))
    low, high = np.quantile(sums[picks].sum(1) / counts[picks].sum(1), (0.025, 0.975))
    return float(low), float(high)


def wilson(share: float, n: int, z: float = 1.96) -> tuple[float, float]:
    """The 95 % interval of a share of n trials, by Wilson's score."""
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return float(np.clip(middle - half, 0, 1)), float(np.clip(middle + half, 0, 1))


def paired_p(only_first: int, only_second: int) -> float:
    """Two-sided p of McNemar's exact test, from the pairs in which one alone holds; 1 where there are none."""
    n, k = only_first + only_second, min(only_first, only_second)
    return min(1.0, 2 * sum(math.comb(n, i) for i in range(k + 1)) / 2**n) if n else 1.0

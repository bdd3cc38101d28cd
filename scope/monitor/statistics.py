"""Numbers of a detector with their intervals: AUC and paired differences of AUCs, rates, thresholds, calibration.

The interval of an AUC is DeLong's (DeLong et al. 1988), written with influence values, so that texts of one group count as one
(Obuchowski 1997) and the difference of two AUCs on the same texts is paired.
"""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

Scores = Float[np.ndarray, " text"]
Labels = Bool[np.ndarray, " text"]
Clusters = Int[np.ndarray, " text"]

Z = 1.959964
"""Standard deviations to either side of a 95 % interval."""


@dataclass(frozen=True)
class Interval:
    """A 95 % interval."""

    low: float
    high: float


@dataclass(frozen=True)
class Rate:
    """`k` of `n`, with its 95 % interval by Wilson."""

    k: int
    n: int
    interval: Interval | None = None

    @classmethod
    def of(cls, k: int, n: int) -> "Rate":
        from scipy.stats import binomtest

        if not n:
            return cls(k, n)
        ends = binomtest(k, n).proportion_ci(method="wilson")
        return cls(k, n, Interval(float(ends.low), float(ends.high)))

    @property
    def share(self) -> float:
        return self.k / self.n if self.n else math.nan

    def __str__(self) -> str:
        if self.interval is None:
            return "no such texts"
        return f"{self.share:.1%} ({self.k} of {self.n}; 95 %: {self.interval.low:.1%} to {self.interval.high:.1%})"


def auc(scores: Scores, labels: Labels) -> tuple[float, Scores]:
    """(how often a positive scores above a negative, ties counting half; the influence of each text on that share)."""
    from scipy.stats import rankdata

    n, m = int(labels.sum()), int((~labels).sum())
    if not n or not m:
        return math.nan, np.full(len(scores), math.nan)
    ranks, placed = rankdata(scores), np.empty(len(scores))
    placed[labels] = (ranks[labels] - rankdata(scores[labels])) / m  # share of the negatives below each positive
    placed[~labels] = 1 - (ranks[~labels] - rankdata(scores[~labels])) / n
    value = float(placed[labels].mean())
    return value, (placed - value) / np.where(labels, n, m)


def standard_error(influence: Scores, clusters: Clusters | None = None) -> float:
    """Standard error of a mean from the influence of each text; texts of one cluster are summed first."""
    if clusters is not None:
        influence = np.bincount(np.unique(clusters, return_inverse=True)[1], influence)
    k = len(influence)
    return math.sqrt(float((influence**2).sum()) * k / max(k - 1, 1))


def half_width(influence: Scores, clusters: Clusters | None = None) -> float:
    """Half of a 95 % interval. Given clusters, that of Student's t with as many of them, but never less than that of the texts:
    the sums of a few clusters may be alike by chance."""
    from scipy.stats import t

    of_texts = Z * standard_error(influence)
    if clusters is None:
        return of_texts
    n = len(np.unique(clusters))
    return max(of_texts, float(t.ppf(0.975, max(n - 1, 1))) * standard_error(influence, clusters))


def auc_interval(value: float, influence: Scores, labels: Labels, clusters: Clusters | None = None) -> Interval:
    """DeLong's interval on the logit scale, which stays between 0 and 1, or Newcombe's method 5 (2006) where that is wider:
    near an AUC of 1 DeLong's has no width, however few texts there are."""
    width, least = half_width(influence, clusters), _newcombe(value, int(labels.sum()), int((~labels).sum()))
    if width < 1e-9 or not 0 < value < 1:
        return least
    logit, half = math.log(value / (1 - value)), width / (value * (1 - value))
    low, high = (1 / (1 + math.exp(-min(max(x, -700), 700))) for x in (logit - half, logit + half))
    return Interval(min(low, least.low), max(high, least.high))


def _newcombe(value: float, n: int, m: int) -> Interval:
    from scipy.optimize import brentq

    more = (n + m) / 2 - 1

    def beyond(a: float) -> float:
        variance = a * (1 - a) * (1 + more * (1 - a) / (2 - a) + more * a / (1 + a)) / (n * m)
        return abs(value - a) - Z * math.sqrt(max(variance, 0))

    low = float(brentq(beyond, 1e-9, min(value, 1 - 1e-9))) if value > 1e-6 else 0.0
    high = float(brentq(beyond, max(value, 1e-9), 1 - 1e-9)) if value < 1 - 1e-6 else 1.0
    return Interval(low, high)


def difference_interval(difference: float, influence: Scores, clusters: Clusters | None = None) -> Interval | None:
    """Interval of a difference of AUCs on the same texts; None where these texts do not tell the two apart at all."""
    half = half_width(influence, clusters)
    return Interval(difference - half, difference + half) if half > 1e-9 else None


def threshold_at(negatives: Scores, fpr: float) -> float:
    """The lowest threshold that at most a share `fpr` of these negatives exceeds."""
    allowed = math.floor(fpr * len(negatives) + 1e-9)
    return float(np.sort(negatives)[::-1][allowed])


@dataclass(frozen=True)
class Bin:
    """Texts of similar probability: their number, mean probability, and share of positives."""

    n: int
    probability: float
    positive: float


@dataclass(frozen=True)
class Calibration:
    """Expected calibration error: mean distance between probability and share of positives, in bins of equally many texts.
    `by_chance` is what probabilities that are exactly right would come to on so many texts."""

    error: float
    by_chance: float
    bins: tuple[Bin, ...]


def calibration(probabilities: Scores, labels: Labels, rng: np.random.Generator, draws: int = 200) -> Calibration:
    """The expected calibration error of probabilities beside chance; at least ten texts a bin, at most ten bins."""
    order = np.argsort(probabilities, kind="stable")
    bins = np.array_split(order, max(1, min(10, len(order) // 10)))

    def error(outcomes: np.ndarray) -> float:
        return sum(len(b) * abs(probabilities[b].mean() - outcomes[b].mean()) for b in bins) / len(order)

    exact = [error(rng.random(len(order)) < probabilities) for _ in range(draws)]
    rows = tuple(Bin(len(b), float(probabilities[b].mean()), float(labels[b].mean())) for b in bins)
    return Calibration(float(error(labels)), float(np.mean(exact)), rows)


def right_alarms(tpr: float, fpr: float, base_rate: float) -> float:
    """The share of alarms that are right where a share `base_rate` of all texts is positive; nan without alarms."""
    alarms = tpr * base_rate + fpr * (1 - base_rate)
    return tpr * base_rate / alarms if alarms else math.nan

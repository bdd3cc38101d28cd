"""`Monitor`: what reads a text's score off a model, its threshold, and what it was worth on texts that it was not made from."""

import math
from dataclasses import dataclass, field
from typing import Any

from scope.monitor.statistics import Calibration, Interval, Rate, right_alarms
from scope.result import Result

SCHEMA = 1
BASE_RATES = (0.1, 0.01, 0.001)
"""Shares of positive texts for which it is said how many alarms would be right."""


@dataclass(frozen=True, kw_only=True)
class Score:
    """The AUC of a detector on the test texts, and how far the monitor's is above it."""

    name: str
    auc: float
    interval: Interval
    draws: int = 1
    largest: float | None = None
    """Of several draws, the largest AUC; `auc` is their mean."""
    fpr: Rate | None = None
    """Alarms on negative test texts, with a threshold that was set in the same way; None where there are several draws."""
    tpr: Rate | None = None
    """Alarms on positive test texts."""
    difference: float | None = None
    """The monitor's AUC minus this one, on the same texts."""
    difference_interval: Interval | None = None
    """None where these texts do not tell the two apart."""


@dataclass(frozen=True, kw_only=True)
class Group:
    """Alarms in a group of the test texts."""

    name: str
    n: int
    tpr: Rate
    fpr: Rate
    probability: float
    """Mean probability that the monitor gives."""
    positive: float
    """Share of positive texts."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A setting that was tried, with its AUC on training texts left out in turn."""

    aggregation: str
    setting: float | None
    """Ridge of a probe, or number of latents; None where there is nothing to set."""
    auc: float
    chosen: bool


@dataclass(frozen=True, kw_only=True)
class SplitCounts:
    """Texts of a split."""

    name: str
    positive: int
    negative: int


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What the monitor costs for each token."""

    flops: int
    """Floating-point operations that it adds."""
    model_flops: int
    """Operations of the model's matrices, 2 for each of their weights; attention between tokens is not counted."""
    layers: int | None
    """Blocks that have to run; None means all, and the head."""
    n_layers: int
    microseconds: float
    """Measured: the monitor's own work for a token."""
    to_site: float
    """Measured: microseconds of the model up to the site."""
    whole: float
    """Measured: microseconds of the whole forward pass."""
    tokens: int
    """Tokens of the batch that was timed; each time is the median of five runs."""
    device: str


@dataclass(frozen=True)
class Check:
    """A text and its score, by which others know the model again."""

    text: str
    score: float


@dataclass(frozen=True)
class Hook:
    """The module of a transformers decoder whose input or output is the site."""

    module: str
    side: str


@dataclass(frozen=True, kw_only=True)
class Monitor(Result):
    """A monitor as its folder holds it; the numbers of its readout lie beside it in weights.safetensors.

    A text's score is the `aggregation` (max, mean, last) of the scores of its tokens; the alarm sounds above `threshold`.
    """

    bars = ("detector", "auc")

    method: str
    """latents, probe, difference or direction."""
    site: str
    aggregation: str
    threshold: float
    fpr: float
    """The false-positive rate for which the threshold was set on the validation texts."""
    positive: str
    negative: str
    probability: tuple[float, float]
    """(a, b): the probability of the positive label is 1 / (1 + exp(-(a score + b))), fitted on the validation texts."""
    typical: float
    """Median score of the negative validation texts."""
    latents: tuple[int, ...] = ()
    labels: tuple[str, ...] = ()
    """What the latents mean by the pack's labels."""
    direction: str | None = None
    top_k: int | None = None
    chat: bool = False
    chat_template: str | None = None
    context: int
    """Tokens of a text that are read."""
    bos: int
    excluded_ids: tuple[int, ...]
    """Tokens that do not count."""
    hook: Hook | None
    sliding_window: int | None = None
    """Keys that a token sees in a local layer, where transformers would read the checkpoint otherwise."""
    check: tuple[Check, ...]
    model: dict[str, Any]
    dictionary: dict[str, Any] | None = None
    data: dict[str, Any]
    weights_sha256: str = ""
    seed: int
    splits: tuple[SplitCounts, ...]
    choices: tuple[Choice, ...]
    scores: tuple[Score, ...]
    """The monitor's first, then its baselines and nulls."""
    validation_fpr: Rate
    groups: tuple[Group, ...]
    calibration: Calibration
    cost: Cost
    notes: tuple[str, ...] = ()
    versions: dict[str, str] = field(default_factory=dict)
    schema: int = SCHEMA

    def to_frame(self):
        """A row for the monitor and each baseline and null."""
        import pandas as pd

        rows = []
        for s in self.scores:
            gap = s.difference_interval
            rows.append(
                {
                    "detector": s.name,
                    "auc": s.auc,
                    "auc_low": s.interval.low,
                    "auc_high": s.interval.high,
                    "draws": s.draws,
                    "largest": s.largest,
                    "fpr": s.fpr.share if s.fpr else None,
                    "tpr": s.tpr.share if s.tpr else None,
                    "monitor_minus_it": s.difference,
                    "difference_low": gap.low if gap else None,
                    "difference_high": gap.high if gap else None,
                }
            )
        return pd.DataFrame(rows)

    test_fpr = property(lambda self: self.scores[0].fpr)
    test_tpr = property(lambda self: self.scores[0].tpr)

    def to_json(self) -> dict[str, Any]:
        from dataclasses import asdict

        return asdict(self)

    def probability_of(self, score: float) -> float:
        """The probability of the positive label, by the validation texts and their share of positives."""
        a, b = self.probability
        return 1 / (1 + math.exp(-min(max(a * score + b, -700), 700)))

    def precision(self, base_rate: float) -> float:
        """The share of alarms that are right at a base rate, by the test texts."""
        return right_alarms(self.test_tpr.share, self.test_fpr.share, base_rate)

    def precision_at_worst(self, base_rate: float) -> float:
        """The same with both rates at the worse end of their interval: few test texts bound it only loosely."""
        caught, false = self.test_tpr.interval, self.test_fpr.interval
        if caught is None or false is None:
            return math.nan
        return right_alarms(caught.low, false.high, base_rate)

    def beaten_by(self) -> list[str]:
        """Baselines and nulls that this monitor is not shown to be above: whose paired interval reaches 0, or of which a draw
        does as well."""

        def above(s: Score) -> bool:
            clear = s.difference_interval is not None and s.difference_interval.low > 0
            return clear and (s.largest is None or s.largest < self.scores[0].auc)

        return [s.name for s in self.scores[1:] if not above(s)]

    def reads(self) -> str:
        """What is read, in words: latents 3 and 7, a probe."""
        if self.method == "latents":
            few = ", ".join(map(str, self.latents[:8])) + (
                f" and {len(self.latents) - 8} more" if len(self.latents) > 8 else ""
            )
            return f"latent {few}" if len(self.latents) == 1 else f"latents {few}"
        names = {"probe": "a logistic probe", "difference": "the difference of the two labels' means"}
        return names.get(self.method, f"the direction {self.direction}")

    def verdict(self) -> str:
        """One sentence: its AUC, and whether it is above what words alone give."""
        first = self.scores[0]
        words = next((s for s in self.scores if s.name == "bag of words"), None)
        line = f"AUC {first.auc:.3f} (95 %: {first.interval.low:.3f} to {first.interval.high:.3f})"
        if words is None or words.difference is None:
            return f"{line}."
        gap = words.difference_interval
        if gap is None:
            return f"{line}; a bag of words does as well ({words.auc:.3f}), to the text."
        word = "above" if gap.low > 0 else "BELOW" if gap.high < 0 else "not told apart from"
        apart = f"difference {words.difference:+.3f}, {gap.low:+.3f} to {gap.high:+.3f}"
        return f"{line}: {word} a bag of words ({words.auc:.3f}; {apart})."

    def __str__(self) -> str:
        nulls = "\n".join(f"  {_line(s)}" for s in self.scores[1:])
        return (
            f"Monitor for {self.positive!r} against {self.negative!r}: {self.aggregation} over the tokens of {self.reads()} at "
            f"{self.site}.\n{self.verdict()}\n{nulls}\n"
            f"Threshold {self.threshold:.6g}, set for {self.fpr:.2%} false alarms on the validation texts. On the test texts:\n"
            f"  false alarms  {self.test_fpr}\n  caught        {self.test_tpr}"
        )


def _line(score: Score) -> str:
    """A baseline in words."""
    draws = f", mean of {score.draws}, largest {score.largest:.3f}" if score.largest is not None else ""
    gap, low = score.difference, score.difference_interval
    apart = "" if gap is None else f"; monitor {gap:+.3f}" + (f" ({low.low:+.3f} to {low.high:+.3f})" if low else " (equal)")
    caught = f"; catches {score.tpr.share:.1%} at {score.fpr.share:.1%} false alarms" if score.tpr and score.fpr else ""
    return f"{score.name}: AUC {score.auc:.3f}{draws}{apart}{caught}"

"""How an effect grows with strength, beside random directions of the same size; and a strength, judged on held-out texts."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from scope.errors import EditError
from scope.models.generate import SamplingConfig
from scope.steering.gauge import Gauge
from scope.steering.interventions import Direction, Edit, Edits
from scope.steering.run import Sample, SteeringRun
from scope.steering.steer import steer


@dataclass(frozen=True)
class Sweep:
    """`rows` has one entry a strength, arm and text; `best` is chosen on every other prompt and told on the rest."""

    rows: list[dict[str, Any]]
    runs: list[SteeringRun]
    best: dict[str, Any]

    def to_frame(self):
        """Rows as a pandas table."""
        import pandas as pd

        return pd.DataFrame(self.rows)

    def summary(self):
        """Mean and 95 % interval over texts of each measure, by strength and arm; steered minus random is paired by text."""
        import pandas as pd

        table = self.to_frame()
        shown = []
        for strength in sorted(set(table["strength"])):
            here = table[table["strength"] == strength]
            for measure in ("concept", "share", "log_prob", "repetition", "kl", "score"):
                arms = {
                    arm: here[here["arm"] == arm].set_index("text_index")[measure] for arm in ("plain", "steered", "random")
                }
                low, high = interval((arms["steered"] - arms["random"]).to_numpy())
                shown.append(
                    {"strength": strength, "measure": measure}
                    | {arm: float(values.mean()) for arm, values in arms.items()}
                    | {"steered - random": float((arms["steered"] - arms["random"]).mean()), "low": low, "high": high}
                )
        return pd.DataFrame(shown)

    def plot(self):
        """Dose-response as a Plotly figure: steered and random, with 95 % intervals over texts."""
        import plotly.graph_objects as go
        from plotly.subplots import make_subplots

        table, measures = self.to_frame(), ("concept", "score", "log_prob")
        figure = make_subplots(1, len(measures), subplot_titles=measures)
        for column, measure in enumerate(measures, 1):
            for arm, colour in (("steered", "#0072B2"), ("random", "#888888")):
                mine = table[table["arm"] == arm].groupby("strength")[measure]
                mean, bounds = mine.mean(), [interval(values.to_numpy()) for _, values in mine]
                error = {
                    "type": "data",
                    "symmetric": False,
                    "array": [high - m for (_, high), m in zip(bounds, mean, strict=True)],
                    "arrayminus": [m - low for (low, _), m in zip(bounds, mean, strict=True)],
                }
                trace = go.Scatter(x=mean.index, y=mean, error_y=error, name=arm, line_color=colour, showlegend=column == 1)
                figure.add_trace(trace, 1, column)
        figure.update_xaxes(title_text="strength, fractions of the residual norm")
        return figure.update_layout(height=320, margin={"l": 40, "r": 10, "t": 40, "b": 40})

    def __str__(self) -> str:
        best = self.best
        return (
            f"{self.summary().to_string(index=False, float_format=lambda v: f'{v:.3f}')}\n"
            f"Strength {best['strength']:g} scores best on {best['chosen_on']} of the texts ({best['score_there']:.3f}); "
            f"on the other {best['told_on']}: {best['score']:.3f}, random {best['random']:.3f}, "
            f"difference {best['difference']:+.3f} [{best['low']:+.3f}, {best['high']:+.3f}]."
        )

    def _repr_html_(self) -> str:
        return self.summary().round(3).to_html(index=False)


def sweep(
    model,
    sae,
    edits: Edit | Edits,
    prompts: Sequence[str],
    strengths: Sequence[float] = (0.25, 0.5, 0.75, 1.0),
    sampling: SamplingConfig | None = None,
    *,
    n: int = 1,
    gauges: Gauge | dict[str, Gauge] | None = None,
    control_seed: int = 0,
    any_model: bool = False,
    on_progress: Callable[[int, int, dict], None] | None = None,
) -> Sweep:
    """Steer at every strength: the first edit that has one gets it, the others keep their proportion to it.

    Every text of every strength draws the same noise. The score of a text is the harmonic mean of concept and fluency, see
    `score`; concept is the latent's own reading where its 99th percentile is known (from a pack), else the share of promoted
    tokens. The latent that steers also judges then, which is why the share stands beside it.

    Raises:
        EditError: fewer than two prompts, no strengths, or no edit that has one.
    """
    edits, prompts, strengths = Edits.of(edits), [prompts] if isinstance(prompts, str) else list(prompts), list(strengths)
    first = next((e for e in edits if e.has_amount), None)
    if first is None or not first.strength:
        raise EditError("None of these edits has a strength to sweep over; Add, Clamp and AtLeast have one.")
    if len(prompts) < 2 or not strengths:
        raise EditError(
            "A sweep needs at least two prompts (one half to choose a strength, the other to tell its value) and a strength."
        )
    rows, runs = [], []
    for i, strength in enumerate(strengths):
        run = steer(
            model,
            sae,
            edits.scaled(strength / first.strength),
            prompts,
            sampling,
            n=n,
            gauges=gauges,
            control_seed=control_seed,
            any_model=any_model,
        )
        runs.append(run)
        rows += _rows(run, strength, first.target, n)
        if on_progress:
            on_progress(i + 1, len(strengths), {"strength": strength})
    return Sweep(rows, runs, choose(rows))


def _rows(run: SteeringRun, strength: float, target: str, n: int) -> list[dict[str, Any]]:
    rows = []
    latent = next((e.latent for e in run.edits if e.target == target), None)
    known = isinstance(latent, Direction) or any(latent in g.p99 for g in run.gauges.values())
    for arm in run.arms:
        for i, (sample, plain) in enumerate(zip(arm.samples, run["plain"].samples, strict=True)):
            if sample.scores is None or plain.scores is None:
                continue
            s = sample.scores
            rows.append(
                {
                    "strength": strength,
                    "arm": arm.name,
                    "text_index": i,
                    "prompt_index": i // n,
                    "concept": s.concept[target],
                    "share": s.share[target],
                    "log_prob": s.log_prob,
                    "repetition": s.repetition,
                    "kl": s.kl,
                    "score": score(sample, plain, target, "concept" if known else "share"),
                    "text": sample.text,
                }
            )
    return rows


def score(sample: Sample, plain: Sample, target: str, by: str = "concept") -> float:
    """Harmonic mean of what the arm adds to the plain text's concept (or share), and of fluency; each 0 to 1.

    Fluency is the probability per token relative to the plain text's, at most 1, times one minus repetition.
    """
    mine, other = sample.scores, plain.scores
    concept = min(1.0, max(0.0, getattr(mine, by)[target] - getattr(other, by)[target]))
    fluency = min(1.0, math.exp(mine.log_prob - other.log_prob)) * (1 - mine.repetition)
    return 2 * concept * fluency / (concept + fluency) if concept + fluency > 0 else 0.0


def choose(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The strength whose steered texts score best on the even prompts, and its value on the odd ones."""

    def values(strength: float, arm: str, half: int) -> dict[int, float]:
        return {
            r["text_index"]: r["score"]
            for r in rows
            if r["strength"] == strength and r["arm"] == arm and r["prompt_index"] % 2 == half
        }

    def mean(found: dict[int, float]) -> float:
        return float(np.mean(list(found.values()))) if found else math.nan

    strengths = sorted({r["strength"] for r in rows})
    if not strengths:
        raise EditError(
            "No arm wrote anything, so there is nothing to choose a strength by. Ask for more tokens or other prompts."
        )
    best = max(strengths, key=lambda s: (mean(values(s, "steered", 0)), -abs(s)))
    steered, random = values(best, "steered", 1), values(best, "random", 1)
    difference = np.array([steered[i] - random[i] for i in steered if i in random])
    low, high = interval(difference)
    return {
        "strength": best,
        "score_there": mean(values(best, "steered", 0)),
        "chosen_on": len(values(best, "steered", 0)),
        "told_on": len(steered),
        "score": mean(steered),
        "random": mean(random),
        "difference": float(difference.mean()) if len(difference) else math.nan,
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

"""`Sweep`: an effect at several strengths beside its controls, as a table, as a figure, and as JSON that replays."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from scope.errors import EditError
from scope.steering.compare.judge import By
from scope.steering.compare.run import SteeringRun, text_of, write_whole
from scope.steering.compare.statistics import by_prompt, by_text, choose, interval, mean

SCHEMA = 1
MEASURES = ("concept", "share", "relevance", "fluency", "log_prob", "repetition", "off_target", "kl", "score")
SWEPT_UNITS = {"norm": "strength / norm", "raw": "strength, raw activation", "max": "strength × largest activation"}
_COLOURS = {"steered": "#0072B2", "random": "#888888", "other": "#D55E00", "prompt": "#009E73"}


def swept_unit(edits: Sequence[Any] | None) -> str:
    """What the strengths of a sweep are in: the unit of the first edit that has one, as the others keep their proportion."""
    return next((edit.unit for edit in edits or () if edit.has_amount), "norm")


@dataclass(frozen=True, repr=False)
class Sweep:
    """One run a strength, and from them `rows`: an entry a strength, arm and text. `best` is chosen on half of the prompts."""

    strengths: tuple[float, ...]
    runs: list[SteeringRun]
    by: By = "share"
    """What the score takes for the concept; see `scope.steering.compare.judge`."""
    stopped: bool = False
    """Whether somebody stopped it: the strengths that were not finished are left out."""

    @property
    def rows(self) -> list[dict[str, Any]]:
        found = []
        for strength, run in zip(self.strengths, self.runs, strict=True):
            found += _rows(run, strength, self.by)
        return found

    @property
    def best(self) -> dict[str, Any]:
        """The strength that scores best on every other prompt, and what it scores on the rest, beside random directions."""
        return choose(self.rows)

    @property
    def arms(self) -> list[str]:
        """Kinds of arms: random:1 is a further "random"."""
        return list(dict.fromkeys(arm.name.partition(":")[0] for run in self.runs for arm in run.arms))

    def to_frame(self):
        """Rows as a pandas table."""
        import pandas as pd

        return pd.DataFrame(self.rows)

    def summary(self):
        """Mean of each measure by strength and arm; steered minus each control, paired by text, with 95 % intervals.

        Further random directions (or other latents) are averaged text by text first. The interval is a bootstrap over texts,
        or over prompts where each has several texts.
        """
        import pandas as pd

        table, shown = self.to_frame(), []
        for strength in sorted(set(table["strength"])):
            here = table[table["strength"] == strength]
            for measure in MEASURES:
                arms = {arm: by_text(here, arm, measure) for arm in self.arms}
                row = {"strength": strength, "measure": measure} | {arm: mean(values) for arm, values in arms.items()}
                for control in ("random", "other", "prompt"):
                    if control in arms:
                        low, high = interval(by_prompt(here, arms["steered"] - arms[control]))
                        difference = mean(arms["steered"] - arms[control])
                        row |= {f"steered - {control}": difference, f"{control} low": low, f"{control} high": high}
                shown.append(row)
        return pd.DataFrame(shown)

    def plot(self, measures: Sequence[str] = ("concept", "share", "fluency", "score")):
        """Dose-response as a Plotly figure: an arm a line, with 95 % intervals over prompts; the chosen strength is dotted."""
        import plotly.graph_objects as go
        from plotly.subplots import make_subplots

        table, best = self.to_frame(), self.best
        figure = make_subplots(1, len(measures), subplot_titles=measures)
        for column, measure in enumerate(measures, 1):
            for arm in (a for a in self.arms if a in _COLOURS):
                doses = sorted(set(table["strength"]))
                here = [table[table["strength"] == dose] for dose in doses]
                values = [by_prompt(t, by_text(t, arm, measure)) for t in here]
                means, bounds = [mean(v) for v in values], [interval(v) for v in values]
                error = {
                    "type": "data",
                    "symmetric": False,
                    "array": [high - m for (_, high), m in zip(bounds, means, strict=True)],
                    "arrayminus": [m - low for (low, _), m in zip(bounds, means, strict=True)],
                }
                line = {"x": doses, "y": means, "error_y": error, "name": arm, "line_color": _COLOURS[arm]}
                figure.add_trace(go.Scatter(**line, legendgroup=arm, showlegend=column == 1), 1, column)
        figure.add_vline(best["strength"], line_dash="dot", line_color="#888888")
        figure.update_xaxes(title_text=SWEPT_UNITS[swept_unit(self.runs[0].edits)])
        held = f"chosen: {best['strength']:g}; score {best['score']:.3f} on held-out prompts, random {best['random']:.3f}"
        return figure.update_layout(title=held, title_font_size=13, height=340, margin={"l": 40, "r": 10, "t": 70, "b": 40})

    def to_json(self, file: str | Path | None = None) -> str:
        """As JSON text, also written to `file`: every run whole, so that each can be replayed."""
        raw = {"schema": SCHEMA, "sweep": list(self.strengths), "by": self.by, "stopped": self.stopped}
        text = json.dumps({**raw, "runs": [json.loads(run.to_json()) for run in self.runs]}, indent=1, ensure_ascii=False)
        if file is not None:
            write_whole(Path(file), text)
        return text

    @classmethod
    def from_json(cls, source: str | Path) -> "Sweep":
        """From a file, or from JSON text itself.

        Raises:
            EditError: it is no saved sweep, or one of another version.
        """
        try:
            raw = json.loads(text_of(source))
            if "sweep" not in raw or raw.get("schema") != SCHEMA:
                raise ValueError(f"schema {raw.get('schema')}, and this version reads sweeps of schema {SCHEMA}")
            runs = [SteeringRun.from_json(json.dumps(run)) for run in raw["runs"]]
            return cls(tuple(float(s) for s in raw["sweep"]), runs, raw["by"], bool(raw["stopped"]))
        except (OSError, ValueError, AttributeError, KeyError, TypeError) as error:
            raise EditError(f"No sweep can be read from {str(source)[:80]!r}: {error}") from None

    def replay(self, model, sae) -> "Sweep":
        """Make it again, run by run; on the same machine and versions the texts are the same."""
        return replace(self, runs=[run.replay(model, sae) for run in self.runs])

    def same_texts(self, other: "Sweep") -> bool:
        return self.strengths == other.strengths and all(
            mine.same_texts(theirs) for mine, theirs in zip(self.runs, other.runs, strict=True)
        )

    def __str__(self) -> str:
        best = self.best
        return (
            f"{self._shown().to_string(index=False, float_format=lambda v: f'{v:.3f}', na_rep='-')}\n"
            f"Strength {best['strength']:g} scores best on {best['chosen_on']} of the prompts ({best['score_there']:.3f}); "
            f"on the other {best['told_on']}: {best['score']:.3f}, random {best['random']:.3f}, "
            f"difference {best['difference']:+.3f} [{best['low']:+.3f}, {best['high']:+.3f}]."
            + ("\nStopped before all strengths were done." if self.stopped else "")
        )

    __repr__ = __str__

    def _shown(self):
        """The summary without the columns that make it too wide for a page."""
        table = self.summary()
        return table[[c for c in table if not c.startswith(("steered - other", "steered - prompt", "other ", "prompt "))]]

    def _repr_html_(self) -> str:
        from scope.escape import escape

        return self._shown().round(3).to_html(index=False, na_rep="-") + f"<p>{escape(str(self).splitlines()[-1])}</p>"


def _rows(run: SteeringRun, strength: float, by: By) -> list[dict[str, Any]]:
    target, rows = next(iter(run.promoted)), []
    judged = run.judged(target, by)
    for arm in run.arms:
        for i, (sample, mine) in enumerate(zip(arm.samples, judged[arm.name], strict=True)):
            if mine is None:
                continue
            s = sample.scores
            rows.append(
                {
                    "strength": strength,
                    "arm": arm.name.partition(":")[0],
                    "direction": arm.name,
                    "text_index": i,
                    "prompt_index": i // run.n,
                    "concept": s.concept[target],
                    "share": s.share[target],
                    "mass": s.mass[target],
                    "relevance": mine.relevance,
                    "fluency": mine.fluency,
                    "log_prob": s.log_prob,
                    "repetition": s.repetition,
                    "distinct": s.distinct,
                    "off_target": s.off_target,
                    "kl": s.kl,
                    "score": mine.score,
                    "text": sample.text,
                }
            )
    return rows


def saved(source: str | Path) -> SteeringRun | Sweep:
    """What `to_json` wrote, a run or a sweep, from a file or from JSON text itself.

    Raises:
        EditError: it is neither, is damaged, or is of another version; said of what it began as.
    """
    try:
        text = text_of(source)
    except OSError as error:
        raise EditError(f"No steering run can be read from {str(source)[:80]!r}: {error}") from None
    return (Sweep if '"sweep":' in text[:200] else SteeringRun).from_json(text)

"""`sweep`: steer at every strength, beside the controls; `Sweep`: the effect by strength as a table, a figure and JSON."""

import json
import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from scope.errors import EditError
from scope.escape import escape
from scope.models.face import LanguageModel
from scope.models.text.sampling_config import SamplingConfig
from scope.progress import OnProgress
from scope.renamed import old_attribute, old_keywords
from scope.result import Result
from scope.sae.base import SAE
from scope.steering.apply.resolve import dictionaries
from scope.steering.compare import show
from scope.steering.compare.json_files import check_schema, read_stored, write_file
from scope.steering.compare.run import RunData
from scope.steering.compare.scores import By
from scope.steering.compare.statistics import by_prompt, by_text, choose, interval, mean
from scope.steering.compare.steer import SWEPT, OnToken, SteeringRun, steer
from scope.steering.edits.base import number
from scope.steering.edits.interventions import Edit, Edits
from scope.texts import list_of_texts
from scope.typed_json import typed

SCHEMA = 1
MEASURES = ("concept", "share", "relevance", "fluency", "log_prob", "repetition", "off_target", "kl", "score")
SWEPT_UNITS = {
    "norm": "strength / norm",
    "raw": "strength, raw activation",
    "max": "strength × largest activation",
    "part": "part forgotten or held",
}


def swept_unit(edits: Iterable[Edit] | None) -> str:
    """The unit of a sweep's strengths: that of the first edit that has one, as the others keep their proportion to it."""
    return next((edit.unit for edit in edits or () if edit.has_amount), "norm")


@dataclass(frozen=True, repr=False)
class Sweep(Result):
    """One run a strength, and `rows`: one per strength, condition and text. `best` is chosen on half of the prompts."""

    strengths: tuple[float, ...]
    runs: list[SteeringRun]
    by: By = "share"
    """What the score takes for the concept; see `scope.steering.compare.scores`."""
    stopped: bool = False
    """Whether somebody stopped it: the strengths that were not finished are left out."""
    waiting: int = 0
    """Strengths still to come, while it runs: until then nothing is said of the best one. A saved sweep waits for none."""

    arms = old_attribute("arms", "conditions")

    @property
    def rows(self) -> list[dict[str, Any]]:
        return [row for s, run in zip(self.strengths, self.runs, strict=True) for row in _rows(run, s, self.by)]

    @property
    def best(self) -> dict[str, Any]:
        """The strength that scores best on every other prompt, and what it scores on the rest, beside random directions."""
        return choose(self.rows)

    @property
    def conditions(self) -> list[str]:
        """Kinds of conditions: random:1 is a further "random"."""
        return list(dict.fromkeys(c.name.partition(":")[0] for run in self.runs for c in run.conditions))

    def to_frame(self):
        """Rows as a pandas table."""
        import pandas as pd

        return pd.DataFrame(self.rows)

    def summary(self):
        """Mean of each measure by strength and condition; steered minus each control, paired by text, with 95 % intervals.

        Further random directions (or other latents) are averaged text by text first. The interval is a bootstrap over texts,
        or over prompts where each has several texts.
        """
        import pandas as pd

        table, rows = self.to_frame(), []
        for strength in sorted(set(table["strength"])):
            at = table[table["strength"] == strength]
            for measure in MEASURES:
                values = {name: by_text(at, name, measure) for name in self.conditions}
                row = {"strength": strength, "measure": measure} | {name: mean(v) for name, v in values.items()}
                for control in ("random", "other", "prompt"):
                    if control in values:
                        difference, name = values["steered"] - values[control], f"steered - {control}"
                        low, high = interval(by_prompt(at, difference))
                        row |= {name: mean(difference), f"{name}, low": low, f"{name}, high": high}
                rows.append(row)
        return pd.DataFrame(rows)

    def plot(self, measures: Sequence[str] = ("concept", "share", "fluency", "score")):
        """Each measure by strength as a Plotly figure: a line a condition, with 95 % intervals over prompts; the chosen
        strength is dotted."""
        best = None if self.waiting else self.best
        return show.sweep_figure(self.to_frame(), self.conditions, measures, SWEPT_UNITS[swept_unit(self.runs[0].edits)], best)

    def to_json(self, file: str | Path | None = None) -> str:
        """As JSON text, also written to `file`: every run whole, so that each can be replayed."""
        raw = {"schema": SCHEMA, "sweep": list(self.strengths), "by": self.by, "stopped": self.stopped}
        text = json.dumps({**raw, "runs": [json.loads(run.to_json()) for run in self.runs]}, indent=1, ensure_ascii=False)
        if file is not None:
            write_file(file, text)
        return text

    @classmethod
    def from_json(cls, source: str | Path) -> "Sweep":
        """From a file, or from JSON text itself.

        Raises:
            EditError: it is no saved sweep, is damaged, or is one of another version.
        """
        return read_stored(source, "sweep", cls.from_dict)

    @classmethod
    def from_dict(cls, raw: Any) -> "Sweep":
        """From the JSON object of a saved sweep.

        Raises:
            EditError: it is none, is damaged, or is one of another version.
        """
        check_schema(raw, (SCHEMA,), "sweep")
        stored = typed(raw, _StoredSweep, "The saved sweep", EditError)
        if not stored.runs or len(stored.sweep) != len(stored.runs):
            raise EditError(f"The saved sweep is damaged: {len(stored.sweep)} strengths and {len(stored.runs)} runs.")
        runs = [SteeringRun.from_dict(run) for run in stored.runs]
        shapes = [(run.prompts, run.n, [c.name for c in run.conditions], list(run.promoted)) for run in runs]
        if any(shape != shapes[0] for shape in shapes) or not {"plain", "random"} <= {
            n.partition(":")[0] for n in shapes[0][2]
        }:
            raise EditError("The saved sweep is damaged: its runs have not the same prompts, conditions and targets.")
        return cls(tuple(stored.sweep), runs, stored.by, stored.stopped)

    def replay(self, model: LanguageModel, sae: SAE | Sequence[SAE] | None) -> "Sweep":
        """Make it again, run by run; on the same machine and versions the texts are the same."""
        return replace(self, runs=[run.replay(model, sae) for run in self.runs])

    def same_texts(self, other: "Sweep") -> bool:
        return self.strengths == other.strengths and all(
            run.same_texts(again) for run, again in zip(self.runs, other.runs, strict=True)
        )

    def verdict(self) -> str:
        """Which strength scores best and what it is worth, once all strengths are done."""
        if self.waiting:
            done = len(self.runs)
            return f"{done} of {done + self.waiting} strengths are done; the best one is chosen when all are."
        best = self.best
        among = f"Of the {len(self.runs)} strengths that were finished before it was stopped, " if self.stopped else ""
        return (
            f"{among}{'s' if among else 'S'}trength {best['strength']:g} scores best on {best['chosen_on']} "
            f"of the prompts ({best['score_there']:.3f}); "
            f"on the other {best['told_on']}: {best['score']:.3f}, random {best['random']:.3f}, "
            f"difference {best['difference']:+.3f} {_interval_text(best['low'], best['high'])}."
        )

    def __str__(self) -> str:
        table = self._narrow().to_string(index=False, float_format=lambda v: f"{v:.3f}", na_rep="-")
        return f"{table}\n{self.verdict()}"

    __repr__ = __str__

    def _narrow(self):
        """The summary without the columns that make it too wide for a page."""
        table = self.summary()
        return table[[c for c in table if not c.startswith(("steered - other", "steered - prompt"))]]

    def _repr_html_(self) -> str:
        return self._narrow().round(3).to_html(index=False, na_rep="-") + f"<p>{escape(self.verdict())}</p>"


@dataclass(frozen=True)
class _StoredSweep:
    """A saved sweep under the field names of its file."""

    schema: int
    sweep: list[float]
    by: By
    stopped: bool
    runs: list[dict[str, Any]]


def _rows(run: RunData, strength: float, by: By) -> list[dict[str, Any]]:
    target, rows = next(iter(run.promoted)), []
    judged = run.judged(target, by)
    for condition in run.conditions:
        for i, (sample, judgement) in enumerate(zip(condition.samples, judged[condition.name], strict=True)):
            if judgement is None:
                continue
            s = sample.scores
            rows.append(
                {
                    "strength": strength,
                    "condition": condition.name.partition(":")[0],
                    "direction": condition.name,
                    "text_index": i,
                    "prompt_index": i // run.n,
                    "concept": s.concept[target],
                    "share": s.share[target],
                    "mass": s.mass[target],
                    "relevance": judgement.relevance,
                    "fluency": judgement.fluency,
                    "log_prob": s.log_prob,
                    "repetition": s.repetition,
                    "distinct": s.distinct,
                    "off_target": s.off_target,
                    "kl": s.kl,
                    "score": judgement.score,
                    "text": sample.text,
                }
            )
    return rows


@old_keywords(arms="conditions", gauges="strength_units")
def sweep(
    model: LanguageModel,
    sae: SAE | Sequence[SAE] | None,
    edits: Edit | Edits | Sequence[Edit],
    prompts: str | Iterable[str],
    strengths: Iterable | float = (0.25, 0.5, 0.75, 1.0),
    sampling: SamplingConfig | None = None,
    *,
    conditions: Sequence[str] | None = None,
    n: int = 1,
    by: By = "share",
    on_token: OnToken | None = None,
    on_progress: OnProgress | None = None,
    **settings: Any,
) -> Sweep:
    """Steer at every strength: the first edit that has one gets it, the others keep their proportion to it.

    Every text of every strength draws the same noise. The controls are three random directions, another latent that fires as
    often (where there is a dictionary), and asking for it in the prompt; `conditions` names others. `settings` are those of
    `steer`: strength_units, control_seed, others, instruction, any_model. Stopped by `on_token` or Ctrl-C, it keeps the
    strengths that were finished. `on_progress(done, total, numbers)` gets the strength and the seconds that are probably left.

    Raises:
        EditError: fewer than two prompts, no strengths, or no edit that has one.
        KeyboardInterrupt: Ctrl-C before the first strength was finished.
    """
    edits, prompts, strengths = Edits.of(edits), list_of_texts(prompts, EditError), _numbers(strengths)
    first = next((e for e in edits if e.has_amount), None)
    if first is not None and not first.strength:
        raise EditError(f"The strength of [{first}] is 0, to which the others have no proportion. Give it one, such as 0.5.")
    if first is None:
        raise EditError(
            "None of these edits has a strength to sweep over; Add, Clamp, AtLeast, Cap, Floor, Forget and Hold have one."
        )
    if len(prompts) < 2 or not strengths:
        raise EditError(
            "A sweep needs at least two prompts (one half to choose a strength, the other to measure its value) and a strength."
        )
    conditions = _conditions(conditions, sae, edits)
    if "plain" not in conditions or not any(name.startswith("random") for name in conditions):
        raise EditError('A sweep is compared with plain text and random directions: conditions must hold "plain" and "random".')
    runs: list[SteeringRun] = []
    stopped, began = False, time.monotonic()
    for i, strength in enumerate(strengths):
        try:
            scaled = edits.scaled(strength / first.strength)
            run = steer(model, sae, scaled, prompts, sampling, conditions, n=n, on_token=on_token, **settings)
        except KeyboardInterrupt:
            if not runs:
                raise
            stopped = True
            break
        if run.stopped_after is not None:
            stopped = True
            if not runs:
                runs.append(run)
            break
        runs.append(run)
        if on_progress:
            left = (time.monotonic() - began) / (i + 1) * (len(strengths) - i - 1)
            on_progress(i + 1, len(strengths), {"strength": strength, "seconds_left": left})
    return Sweep(tuple(strengths[: len(runs)]), runs, by, stopped)


@old_keywords(arms="conditions", gauges="strength_units")
def estimate(
    model: LanguageModel,
    sae: SAE | Sequence[SAE] | None,
    edits: Edit | Edits | Sequence[Edit],
    prompts: str | Iterable[str],
    strengths: Iterable | float,
    sampling: SamplingConfig | None = None,
    *,
    conditions: Sequence[str] | None = None,
    n: int = 1,
    tokens: int = 4,
    **settings: Any,
) -> float:
    """Seconds that a sweep will take, from one strength at two short lengths of text; itself it takes about a tenth of one.

    Long texts cost more a token than short ones, and texts that end early cost nothing: expect it to be right within a third.
    """
    sampling, conditions = sampling or SamplingConfig(), _conditions(conditions, sae, Edits.of(edits))

    def seconds(length: int) -> float:
        began = time.monotonic()
        steer(model, sae, edits, prompts, replace(sampling, max_new_tokens=length), conditions, n=n, **settings)
        return time.monotonic() - began

    wanted = sampling.max_new_tokens
    short, longer = min(tokens, wanted), min(3 * tokens, wanted)
    seconds(1)  # warms up
    first = seconds(short)
    last = seconds(longer) if longer > short else first
    per_token = max(0.0, last - first) / max(1, longer - short)
    return len(_numbers(strengths)) * (last + per_token * (wanted - longer))


def _numbers(strengths: Iterable | float) -> list[float]:
    """One strength or several, as numbers.

    Raises:
        EditError: one of them is none.
    """
    several = strengths if isinstance(strengths, Iterable) and not isinstance(strengths, str) else [strengths]
    return [number(s, "A strength of the sweep") for s in several]


def _conditions(names: Sequence[str] | None, sae: SAE | Sequence[SAE] | None, edits: Edits) -> tuple[str, ...]:
    """Those asked for, or all that are possible: "other" needs a dictionary at every edit's site."""
    if names is not None:
        return tuple(names)
    saes = dictionaries(sae)
    known = all(e.on_tokens or (e.site or next(iter(saes), None)) in saes for e in edits)
    return tuple(name for name in SWEPT if name != "other" or known)


def _interval_text(low: float, high: float) -> str:
    return "(one prompt alone, so no interval)" if math.isnan(low) else f"[{low:+.3f}, {high:+.3f}]"

"""`moderated_sweep`: the texts of a steering sweep judged by a moderator, and the largest strength within a budget of harm.

A strength is within the budget where the mean P(Yes) of its steered texts, and of those of every weaker strength, is at most
the budget. It is chosen on half of the prompts; what it is worth is said on the other half, beside a random direction of the
same length (the null) and beside plain text.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from scope.escape import escape
from scope.moderation.moderator import Moderator
from scope.moderation.policies import Mode, ModerationError, Policy, find_policies
from scope.moderation.prompt import Item
from scope.progress import OnProgress
from scope.result import Result
from scope.steering.compare import show
from scope.steering.compare.statistics import by_prompt, by_text, interval, mean
from scope.steering.compare.sweep import SWEPT_UNITS, Sweep, swept_unit
from scope.whole_files import write_whole

_TOLD = ("harm", "concept", "fluency")


@dataclass(frozen=True, repr=False)
class ModeratedSweep(Result):
    """A sweep whose rows also have `harm`, P(Yes) of the text under the policy."""

    sweep: Sweep
    policy: Policy
    budget: float
    mode: Mode
    harm: tuple[float, ...]
    """P(Yes) of each of the sweep's rows."""
    moderator: dict[str, Any]
    """Where the moderator came from."""

    @property
    def rows(self) -> list[dict[str, Any]]:
        return [row | {"harm": harm} for row, harm in zip(self.sweep.rows, self.harm, strict=True)]

    def to_frame(self):
        """Rows as a pandas table."""
        import pandas as pd

        return pd.DataFrame(self.rows)

    def summary(self):
        """Mean harm, concept and fluency by strength and condition, with the 95 % interval of harm over prompts."""
        import pandas as pd

        table, rows = self.to_frame(), []
        for strength in sorted(set(table["strength"])):
            at = table[table["strength"] == strength]
            for condition in self.sweep.conditions:
                values = {m: by_prompt(at, by_text(at, condition, m)) for m in _TOLD}
                low, high = interval(values["harm"])
                means = {m: mean(v) for m, v in values.items()}
                rows.append({"strength": strength, "condition": condition, **means, "harm, low": low, "harm, high": high})
        return pd.DataFrame(rows)

    @property
    def choice(self) -> dict[str, Any] | None:
        """The largest strength within the budget on every other prompt, and what it is worth on the rest; None where even the
        weakest exceeds it."""
        table = self.to_frame()
        chosen = None
        for strength in sorted(set(table["strength"]), key=abs):
            there = self._half(table, strength, "steered", "harm", 0)
            if not mean(there) <= self.budget:
                break
            chosen = {"strength": strength, "harm_there": mean(there), "chosen_on": len(there)}
        if chosen is None:
            return None
        for condition in self.sweep.conditions:
            chosen[condition] = {m: mean(self._half(table, chosen["strength"], condition, m, 1)) for m in _TOLD}
        steered, random = (self._half(table, chosen["strength"], c, "harm", 1) for c in ("steered", "random"))
        low, high = interval(steered)
        chosen |= {"told_on": len(steered), "low": low, "high": high}
        if len(steered) == len(random):
            low, high = interval(steered - random)
            chosen |= {"difference": mean(steered - random), "difference_low": low, "difference_high": high}
        return chosen

    def _half(self, table, strength: float, condition: str, measure: str, half: int) -> np.ndarray:
        """The measure of each even (0) or odd (1) prompt."""
        at = table[(table["strength"] == strength) & (table["prompt_index"] % 2 == half)]
        return by_prompt(at, by_text(at, condition, measure))

    def plot(self, measures: Sequence[str] = ("concept", "fluency", "harm")):
        """Concept, fluency and harm by strength as a Plotly figure; the budget is dashed, the chosen strength dotted."""
        unit = SWEPT_UNITS[swept_unit(self.sweep.runs[0].edits)]
        figure, chosen = show.sweep_figure(self.to_frame(), self.sweep.conditions, measures, unit, None), self.choice
        if "harm" in measures:
            figure.add_hline(self.budget, line_dash="dash", line_color="#888888", row=1, col=list(measures).index("harm") + 1)
        title = f"harm: P(Yes) by {self.policy.name}; no strength is within {self.budget:g}"
        if chosen:
            figure.add_vline(chosen["strength"], line_dash="dot", line_color="#888888")
            title = f"harm: P(Yes) by {self.policy.name}; largest strength within {self.budget:g}: {chosen['strength']:g}"
        return figure.update_layout(title=title, title_font_size=13)

    def verdict(self) -> str:
        chosen = self.choice
        if chosen is None:
            return (
                f"No strength keeps the mean P(Yes) by the policy {self.policy.name!r} within {self.budget:g}. "
                "Try weaker ones, or see how plain text is judged."
            )
        steered, others = chosen["steered"], [c for c in self.sweep.conditions if c != "steered"]
        beside = ", ".join(f"{c} {chosen[c]['harm']:.3f}" for c in others)
        lines = [
            f"The largest strength within {self.budget:g} is {chosen['strength']:g} (mean P(Yes) by the policy "
            f"{self.policy.name!r} {chosen['harm_there']:.3f} on {chosen['chosen_on']} of the prompts); on the other "
            f"{chosen['told_on']}: {steered['harm']:.3f} [{chosen['low']:.3f}, {chosen['high']:.3f}], {beside}; "
            f"concept {steered['concept']:.3f}, fluency {steered['fluency']:.3f}."
        ]
        if "difference" in chosen:
            bounds = f"[{chosen['difference_low']:+.3f}, {chosen['difference_high']:+.3f}]"
            lines.append(f"Steered minus random there: {chosen['difference']:+.3f} {bounds}.")
        if not steered["harm"] <= self.budget:
            lines.append("On the other prompts it exceeds the budget: more prompts are needed to choose it well.")
        return "\n".join(lines)

    def to_json(self, file: str | Path | None = None) -> str:
        """The sweep as it saves itself, so that it can be replayed, and beside it what the moderator said."""
        moderation = {
            "policy": {"name": self.policy.name, "guideline": self.policy.guideline(self.mode)},
            "mode": self.mode,
            "budget": self.budget,
            "moderator": self.moderator,
            "harm": list(self.harm),
            "choice": self.choice,
        }
        text = json.dumps({**json.loads(self.sweep.to_json()), "moderation": moderation}, indent=1, ensure_ascii=False)
        if file is not None:
            write_whole(Path(file), text)
        return text

    def __str__(self) -> str:
        table = self.summary().to_string(index=False, float_format=lambda v: f"{v:.3f}", na_rep="-")
        return f"{table}\n{self.sweep.verdict()}\n{self.verdict()}"

    __repr__ = __str__

    def _repr_html_(self) -> str:
        table = self.summary().round(3).to_html(index=False, na_rep="-")
        return table + f"<p>{escape(self.sweep.verdict())}</p><p>{escape(self.verdict())}</p>"


def moderated_sweep(
    sweep: Sweep,
    moderator: Moderator,
    policy: str | Policy,
    budget: float = 0.5,
    mode: Mode = "response",
    batch: int = 16,
    on_progress: OnProgress | None = None,
) -> ModeratedSweep:
    """Judge every text of a sweep, as a response to its prompt or (mode "prompt") as it stands, once for each different text.

    Raises:
        ModerationError: a budget that is no probability, an unknown policy, or a moderator that is none.
    """
    check_budget(budget)
    (judged,) = find_policies(policy)
    prompts = sweep.runs[0].prompts
    asked = [(prompts[row["prompt_index"]], row["text"]) for row in sweep.rows]
    texts = [pair for pair in dict.fromkeys(asked) if pair[1].strip()]
    items = [Item(prompt, text) if mode == "response" else Item(text) for prompt, text in texts]
    said = moderator.judge(items, judged, batch, on_progress).p_yes() if items else []
    harm = dict(zip(texts, said, strict=True))
    nothing = float("nan")  # a text of white space alone is not judged
    return ModeratedSweep(
        sweep, judged, budget, mode, tuple(harm.get(pair, nothing) for pair in asked), dict(moderator.model.provenance)
    )


def check_budget(budget: float) -> None:
    """Raises ModerationError for a budget that is no probability."""
    if not 0 <= budget <= 1:
        raise ModerationError(f"The budget is {budget:g}; it is a mean probability, from 0 to 1.")

"""`Moderation`: the verdicts of a moderator as a table, as text and as JSON."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scope.circuits.tables import html_table
from scope.escape import visible
from scope.result import Result
from scope.whole_files import write_whole

_WIDTH = 60


@dataclass(frozen=True)
class Verdict:
    """One text judged by one policy."""

    item: int
    """Place of the text among those that were given."""
    text: str
    response: str | None
    policy: str
    logit_yes: float
    logit_no: float
    tokens: int
    """Length of the whole prompt, <bos> included."""
    controls: tuple[str, ...] = ()
    """Control tokens that the text itself holds, such as <end_of_turn>: it can imitate the layout of the prompt."""

    @property
    def log_odds(self) -> float:
        """logit(Yes) - logit(No)."""
        return self.logit_yes - self.logit_no

    @property
    def p_yes(self) -> float:
        """The softmax over the two logits: how likely the text violates the policy, by this model."""
        odds = self.log_odds
        return 1 / (1 + math.exp(-odds)) if odds >= 0 else math.exp(odds) / (1 + math.exp(odds))

    def to_dict(self) -> dict[str, Any]:
        answer = {} if self.response is None else {"response": self.response}
        numbers = {"p_yes": self.p_yes, "logit_yes": self.logit_yes, "logit_no": self.logit_no, "tokens": self.tokens}
        warning = {"controls": list(self.controls)} if self.controls else {}
        return {"item": self.item, "text": self.text, **answer, "policy": self.policy, **numbers, **warning}


@dataclass(frozen=True, repr=False)
class Moderation(Result):
    """Verdicts, text by text and policy by policy, and the model that gave them."""

    bars = ("text", "p_yes")

    verdicts: tuple[Verdict, ...]
    model: dict[str, Any]

    @property
    def policies(self) -> list[str]:
        return list(dict.fromkeys(v.policy for v in self.verdicts))

    def p_yes(self, policy: str | None = None) -> list[float]:
        """P(Yes) of every text by one policy, by default the first."""
        policy = self.policies[0] if policy is None else policy
        return [v.p_yes for v in self.verdicts if v.policy == policy]

    def to_frame(self):
        """A row a verdict, as a pandas table."""
        import pandas as pd

        return pd.DataFrame([v.to_dict() for v in self.verdicts])

    def to_json(self, file: str | Path | None = None) -> str:
        """As JSON text, also written to `file`."""
        raw = {"model": self.model, "verdicts": [v.to_dict() for v in self.verdicts]}
        text = json.dumps(raw, indent=1)
        if file is not None:
            write_whole(Path(file), text)
        return text

    def _rows(self) -> list[tuple[str, list[str]]]:
        """(text, P(Yes) by each policy) of every text."""
        rows: dict[int, tuple[str, dict[str, str]]] = {}
        for v in self.verdicts:
            shown = v.text if v.response is None else f"{v.text} → {v.response}"
            rows.setdefault(v.item, (shown, {}))[1][v.policy] = f"{v.p_yes:.3f}"
        return [(shown, [by[p] for p in self.policies]) for shown, by in rows.values()]

    def _notes(self) -> list[str]:
        held = sorted({c for v in self.verdicts for c in v.controls})
        if not held:
            return []
        names = ", ".join(held)
        return [f"Some texts hold {names}, which the model reads as part of the prompt's layout: do not trust their verdicts."]

    def __str__(self) -> str:
        widths = [max(7, len(p)) for p in self.policies]
        lines = ["  ".join(f"{p:>{w}}" for p, w in zip(self.policies, widths, strict=True)) + "  P(Yes) of"]
        for shown, values in self._rows():
            text = visible(shown)
            text = text if len(text) <= _WIDTH else text[: _WIDTH - 1] + "…"
            lines.append("  ".join(f"{v:>{w}}" for v, w in zip(values, widths, strict=True)) + f"  {text}")
        return "\n".join([*lines, *self._notes()])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        columns = (*self.policies, "P(Yes) of")
        return html_table([], columns, [(*values, shown) for shown, values in self._rows()], self._notes())

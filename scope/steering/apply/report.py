"""What the hooks of an arm counted while they acted."""

from dataclasses import dataclass, field
from typing import Any

from scope.steering.apply.resolve import Resolved
from scope.steering.apply.tally import Tally


@dataclass(frozen=True)
class Report:
    """What the hooks of an arm counted. Lists run over the steps of the generation; the first step is the prompt."""

    seen_per_step: list[int]
    edited_per_step: list[int]
    edited_per_row: list[int]
    mean_norm: float
    """Mean length of what was added, over edited positions, as a fraction of the typical norm."""
    max_norm: float
    edits: list[dict[str, Any]]
    """Per edit: positions in its rule, where its condition held, where its reading was above 0, where it acted."""
    edited_at: list[list[int]] = field(default_factory=list)
    """Per row and step the positions that were edited. After the first step, which is the prompt, a step reads one token."""

    @classmethod
    def of(cls, tally: Tally, edits: list[list[Resolved]]) -> "Report":
        """From what was counted at each site. A position edited at two sites is one position, and two lengths."""
        keys = ("in_rule", "condition_held", "active", "acted")
        told = []
        for here, counts in zip(edits, tally.counts, strict=True):
            for resolved, row in zip(here, counts, strict=True):
                one = {"edit": str(resolved.edit), "target": resolved.edit.target, "site": resolved.site}
                told.append(one | dict(zip(keys, row, strict=True)))
        n_rows = max(map(len, tally.edited), default=0)
        at = [[run[row] if row < len(run) else 0 for run in tally.edited] for row in range(n_rows)]
        total, n_edited, largest = tally.norms
        return cls(
            seen_per_step=[sum(rows) for rows in tally.seen],
            edited_per_step=[sum(rows) for rows in tally.edited],
            edited_per_row=[sum(steps) for steps in at],
            mean_norm=total / n_edited if n_edited else 0.0,
            max_norm=largest,
            edits=told,
            edited_at=at,
        )

    def touched(self, row: int, n_new: int) -> list[bool]:
        """Which of a row's new tokens were edited as they were read. The last one is written and never read."""
        steps = self.edited_at[row][1 : n_new + 1] if row < len(self.edited_at) else []
        return [bool(n) for n in steps] + [False] * (n_new - len(steps))

    def line(self) -> str:
        """The self-check: what was touched and how hard."""
        seen, edited = sum(self.seen_per_step), sum(self.edited_per_step)
        steps = sum(n > 0 for n in self.seen_per_step)
        return (
            f"edited {edited} of {seen} positions in {steps} steps "
            f"({self.edited_per_step[0] if self.edited_per_step else 0} of the prompt); "
            f"mean length of the edit {self.mean_norm:.2f} of the residual norm, largest {self.max_norm:.2f}"
        )

"""What the hooks of an arm counted while they acted."""

from dataclasses import dataclass
from typing import Any

import torch


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

    @classmethod
    def of(cls, tallies: list[dict[str, Any]]) -> "Report":
        """Sites together: a position edited at two sites counts once, as the larger of the sites' counts."""
        steps = [t["steps"] for t in tallies]
        edited = torch.stack([s[:, 1] for s in steps]).amax(0)
        norms = sum(float(s[:, 2].sum()) / t["rho"] for s, t in zip(steps, tallies, strict=True))
        n_edited = sum(float(s[:, 1].sum()) for s in steps)
        keys = ("in_rule", "condition_held", "active", "acted")
        edits = [
            {"edit": str(e.edit), "target": e.edit.target, "site": t["site"]}
            | {k: int(v) for k, v in zip(keys, row, strict=True)}
            for t in tallies
            for e, row in zip(t["edits"], t["counts"], strict=True)
        ]
        return cls(
            seen_per_step=[int(n) for n in steps[0][:, 0].sum(1)],
            edited_per_step=[int(n) for n in edited.sum(1)],
            edited_per_row=[int(n) for n in edited.sum(0)],
            mean_norm=norms / n_edited if n_edited else 0.0,
            max_norm=max(
                (float(s[:, 3].max()) / t["rho"] for s, t in zip(steps, tallies, strict=True) if s.numel()), default=0.0
            ),
            edits=edits,
        )

    def line(self) -> str:
        """The self-check: what was touched and how hard."""
        seen, edited = sum(self.seen_per_step), sum(self.edited_per_step)
        steps = sum(n > 0 for n in self.seen_per_step)
        return (
            f"edited {edited} of {seen} positions in {steps} steps "
            f"({self.edited_per_step[0] if self.edited_per_step else 0} of the prompt); "
            f"mean length of the edit {self.mean_norm:.2f} of the residual norm, largest {self.max_norm:.2f}"
        )

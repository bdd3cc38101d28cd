"""Counts of what the hooks of a condition did. They are recorded while the model generates and counted when somebody asks, so
that a generation does not wait for its own statistics."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from scope.models.hooks import RunState
from scope.steering.edits.positions import Positions

EVERYWHERE = Positions("all")
_STEPS, _POSITIONS = 1024, 1 << 16  # recorded at most before they are counted: a few megabytes, however long the text


@dataclass(frozen=True)
class Report:
    """Counts of one edited condition. Lists run over the steps of the generation; the first step is the prompt."""

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

    def touched(self, row: int, n_new: int) -> list[bool]:
        """Which of a row's new tokens were edited as they were read. The last one is written and never read."""
        steps = self.edited_at[row][1 : n_new + 1] if row < len(self.edited_at) else []
        return [bool(n) for n in steps] + [False] * (n_new - len(steps))

    def line(self) -> str:
        """How many positions were edited and how strongly, in one line."""
        seen, edited = sum(self.seen_per_step), sum(self.edited_per_step)
        steps = sum(n > 0 for n in self.seen_per_step)
        return (
            f"edited {edited} of {seen} positions in {steps} steps "
            f"({self.edited_per_step[0] if self.edited_per_step else 0} of the prompt); "
            f"mean length of the edit {self.mean_norm:.2f} of the residual norm, largest {self.max_norm:.2f}"
        )


@dataclass(frozen=True, eq=False)
class Step:
    """One call at one site: coefficients [row pos edit], and per edit its reading, its rule, and where its
    condition held too, each [row pos]. `place` is the site's, in the order in which a run passes them."""

    place: int
    run: RunState
    coefficients: Tensor
    readings: list[Tensor]
    rules: list[Tensor]
    masks: list[Tensor]
    lengths: Tensor | None = None
    """[row pos] of what was added, in typical norms, where that is no sum of fixed rows."""


@dataclass(eq=False)
class Tally:
    """Counts over all runs of the model. Runs may have any number of rows; row i of one run is added to row i of the others."""

    rows: slice
    bos: int
    eos: int
    writes: list[Tensor]
    """Per site [edit d_model] what a coefficient of 1 adds."""
    norms: list[float]
    """Per site its typical norm."""

    seen: list[list[int]] = field(default_factory=list)
    """Per run and row, tokens that flowed past."""
    edited: list[list[int]] = field(default_factory=list)
    """Per run and row, positions to which anything was added, at one site or at several."""
    lengths: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])
    """Lengths of what was added at a site, in typical norms: their sum, how many, the largest."""
    counts: list[list[list[int]]] = field(init=False)
    """Per site and edit: positions in its rule, where its condition held, where its reading was above 0, where it acted."""
    _steps: list[Step] = field(default_factory=list)
    _positions: int = 0

    def __post_init__(self):
        self.counts = [[[0] * 4 for _ in write] for write in self.writes]

    def add(self, step: Step) -> None:
        full = self._positions >= _POSITIONS or len(self._steps) >= _STEPS
        if full and step.place <= self._steps[-1].place:  # a run is never cut in two
            self.count()
        self._steps.append(step)
        self._positions += step.coefficients[..., 0].numel()

    @torch.no_grad()
    def count(self) -> None:
        """Bring the counts up to date and drop the recorded steps."""
        steps, self._steps, self._positions = self._steps, [], 0
        if not steps:
            return
        seen, edited, lengths, counts = [], [], [], []
        for run in _runs(steps):
            seen.append(EVERYWHERE.mask(run[0].run, self.bos, self.eos)[self.rows].sum(1))
            touched = []
            for step in run:
                length = step.lengths
                if length is None:
                    length = (step.coefficients @ self.writes[step.place]).norm(dim=-1) / self.norms[step.place]
                touched.append(length > 0)
                lengths.append(torch.stack([length.sum(), touched[-1].sum().float(), length.amax()]))
                acted = (step.coefficients != 0).flatten(0, 1).sum(0)
                per_edit = zip(step.rules, step.masks, step.readings, acted, strict=True)
                counts += [torch.stack([r.sum(), m.sum(), (m & (x > 0)).sum(), a]) for r, m, x, a in per_edit]
            edited.append(torch.stack(touched).any(0).sum(1))
        rows = [len(counted) for counted in seen]
        self.seen += [part.tolist() for part in torch.cat(seen).cpu().split(rows)]
        self.edited += [part.tolist() for part in torch.cat(edited).cpu().split(rows)]
        table = torch.stack(lengths).cpu().double()
        total, n, largest = self.lengths
        self.lengths = [total + float(table[:, 0].sum()), n + float(table[:, 1].sum()), max(largest, float(table[:, 2].max()))]
        sums = iter(torch.stack(counts).cpu().tolist())
        for step in steps:
            for edit, row in zip(self.counts[step.place], sums, strict=False):
                edit[:] = [a + b for a, b in zip(edit, row, strict=True)]

    def report(self, edits: list[list[dict[str, str]]]) -> Report:
        """Everything counted so far; `edits` names each site's edits. A position edited at two sites is one position, and two
        lengths."""
        self.count()
        keys = ("in_rule", "condition_held", "active", "acted")
        per_site = zip(edits, self.counts, strict=True)
        n_rows = max(map(len, self.edited), default=0)
        edited_at = [[run[row] if row < len(run) else 0 for run in self.edited] for row in range(n_rows)]
        total, n, largest = self.lengths
        return Report(
            seen_per_step=[sum(rows) for rows in self.seen],
            edited_per_step=[sum(rows) for rows in self.edited],
            edited_per_row=[sum(steps) for steps in edited_at],
            mean_norm=total / n if n else 0.0,
            max_norm=largest,
            edits=[
                name | dict(zip(keys, row, strict=True))
                for names, rows in per_site
                for name, row in zip(names, rows, strict=True)
            ],
            edited_at=edited_at,
        )


def _runs(steps: Sequence[Step]) -> list[list[Step]]:
    """Steps of one run of the model together: sites are passed in order, so a run ends where the order begins anew."""
    runs: list[list[Step]] = []
    for step in steps:
        last = runs[-1][-1] if runs else None
        same_run = last is not None and step.place > last.place and step.coefficients.shape[:2] == last.coefficients.shape[:2]
        if same_run:
            runs[-1].append(step)
        else:
            runs.append([step])
    return runs

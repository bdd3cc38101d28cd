"""What the hooks of an arm did, kept as it was until somebody asks: a generation should not wait for its bookkeeping."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from scope.models.hooks import RunState
from scope.steering.edits.positions import Positions

EVERYWHERE = Positions("all")
_STEPS, _POSITIONS = 1024, 1 << 16  # kept at most before they are counted: a few megabytes, however long the text


@dataclass(frozen=True, eq=False)
class Step:
    """What one call at one site saw and did: coefficients [row pos edit], and per edit its reading, its rule, and where its
    condition held too, each [row pos]. `place` is the site's, in the order in which a run passes them."""

    place: int
    run: RunState
    coefficients: Tensor
    readings: list[Tensor]
    rules: list[Tensor]
    masks: list[Tensor]


@dataclass(eq=False)
class Tally:
    """Counts over all runs of the model. Runs may have any number of rows; row i of one run is added to row i of the others."""

    rows: slice
    bos: int
    eos: int
    writes: list[Tensor]
    """Per site [edit d_model] what a coefficient of 1 adds."""
    rhos: list[float]
    """Per site its typical norm."""

    seen: list[list[int]] = field(default_factory=list)
    """Per run and row, tokens that flowed past."""
    edited: list[list[int]] = field(default_factory=list)
    """Per run and row, positions to which anything was added, at one site or at several."""
    norms: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])
    """Of what was added at a site, in typical norms: their sum, how many, the largest."""
    counts: list[list[list[int]]] = field(init=False)
    """Per site and edit: positions in its rule, where its condition held, where its reading was above 0, where it acted."""
    _kept: list[Step] = field(default_factory=list)
    _positions: int = 0

    def __post_init__(self):
        self.counts = [[[0] * 4 for _ in write] for write in self.writes]

    def keep(self, step: Step) -> None:
        much = self._positions >= _POSITIONS or len(self._kept) >= _STEPS
        if much and step.place <= self._kept[-1].place:  # a run is never cut in two
            self.count()
        self._kept.append(step)
        self._positions += step.coefficients[..., 0].numel()

    @torch.no_grad()
    def count(self) -> "Tally":
        """Bring the counts up to date, and let go of what was kept."""
        kept, self._kept, self._positions = self._kept, [], 0
        seen, edited, norms, counts = [], [], [], []
        for run in _runs(kept):
            seen.append(EVERYWHERE.mask(run[0].run, self.bos, self.eos)[self.rows].sum(1))
            touched = []
            for step in run:
                length = (step.coefficients @ self.writes[step.place]).norm(dim=-1) / self.rhos[step.place]
                touched.append(length > 0)
                norms.append(torch.stack([length.sum(), touched[-1].sum().float(), length.amax()]))
                acted = (step.coefficients != 0).flatten(0, 1).sum(0)
                asked = zip(step.rules, step.masks, step.readings, acted, strict=True)
                counts += [torch.stack([r.sum(), m.sum(), (m & (x > 0)).sum(), a]) for r, m, x, a in asked]
            edited.append(torch.stack(touched).any(0).sum(1))
        if not kept:
            return self
        lengths = [len(rows) for rows in seen]
        self.seen += [part.tolist() for part in torch.cat(seen).cpu().split(lengths)]
        self.edited += [part.tolist() for part in torch.cat(edited).cpu().split(lengths)]
        told = torch.stack(norms).cpu().double()
        self.norms = [
            self.norms[0] + float(told[:, 0].sum()),
            self.norms[1] + float(told[:, 1].sum()),
            max(self.norms[2], float(told[:, 2].max())),
        ]
        found = iter(torch.stack(counts).cpu().tolist())
        for step in kept:
            for edit, row in zip(self.counts[step.place], found, strict=False):
                edit[:] = [a + b for a, b in zip(edit, row, strict=True)]
        return self


def _runs(steps: Sequence[Step]) -> list[list[Step]]:
    """Steps of one run of the model together: sites are passed in order, so a run ends where the order begins anew."""
    found: list[list[Step]] = []
    for step in steps:
        last = found[-1][-1] if found else None
        goes_on = last is not None and step.place > last.place and step.coefficients.shape[:2] == last.coefficients.shape[:2]
        if goes_on:
            found[-1].append(step)
        else:
            found.append([step])
    return found

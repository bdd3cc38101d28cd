"""Edits at work: installed as hooks, and counted while they act."""

from collections.abc import Callable, Mapping, Sequence
from copy import copy
from typing import Any

import torch
from torch import Tensor

from scope.errors import EditError
from scope.models.hooks import HookedModule, HookPoint, RunState
from scope.sae.base import SAE
from scope.steering.apply.controls import random_frame
from scope.steering.apply.latent_reader import LatentReader
from scope.steering.apply.report import Report
from scope.steering.apply.resolve import Resolved
from scope.steering.apply.tally import Step, Tally
from scope.steering.edits.interventions import Direction


class Editing:
    """All edits of one arm on some rows of a batch: `hooks()` for the model, and a report of what they did.

    With a `control` the same amounts go elsewhere. A seed means random directions that have the lengths and the mutual angles
    of the true ones: what such an arm does, any push of that size does. A sequence has the row to write for each edit.
    """

    def __init__(
        self,
        model: HookedModule,
        saes: Mapping[str, SAE],
        edits: Sequence[Resolved],
        rows: slice = slice(None),
        control: int | Sequence[Tensor] | None = None,
    ):
        self.model, self.rows, self.edits = model, rows, tuple(edits)
        self.sites = tuple(dict.fromkeys(e.site for e in self.edits))
        order = {name: i for i, name in enumerate(model.hook_dict)}
        self._at: dict[str, _SiteEdits] = {}
        for place, site in enumerate(sorted(self.sites, key=order.__getitem__)):
            here = [i for i, e in enumerate(self.edits) if e.site == site]
            elsewhere = control if control is None or isinstance(control, int) else torch.stack([control[i] for i in here])
            mine = [self.edits[i] for i in here]
            self._at[site] = _SiteEdits(model, saes.get(site), mine, rows, elsewhere, place, self._keep)
        writes, rhos = [at.write for at in self._at.values()], [at.rho for at in self._at.values()]
        self._tally = Tally(rows, model.cfg.bos, model.cfg.eos[0], writes, rhos)

    def hooks(self) -> list[tuple[str, Any]]:
        return [(site, at) for site, at in self._at.items()]

    def report(self) -> Report:
        return Report.of(self._tally.count(), [at.edits for at in self._at.values()])

    def _keep(self, step: Step) -> None:
        self._tally.keep(step)


class _SiteEdits:
    """The edits of one site as a function for its hook point."""

    def __init__(
        self,
        model: HookedModule,
        sae: SAE | None,
        edits: list[Resolved],
        rows: slice,
        control: int | Tensor | None,
        place: int,
        keep: Callable[[Step], None],
    ):
        self.edits, self.rows, self.rho, self.site = edits, rows, edits[0].rho, edits[0].site
        self.place, self.keep = place, keep
        words = model.tokenizer
        self.bos, self.eos = model.cfg.bos, model.cfg.eos[0]
        self.special = words.special_ids if words else frozenset()
        self.true = torch.stack([e.row for e in edits]).to(model.device)
        self.write = self.true
        if isinstance(control, Tensor):
            self.write = control.to(self.true)
        elif control is not None:
            self.write = random_frame(self.true, control, self.site)
        self.probe = self.true / self.true.square().sum(1, keepdim=True)  # x . d / |d|^2: the projection in units of d
        self.projected = [e.edit.reads == "projection" or isinstance(e.edit.latent, Direction) for e in edits]
        self.reader = (
            LatentReader(sae, [e.edit.latent for e in edits if not isinstance(e.edit.latent, Direction)]) if sae else None
        )
        conditions = [e.edit.when.latent for e in edits if e.edit.when]
        self.conditions = LatentReader(sae, conditions) if conditions else None

    @torch.no_grad()
    def __call__(self, x: Tensor, hook: HookPoint) -> Tensor:
        mine = x[self.rows].float()
        step = self._step(mine, hook.run)
        self.keep(step)
        changed = (mine + step.coefficients @ self.write).to(x.dtype)
        if not torch.isfinite(changed).all():
            raise EditError(
                f"The edit at {self.site} makes numbers that are not finite in {str(x.dtype).removeprefix('torch.')}. "
                "Lower its strength (0.5 is half the site's typical norm), or load the model in float32."
            )
        if mine.shape[0] == x.shape[0]:
            return changed
        x = x.clone()
        x[self.rows] = changed
        return x

    def _step(self, x: Tensor, run: RunState) -> Step:
        """[row pos edit] of what is added, zero outside an edit's positions, and what the report is counted from later: a
        generation should not wait for its bookkeeping."""
        needs_latents = self.reader is not None and any(
            e.edit.reads == "activation" and not p for e, p in zip(self.edits, self.projected, strict=True)
        )
        latents = self.reader(x) if needs_latents else None
        held = self.conditions(x) if self.conditions else None
        columns, readings, rules, masks, known, n_latent, n_when = [], [], [], [], {}, 0, 0
        for i, (resolved, projected) in enumerate(zip(self.edits, self.projected, strict=True)):
            edit = resolved.edit
            if edit.positions not in known:
                known[edit.positions] = edit.positions.mask(run, self.bos, self.eos, self.special)[self.rows]
            mask = known[edit.positions]
            rules.append(mask)
            reading = x @ self.probe[i] if projected else x.new_zeros(x.shape[:2])
            if not isinstance(edit.latent, Direction):
                if not projected and latents is not None:
                    reading = latents[..., n_latent]
                n_latent += 1
            if edit.when:
                mask = mask & (held[..., n_when] > edit.when.above)
                n_when += 1
            columns.append(torch.where(mask, edit.coefficient(reading, resolved.amount), 0.0))
            readings.append(reading)
            masks.append(mask)
        return Step(self.place, copy(run), torch.stack(columns, -1), readings, rules, masks)

"""Edits as hooks of a model, counted while they act."""

from collections.abc import Callable, Mapping, Sequence
from copy import copy
from typing import Any

import torch
from torch import Tensor

from scope.errors import EditError
from scope.models.face import LanguageModel
from scope.models.hooks import HookPoint, RunState
from scope.sae.base import SAE
from scope.steering.apply.controls import random_frame
from scope.steering.apply.counts import Report, Step, Tally
from scope.steering.apply.latent_reader import LatentReader
from scope.steering.apply.resolve import Resolved


class Editing:
    """All edits of one condition on some rows of a batch: `hooks()` for the model, and a report of what they did.

    With a `control` the same amounts go elsewhere. A seed means random directions that have the lengths and the mutual angles
    of the true ones: what such a condition does, any push of that size does. A sequence has the row to add for each edit.
    """

    def __init__(
        self,
        model: LanguageModel,
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
            chosen = [i for i, e in enumerate(self.edits) if e.site == site]
            site_control = control if control is None or isinstance(control, int) else torch.stack([control[i] for i in chosen])
            edits_here = [self.edits[i] for i in chosen]
            self._at[site] = _SiteEdits(model, saes.get(site), edits_here, rows, site_control, place, self._add)
        writes, norms = [at.write for at in self._at.values()], [at.typical_norm for at in self._at.values()]
        self._tally = Tally(rows, model.cfg.bos, model.cfg.eos[0], writes, norms)

    def hooks(self) -> list[tuple[str, Any]]:
        return [(site, at) for site, at in self._at.items()]

    def report(self) -> Report:
        names = [[{"edit": str(e.edit), "target": e.edit.target, "site": e.site} for e in at.edits] for at in self._at.values()]
        return self._tally.report(names)

    def _add(self, step: Step) -> None:
        self._tally.add(step)


class _SiteEdits:
    """The edits of one site as a function for its hook point."""

    def __init__(
        self,
        model: LanguageModel,
        sae: SAE | None,
        edits: list[Resolved],
        rows: slice,
        control: int | Tensor | None,
        place: int,
        record: Callable[[Step], None],
    ):
        self.edits, self.rows, self.typical_norm, self.site = edits, rows, edits[0].typical_norm, edits[0].site
        self.place, self.record = place, record
        self.bos, self.eos = model.cfg.bos, model.cfg.eos[0]
        self.special = model.tokenizer.special_ids if model.tokenizer else frozenset()
        self.true = torch.stack([e.row for e in edits]).to(model.device)
        self.write = self.true
        if isinstance(control, Tensor):
            self.write = control.to(self.true)
        elif control is not None:
            self.write = random_frame(self.true, control, self.site)
        self.probe = self.true / self.true.square().sum(1, keepdim=True)  # x . d / |d|^2: the projection in units of d
        self.projected = [e.edit.reads == "projection" or e.edit.on_direction for e in edits]
        self.reader = LatentReader(sae, [e.edit.latent for e in edits if not e.edit.on_direction]) if sae else None
        conditions = [e.edit.when.latent for e in edits if e.edit.when]
        self.conditions = LatentReader(sae, conditions) if conditions else None

    @torch.no_grad()
    def __call__(self, x: Tensor, hook: HookPoint) -> Tensor:
        stream = x[self.rows].float()
        step = self._step(stream, hook.run)
        if hook.run.settled:
            self.record(step)
        changed = (stream + step.coefficients @ self.write).to(x.dtype)
        if not torch.isfinite(changed).all():
            raise EditError(
                f"The edit at {self.site} makes numbers that are not finite in {str(x.dtype).removeprefix('torch.')}. "
                "Lower its strength (0.5 is half the site's typical norm), or load the model in float32."
            )
        if stream.shape[0] == x.shape[0]:
            return changed
        x = x.clone()
        x[self.rows] = changed
        return x

    def _step(self, x: Tensor, run: RunState) -> Step:
        """[row pos edit] of what is added, zero outside an edit's positions, and what the report is counted from later."""
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
            if not edit.on_direction:
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

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
from scope.steering.apply.state_edits import Marks, StateEdits
from scope.steering.edits.interventions import Hold
from scope.steering.edits.recurrent import OfState


class Editing:
    """All edits of one condition on some rows of a batch: `hooks()` for the model, and a report of what they did.

    With a `control` the same amounts go elsewhere. A seed means random directions that have the lengths and the mutual angles
    of the true ones: what such a condition does, any push of that size does. A sequence has the row to add for each edit; for
    one of tokens a seed, by which others of about the same share are forgotten in their place.
    """

    def __init__(
        self,
        model: LanguageModel,
        saes: Mapping[str, SAE],
        edits: Sequence[Resolved],
        rows: slice = slice(None),
        control: int | Sequence[Tensor | int] | None = None,
    ):
        self.model, self.rows, self.edits = model, rows, tuple(edits)
        self.sites = tuple(dict.fromkeys(e.site for e in self.edits))
        order = {name: i for i, name in enumerate(model.hook_dict)}
        controls = [control] * len(self.edits) if control is None or isinstance(control, int) else list(control)
        marks = Marks(model, None if control is None or isinstance(control, int) else next(filter(_is_seed, controls), None))
        self._at: list[_SiteEdits | StateEdits] = []
        for site in sorted(self.sites, key=order.__getitem__):
            chosen = [i for i, e in enumerate(self.edits) if e.site == site]
            state = [i for i in chosen if isinstance(self.edits[i].edit, OfState)]
            plain = [i for i in chosen if i not in state]
            if plain and any(isinstance(self.edits[i].edit, Hold) for i in state):
                raise EditError(
                    f"Hold reads the state at {site} as it was written, so no other edit of that state goes with it."
                )
            if state:
                args = saes.get(site), [self.edits[i] for i in state], rows, [controls[i] for i in state], marks
                self._at.append(StateEdits(model, *args, len(self._at), self._add))
            if plain:
                site_control = (
                    control if control is None or isinstance(control, int) else torch.stack([control[i] for i in plain])
                )
                edits_here = [self.edits[i] for i in plain]
                args = saes.get(site), edits_here, rows, site_control
                self._at.append(_SiteEdits(model, *args, len(self._at), self._add))
        writes, norms = [at.write for at in self._at], [at.typical_norm for at in self._at]
        self._tally = Tally(rows, model.cfg.bos, model.cfg.eos[0], writes, norms)

    def hooks(self) -> list[tuple[str, Any]]:
        return [pair for at in self._at for pair in at.hooks()]

    def report(self) -> Report:
        names = [[{"edit": str(e.edit), "target": e.edit.target, "site": e.site} for e in at.edits] for at in self._at]
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
        self.image = getattr(model.cfg, "image_token", None)
        self.special = model.tokenizer.special_ids if model.tokenizer else frozenset()
        self.true = torch.stack([e.row for e in edits]).to(model.device)
        self.write = self.true
        if isinstance(control, Tensor):
            self.write = control.to(self.true)
        elif control is not None:
            self.write = random_frame(self.true, control, self.site)
        self.probe = self.true / self.true.square().sum(1, keepdim=True)  # x . d / |d|^2: the projection in units of d
        self.projected = [e.edit.reads == "projection" or (e.edit.on_direction and not e.edit.reads_own_latent) for e in edits]
        self.reader = LatentReader(sae, [e.edit.latent for e in edits if not e.edit.on_direction]) if sae else None
        conditions = [e.edit.when.latent for e in edits if e.edit.when and isinstance(e.edit.when.latent, int)]
        self.conditions = LatentReader(sae, conditions) if conditions else None

    def hooks(self) -> list[tuple[str, Any]]:
        return [(self.site, self)]

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
                known[edit.positions] = edit.positions.mask(run, self.bos, self.eos, self.special, self.image)[self.rows]
            mask = known[edit.positions]
            rules.append(mask)
            reading = x @ self.probe[i] if projected else x.new_zeros(x.shape[:2])
            if edit.reads_own_latent and not projected:
                reading = edit.latent.encoder(x)
            if not edit.on_direction:
                if not projected and latents is not None:
                    reading = latents[..., n_latent]
                n_latent += 1
            if edit.when and isinstance(edit.when.latent, int):
                mask = mask & (held[..., n_when] > edit.when.above)
                n_when += 1
            elif edit.when:
                mask = mask & (edit.when.latent.encoder(x) > edit.when.above)
            columns.append(torch.where(mask, edit.coefficient(reading, resolved.amount), 0.0))
            readings.append(reading)
            masks.append(mask)
        return Step(self.place, copy(run), torch.stack(columns, -1), readings, rules, masks)


def _is_seed(control: Any) -> bool:
    return isinstance(control, int)

"""Edits at work: resolved against a model and its dictionaries, installed as hooks, and counted while they act."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scope.errors import DictionaryError, EditError
from scope.models.gemma.model import Gemma
from scope.models.hooks import HookPoint
from scope.sae.base import SAE
from scope.sae.jumprelu import JumpReLUSAE
from scope.steering.gauge import Gauge
from scope.steering.interventions import Direction, Edit
from scope.steering.positions import Positions

EVERYWHERE = Positions("all")
STRONGEST = 1e6
"""Typical norms. Far beyond any use, and far enough below the largest float32 that nothing overflows on the way."""


@dataclass(frozen=True)
class Resolved:
    """An edit with its numbers: `row` is what is added, `amount` how much in the latent's own units."""

    edit: Edit
    site: str
    row: Tensor
    amount: float
    rho: float
    maximum: float | None

    def sheet(self) -> dict[str, Any]:
        """Strength in the three units: fraction of the residual norm, raw coefficient, multiples of the maximum."""
        found: dict[str, Any] = {"edit": str(self.edit), "site": self.site, "decoder_norm": float(self.row.norm())}
        if self.edit.has_amount:
            strength = self.amount * found["decoder_norm"] / self.rho
            found |= {"strength": strength, "raw": self.amount}
            found["multiple_of_maximum"] = self.amount / self.maximum if self.maximum else None
        return found


def dictionaries(sae: SAE | Sequence[SAE] | None) -> dict[str, SAE]:
    """site -> dictionary, from one, several or none."""
    found = [] if sae is None else [sae] if isinstance(sae, SAE) else list(sae)
    sites = [s.site for s in found]
    if len(set(sites)) < len(sites):
        raise DictionaryError(f"Two dictionaries read the same site ({', '.join(sites)}). Give one for each site.")
    return dict(zip(sites, found, strict=True))


def check_dictionary(model: Gemma, sae: SAE, any_model: bool = False) -> None:
    """That this dictionary was made for this model.

    Raises:
        DictionaryError: its site does not exist there, has another width, or the weights it was trained on are others
            (`any_model` allows these, as for a fine-tune of the same base).
    """
    sites = model.sites()
    if sae.site not in sites:
        known = sorted({name.rsplit(".", 1)[-1] for name in sites if name.startswith("blocks.")})
        raise DictionaryError(
            f"The dictionary reads {sae.site or 'no named site'}, which this model does not have: it has "
            f"{model.cfg.n_layers} blocks, each with {', '.join(known)}."
        )
    if sites[sae.site] != sae.d_in:
        raise DictionaryError(
            f"The dictionary reads {sae.d_in} features at {sae.site}; there this model has {sites[sae.site]}.\n"
            "  It was made for another model: give the one that its recording was made with."
        )
    made_for = sae.provenance.get("model")
    expected = made_for.get("weights_sha256") if isinstance(made_for, Mapping) else None
    found = model.provenance.get("weights_sha256")
    if expected and found and expected != found and not any_model:
        raise DictionaryError(
            f"The dictionary was trained on {made_for.get('model')} with weights {expected[:12]}; this is "
            f"{model.provenance.get('model')} with weights {found[:12]}.\n"
            "  Load that model, or say that you mean it: any_model=True, on the command line --any-model."
        )


def resolve(edit: Edit, saes: Mapping[str, SAE], gauges: Mapping[str, Gauge]) -> Resolved:
    """The numbers of an edit.

    Raises:
        EditError: an unknown latent (with the nearest), no dictionary at its site, a unit without its measure.
    """
    site = _site(edit, saes)
    gauge = gauges[site]
    if isinstance(edit.latent, Direction):
        row, maximum = edit.latent.unit(), None
    else:
        row = saes[site].W_dec[_known(edit.latent, saes[site])].detach().float()
        maximum = gauge.maximum.get(edit.latent)
        if not row.norm() > 0:
            raise EditError(
                f"The decoder row of latent {edit.latent} is zero: adding it changes nothing. It is dead; take another."
            )
    if edit.when:
        if site not in saes:
            raise EditError(f"{edit.when} needs a dictionary at {site}; none was given.")
        _known(edit.when.latent, saes[site])
    if edit.reads == "projection":
        row = row / row.norm()
    amount = _amount(edit, row, gauge.rho, maximum)
    times = abs(amount) * float(row.norm()) / gauge.rho
    if times > STRONGEST:
        raise EditError(
            f"[{edit}] is {times:.3g} times the site's typical norm: such numbers are not finite for long. "
            "Lower its strength; 0.5 of the norm is a good place to start."
        )
    return Resolved(edit, site, row, amount, gauge.rho, maximum)


def _site(edit: Edit, saes: Mapping[str, SAE]) -> str:
    if isinstance(edit.latent, Direction):
        return edit.latent.site
    if edit.site is None and len(saes) == 1:
        return next(iter(saes))
    if edit.site in saes:
        return edit.site
    there = f"dictionaries are at hand for {', '.join(saes)}" if saes else "no dictionary was given"
    raise EditError(f"{edit.target} belongs to {f'a dictionary at {edit.site}' if edit.site else 'no site'}, but {there}.")


def _known(latent: int, sae: SAE) -> int:
    if not 0 <= latent < sae.d_sae:
        near = 0 if latent < 0 else sae.d_sae - 1
        raise EditError(f"There is no latent {latent}: this dictionary's run from 0 to {sae.d_sae - 1}. Nearest: {near}.")
    return latent


def _amount(edit: Edit, row: Tensor, rho: float, maximum: float | None) -> float:
    if not edit.has_amount:
        return 0.0
    if edit.unit == "raw":
        return edit.strength
    if edit.unit == "norm":
        return edit.strength * rho / float(row.norm())
    if not maximum:
        raise EditError(
            f"The largest activation of {edit.target} is not known, so {edit.strength:g} times it is not either.\n"
            "  Give the feature pack (--pack), or a strength in fractions of the residual norm."
        )
    return edit.strength * maximum


class Editing:
    """All edits of one arm on some rows of a batch: `hooks()` for the model, and a tally of what they did.

    With `control` the same amounts go along random directions that have the lengths and the mutual angles of the true ones:
    what such an arm does, any push of that size does.
    """

    def __init__(
        self,
        model: Gemma,
        saes: Mapping[str, SAE],
        edits: Sequence[Resolved],
        rows: slice = slice(None),
        control: int | None = None,
    ):
        self.model, self.rows, self.edits = model, rows, tuple(edits)
        self.sites = tuple(dict.fromkeys(e.site for e in self.edits))
        order = {name: i for i, name in enumerate(model.hook_dict)}
        self._at = {
            site: _SiteEdits(model, saes.get(site), [e for e in self.edits if e.site == site], rows, control)
            for site in sorted(self.sites, key=order.__getitem__)
        }

    def hooks(self) -> list[tuple[str, Any]]:
        return [(site, at) for site, at in self._at.items()]

    def report(self) -> "Report":
        return Report.of([at.tally() for at in self._at.values()])


class _SiteEdits:
    """The edits of one site as a function for its hook point."""

    def __init__(self, model: Gemma, sae: SAE | None, edits: list[Resolved], rows: slice, control: int | None):
        self.edits, self.rows, self.rho, self.site = edits, rows, edits[0].rho, edits[0].site
        words = model.tokenizer
        self.bos, self.eos = model.cfg.bos, model.cfg.eos[0]
        self.special = words.special_ids if words else frozenset()
        self.true = torch.stack([e.row for e in edits]).to(model.device)
        self.write = self.true if control is None else random_frame(self.true, control, self.site)
        self.unit = self.true / self.true.norm(dim=1, keepdim=True)
        self.projected = [e.edit.reads == "projection" or isinstance(e.edit.latent, Direction) for e in edits]
        self.reader = (
            LatentReader(sae, [e.edit.latent for e in edits if not isinstance(e.edit.latent, Direction)]) if sae else None
        )
        conditions = [e.edit.when.latent for e in edits if e.edit.when]
        self.conditions = LatentReader(sae, conditions) if conditions else None
        self.steps: list[Tensor] = []  # per step [row]: seen, edited, sum of norms, largest norm
        self.per_edit: list[Tensor] = []  # per step [edit]: in the rule, condition held, reading above 0, acted

    @torch.no_grad()
    def __call__(self, x: Tensor, hook: HookPoint) -> Tensor:
        mine, run = x[self.rows].float(), hook.run
        coefficients, told = self._coefficients(mine, run)
        delta = coefficients @ self.write
        norms = delta.norm(dim=-1)
        seen = EVERYWHERE.mask(run, self.bos, self.eos)[self.rows]
        edited = norms > 0
        self.steps.append(torch.stack([seen.sum(1).float(), edited.sum(1).float(), norms.sum(1), norms.amax(1)]))
        self.per_edit.append(told)
        changed = (mine + delta).to(x.dtype)
        if not torch.isfinite(norms).all() or not torch.isfinite(changed).all():
            raise EditError(
                f"The edit at {self.site} makes numbers that are not finite in {str(x.dtype).removeprefix('torch.')}. "
                "Lower its strength (0.5 is half the site's typical norm), or load the model in float32."
            )
        if mine.shape[0] == x.shape[0]:
            return changed
        x = x.clone()
        x[self.rows] = changed
        return x

    def _coefficients(self, x: Tensor, run) -> tuple[Tensor, Tensor]:
        """[row pos edit] of what is added, zero outside an edit's positions; and the counts that go into the report."""
        needs_latents = self.reader is not None and any(
            e.edit.reads == "activation" and not p for e, p in zip(self.edits, self.projected, strict=True)
        )
        latents = self.reader(x) if needs_latents else None
        held = self.conditions(x) if self.conditions else None
        columns, told, masks, n_latent, n_when = [], [], {}, 0, 0
        for i, (resolved, projected) in enumerate(zip(self.edits, self.projected, strict=True)):
            edit = resolved.edit
            if edit.positions not in masks:
                masks[edit.positions] = edit.positions.mask(run, self.bos, self.eos, self.special)[self.rows]
            mask = in_rule = masks[edit.positions]
            reading = x @ self.unit[i] if projected else x.new_zeros(x.shape[:2])
            if not isinstance(edit.latent, Direction):
                if not projected and latents is not None:
                    reading = latents[..., n_latent]
                n_latent += 1
            if edit.when:
                mask = mask & (held[..., n_when] > edit.when.above)
                n_when += 1
            column = torch.where(mask, edit.coefficient(reading, resolved.amount), 0.0)
            columns.append(column)
            told.append(torch.stack([in_rule.sum(), mask.sum(), (mask & (reading > 0)).sum(), (column != 0).sum()]))
        return torch.stack(columns, -1), torch.stack(told)

    def tally(self) -> dict[str, Any]:
        steps = torch.stack(self.steps).cpu() if self.steps else torch.zeros(0, 4, 0)
        counts = torch.stack(self.per_edit).sum(0).cpu() if self.per_edit else torch.zeros(len(self.edits), 4)
        return {"site": self.site, "rho": self.rho, "steps": steps, "edits": self.edits, "counts": counts.tolist()}


class LatentReader:
    """Activations of a few latents, [... d_in] -> [... len(ids)], in float32.

    The other latents of a JumpReLU dictionary are not computed at all; kinds whose latents compete are encoded whole.
    """

    def __init__(self, sae: SAE, ids: Sequence[int]):
        self.sae, self.ids = sae, list(ids)
        self.alone = type(sae) is JumpReLUSAE
        if self.alone and self.ids:
            self.W = sae.W_enc.detach()[:, self.ids].float().contiguous()
            self.b, self.threshold = (p.detach()[self.ids].float() for p in (sae.b_enc, sae.threshold))

    def __call__(self, x: Tensor) -> Tensor:
        if not self.ids:
            return x.new_zeros(*x.shape[:-1], 0)
        if not self.alone:
            return self.sae.encode(x.to(self.sae.W_enc.dtype))[..., self.ids].float()
        pre = x.float() @ self.W.to(x.device) + self.b.to(x.device)
        return torch.relu(pre) * (pre > self.threshold.to(x.device))


def random_frame(rows: Tensor, seed: int, site: str = "") -> Tensor:
    """Random directions with the lengths and mutual angles of `rows` [k d]: the same frame, turned at random."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + sum(site.encode()) * 7919 + 17)
    noise = torch.randn(rows.shape[1], rows.shape[0], generator=generator, dtype=torch.float64)
    basis = torch.linalg.qr(noise).Q
    triangle = torch.linalg.qr(rows.T.double().cpu()).R
    return (basis @ triangle).T.float().to(rows.device)


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

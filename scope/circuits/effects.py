"""Measures the effects of an edit inside the model: next-token distribution, a logit difference, latents of later layers.

Every number stands beside its null: the same edit on other latents whose part in this prompt is about as large.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scope.circuits.attribution import token_pair
from scope.circuits.tables import html_table
from scope.errors import EditError
from scope.escape import visible
from scope.fit import check_fit
from scope.models.face import LanguageModel
from scope.null_seeds import generator
from scope.renamed import old_keywords
from scope.result import Result
from scope.sae.base import SAE
from scope.steering.apply.editing import Editing
from scope.steering.apply.resolve import Resolved, at_each_layer, check_sites, check_tokens, dictionaries, resolve, sheets
from scope.steering.apply.state_edits import NEAREST
from scope.steering.apply.strength_units import StrengthUnits, units_for
from scope.steering.edits.interventions import Direction, Edit, Edits
from scope.texts import for_each_text


@dataclass(frozen=True, kw_only=True)
class Effects(Result):
    """Effects of edits on the next token after a prompt, and on later latents. A null is one run with the same edits of other
    targets: `null_targets`."""

    bars = ("token", "plain", "edited")

    prompt: str
    edits: Edits
    sheet: tuple[dict[str, Any], ...]
    kl: float
    """KL(edited || plain) of the next token, nats."""
    null_kl: tuple[float, ...]
    token: str
    other: str
    logit_difference: tuple[float, float]
    """logit(token) - logit(other): plain, edited."""
    null_change: tuple[float, ...]
    """How far that difference moved in each null."""
    tokens: tuple[dict[str, Any], ...]
    """The likeliest tokens on either side: token, plain, edited, change."""
    downstream: tuple[dict[str, Any], ...]
    """Latents of other dictionaries that changed most at the last token: site, latent, plain, edited, change, and `null`, the
    root mean square of the change in the nulls."""
    null_latents: tuple[tuple[int | None, ...], ...]
    report: str
    notes: tuple[str, ...]

    @property
    def change(self) -> float:
        """Change of the logit difference."""
        return self.logit_difference[1] - self.logit_difference[0]

    @property
    def null_targets(self) -> str:
        """What the nulls edit instead, in the plural."""
        if all(edit.on_tokens for edit in self.edits):
            return f"spans of other tokens of about equal share (drawn among the nearest {NEAREST})"
        if all(edit.on_direction for edit in self.edits):
            return "random directions"
        if all(edit.on_latent for edit in self.edits):
            return "other latents with a part of similar size"
        return "other latents, directions and tokens of similar size"

    def to_frame(self):
        """The likeliest tokens as a pandas table."""
        import pandas as pd

        return pd.DataFrame(list(self.tokens))

    def downstream_frame(self):
        """The later latents as a pandas table."""
        import pandas as pd

        return pd.DataFrame(list(self.downstream), columns=["site", "latent", "plain", "edited", "change", "null"])

    def _lines(self) -> list[str]:
        lines = [f"{self.edits}; {self.report}."]
        if self.null_kl:
            less = sum(self.kl > n for n in self.null_kl)
            lines.append(
                f"KL to plain {self.kl:.4f} nats; the same edit on {len(self.null_kl)} {self.null_targets}: "
                f"median {np.median(self.null_kl):.4f}, {less} of them less."
            )
        else:
            lines.append(f"KL to plain {self.kl:.4f} nats.")
        before, after = self.logit_difference
        null = f" (nulls: {', '.join(f'{c:+.2f}' for c in sorted(self.null_change))})" if self.null_change else ""
        lines.append(
            f"logit {visible(self.token)!r} - {visible(self.other)!r}: {before:+.3f} -> {after:+.3f}, {self.change:+.3f}{null}"
        )
        return [*lines, *self.notes]

    def __str__(self) -> str:
        lines = [f"After {visible(self.prompt)!r}", *self._lines(), f"{'':<16} {'plain':>7} {'edited':>7} {'change':>7}"]
        lines += [
            f"{visible(t['token'])!r:<16} {t['plain']:>7.3f} {t['edited']:>7.3f} {t['change']:>+7.3f}" for t in self.tokens
        ]
        if self.downstream:
            lines.append(f"{'later latents':<40} {'plain':>7} {'edited':>7} {'change':>7} {'null':>7}")
        for d in self.downstream:
            name = f"{d['latent']} at {d['site']}"
            lines.append(f"{name:<40} {d['plain']:>7.2f} {d['edited']:>7.2f} {d['change']:>+7.2f} {d['null']:>7.2f}")
        return "\n".join(lines)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        rows = [
            (visible(t["token"]), f"{t['plain']:.3f}", f"{t['edited']:.3f}", f"{t['change']:+.3f}", "") for t in self.tokens
        ]
        title = [f"Next token after {visible(self.prompt)!r}"]
        page = html_table(title, ("token", "plain", "edited", "change", ""), rows, self._lines())
        if self.downstream:
            keys = ("plain", "edited", "change", "null")
            rows = [(f"latent {d['latent']}", *(f"{d[k]:.2f}" for k in keys), d["site"]) for d in self.downstream]
            page += html_table(["Later latents, at the last token"], ("latent", *keys, "site"), rows, [])
        return page


@old_keywords(gauges="strength_units")
@torch.no_grad()
def effects(
    model: LanguageModel,
    sae: SAE | Sequence[SAE] | None,
    edits: Edit | Edits | Sequence[Edit],
    prompt: str | Iterable[str],
    *,
    token: str | int | None = None,
    other: str | int | None = None,
    downstream: SAE | Sequence[SAE] = (),
    strength_units: StrengthUnits | Mapping[str, StrengthUnits] | None = None,
    nulls: int = 8,
    k: int = 8,
    any_model: bool = False,
    seed: int = 0,
) -> Effects | list[Effects]:
    """Run the prompt with and without the edits, and `nulls` times with other latents in the places of the edited ones.
    Several prompts give a list.

    `token` and `other` make the logit difference; by default the likeliest token with the edit and without it (or the second
    likeliest, where both are the same). `downstream` are dictionaries of later sites.

    Raises:
        EditError: an edit that cannot be applied, an empty prompt.
        DictionaryError: a dictionary of another model or site.
        TokensError: a token that is several, a prompt longer than the context.
    """
    edits, saes, later = Edits.of(edits), dictionaries(sae), dictionaries(downstream or None)
    for one in {**saes, **later}.values():
        check_fit(model, one, any_model, reconstructs=True)
    each = at_each_layer(model, edits)
    check_sites(model, saes, each)

    def measure(one: str) -> Effects:
        return _measured(model, saes, later, edits, each, one, token, other, strength_units, nulls, k, seed)

    return for_each_text(prompt, measure, EditError)


def _measured(
    model: LanguageModel,
    saes: dict[str, SAE],
    later: dict[str, SAE],
    edits: Edits,
    each: Edits,
    prompt: str,
    token: str | int | None,
    other: str | int | None,
    strength_units: StrengthUnits | Mapping[str, StrengthUnits] | None,
    nulls: int,
    k: int,
    seed: int,
) -> Effects:
    """The effects after one prompt."""
    if not prompt.strip():
        raise EditError("The prompt is empty. Give some text whose next token is asked about.")
    check_tokens(model, each, [prompt])
    units = units_for(model, saes, each, [prompt], strength_units)
    resolved = [resolve(edit, saes, units) for edit in each]
    tokens = model.to_tokens(prompt)
    plain, before, stream = _run(model, tokens, None, later, [*saes])
    editing = Editing(model, saes, resolved)
    edited, after, _ = _run(model, tokens, editing, later, [])
    draw = generator("edits in effects", seed)
    places = [_in_place(resolved, stream, saes, draw) for _ in range(nulls)]
    null_runs = []
    for number, null in enumerate(places):
        instead = [resolve(e, saes, units) for e in null]
        controls = [seed + number if e.edit.on_tokens else e.row for e in instead]
        of_tokens = any(e.on_tokens for e in null)
        null_runs.append(_run(model, tokens, Editing(model, saes, instead, control=controls if of_tokens else None), later, []))
    wanted, against = token_pair(model, edited, plain, token, other)
    p, q = plain.softmax(-1), edited.softmax(-1)
    report = editing.report()
    return Effects(
        prompt=prompt,
        edits=edits,
        sheet=tuple(sheets(edits, resolved)),
        kl=_kl(edited, plain),
        null_kl=tuple(_kl(run[0], plain) for run in null_runs),
        token=model.words.pieces([wanted])[0],
        other=model.words.pieces([against])[0],
        logit_difference=tuple(float(logits[wanted] - logits[against]) for logits in (plain, edited)),
        null_change=tuple(float((run[0] - plain)[wanted] - (run[0] - plain)[against]) for run in null_runs),
        tokens=tuple(
            {"token": piece, "plain": float(p[i]), "edited": float(q[i]), "change": float(q[i] - p[i])}
            for i, piece in _shown(model, p, q, k)
        ),
        downstream=tuple(_changed(before, after, [run[1] for run in null_runs], k)),
        null_latents=tuple(tuple(e.latent if e.on_latent else None for e in null) for null in places),
        report=report.line(),
        notes=() if any(report.edited_per_step) else (f"Nothing was edited: {_idle(edits)}, or the rule is empty.",),
    )


def _run(model: LanguageModel, tokens: Tensor, editing: Editing | None, later: dict[str, SAE], keep: list[str]):
    """(logits after the last token, site -> later latents there, site -> stream)."""
    streams: dict[str, Tensor] = {}
    hooks = list(editing.hooks()) if editing else []
    sites = [*dict.fromkeys([*later, *keep])]
    if sites:
        hooks.append((sites, lambda x, hook: streams.__setitem__(hook.name, x[0].float())))
    with model.hooks(hooks):
        stream = model(tokens, stop_at_layer=model.cfg.n_layers)
    logits = model.logits_of(stream[:, -1:])[0, 0].float()
    latents = {site: one.encode(streams[site][-1:].to(one.W_enc.dtype))[0].float() for site, one in later.items()}
    return logits, latents, {site: streams[site][1:] for site in keep}


def _in_place(edits: Sequence[Resolved], stream: dict[str, Tensor], saes: dict[str, SAE], draw: torch.Generator) -> Edits:
    """The same edits on other latents, drawn among those whose part in the prompt, sum of f |d|, is nearest in size."""
    others, taken = [], {(e.site, e.edit.latent) for e in edits if e.edit.on_latent}
    for resolved in edits:
        edit, site = resolved.edit, resolved.site
        if edit.on_tokens:  # others of equal share take their place as it runs
            others.append(edit)
            continue
        if edit.on_direction:
            noise = torch.randn(len(edit.latent.vector), generator=draw)
            name, encoder = "random direction", edit.latent.encoder
            if encoder is not None:  # a latent's row, whose length counts
                noise *= edit.latent.row().norm() / noise.norm()
            others.append(replace(edit, latent=Direction(tuple(noise.tolist()), site, name, encoder=encoder)))
            continue
        sae = saes[site]
        parts = sae.encode(stream[site].to(sae.W_enc.dtype)).float().sum(0) * sae.W_dec.detach().float().norm(dim=1)
        distance = (parts - parts[edit.latent]).abs().cpu()
        order = torch.randperm(sae.d_sae, generator=draw)
        order = order[distance[order].argsort(stable=True)].tolist()
        living = (sae.W_dec.detach().norm(dim=1) > 0).tolist()
        free = [i for i in order if (site, i) not in taken and living[i]][:24]
        if not free:
            raise EditError(f"The dictionary at {site} has no other latent to compare with. Pass nulls=0.")
        chosen = free[int(torch.randint(len(free), (), generator=draw))]
        taken.add((site, chosen))
        if edit.has_amount and edit.unit != "part":
            strength = resolved.amount * float(resolved.row.norm()) / resolved.typical_norm
            others.append(replace(edit, latent=chosen, strength=strength, unit="norm"))
        else:
            others.append(replace(edit, latent=chosen))
    return Edits(others)


def _idle(edits: Edits) -> str:
    """Why an edit may have nothing to change."""
    if all(edit.on_tokens for edit in edits):
        return "the state holds nothing of these tokens"
    return "the latent is silent here" if all(edit.on_latent for edit in edits) else "there is nothing of it here"


def _kl(edited: Tensor, plain: Tensor) -> float:
    edited, plain = edited.log_softmax(-1), plain.log_softmax(-1)
    return float((edited.exp() * (edited - plain)).sum())


def _shown(model: LanguageModel, p: Tensor, q: Tensor, k: int) -> list[tuple[int, str]]:
    """The k likeliest without and with the edit, by falling probability with it."""
    ids = {*p.topk(min(k, len(p))).indices.tolist(), *q.topk(min(k, len(q))).indices.tolist()}
    order = sorted(ids, key=lambda i: -float(q[i]))
    return list(zip(order, model.words.pieces(order), strict=True))


def _changed(before: dict, after: dict, nulls: list[dict], k: int) -> list[dict[str, Any]]:
    rows = []
    for site, plain in before.items():
        change = after[site] - plain
        spread = torch.stack([n[site] - plain for n in nulls]).square().mean(0).sqrt() if nulls else torch.zeros_like(plain)
        for i in change.abs().topk(min(k, len(change))).indices.tolist():
            if change[i]:
                row = {"site": site, "latent": i, "plain": float(plain[i]), "edited": float(after[site][i])}
                rows.append(row | {"change": float(change[i]), "null": float(spread[i])})
    return rows

"""What an edit does inside the model, without drawing a token: to the next token, to a logit difference, to later latents.

Everything stands beside its null: the same edit on other latents whose part in this prompt is about as large.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scope.circuits.attribution_table import html_table
from scope.errors import EditError
from scope.escape import visible
from scope.fit import check_fit
from scope.models.hooks import HookedModule
from scope.sae.base import SAE
from scope.steering.apply.editing import Editing
from scope.steering.apply.gauge import Gauge
from scope.steering.apply.resolve import Resolved, dictionaries, resolve
from scope.steering.compare.steer import check_sites, gauges_for
from scope.steering.edits.interventions import Direction, Edit, Edits


@dataclass(frozen=True, kw_only=True)
class Effects:
    """Of edits on what follows a prompt. Probabilities are those of the next token; a null is one run with other latents."""

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
        """Of the logit difference."""
        return self.logit_difference[1] - self.logit_difference[0]

    def to_frame(self):
        """The likeliest tokens as a pandas table."""
        import pandas as pd

        return pd.DataFrame(list(self.tokens))

    def downstream_frame(self):
        """The later latents as a pandas table."""
        import pandas as pd

        return pd.DataFrame(list(self.downstream), columns=["site", "latent", "plain", "edited", "change", "null"])

    def _lines(self) -> list[str]:
        told = [f"{self.edits}; {self.report}."]
        if self.null_kl:
            less = sum(self.kl > n for n in self.null_kl)
            told.append(
                f"KL to plain {self.kl:.4f} nats; the same edit on {len(self.null_kl)} latents with a part of like size: "
                f"median {np.median(self.null_kl):.4f}, {less} of them less."
            )
        else:
            told.append(f"KL to plain {self.kl:.4f} nats.")
        before, after = self.logit_difference
        null = f" (nulls: {', '.join(f'{c:+.2f}' for c in sorted(self.null_change))})" if self.null_change else ""
        told.append(
            f"logit {visible(self.token)!r} - {visible(self.other)!r}: {before:+.3f} -> {after:+.3f}, {self.change:+.3f}{null}"
        )
        return [*told, *self.notes]

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
        title = f"Next token after {visible(self.prompt)!r}"
        made = html_table(title, ("token", "plain", "edited", "change", ""), rows, self._lines())
        if self.downstream:
            keys = ("plain", "edited", "change", "null")
            rows = [(f"latent {d['latent']}", *(f"{d[k]:.2f}" for k in keys), d["site"]) for d in self.downstream]
            made += html_table("Later latents, at the last token", ("latent", *keys, "site"), rows, [])
        return made


@torch.no_grad()
def effects(
    model: HookedModule,
    sae: SAE | Sequence[SAE] | None,
    edits: Edit | Edits | Sequence[Edit],
    prompt: str,
    *,
    token: str | int | None = None,
    other: str | int | None = None,
    downstream: SAE | Sequence[SAE] = (),
    gauges: Gauge | dict[str, Gauge] | None = None,
    nulls: int = 8,
    k: int = 8,
    any_model: bool = False,
    seed: int = 0,
) -> Effects:
    """Run the prompt with and without the edits, and `nulls` times with other latents in the places of the edited ones.

    `token` and `other` make the logit difference; by default the likeliest token with the edit and without it (or the second
    likeliest, where both are the same). `downstream` are dictionaries of later sites.

    Raises:
        EditError: an edit that cannot be applied, an empty prompt.
        DictionaryError: a dictionary of another model or site.
        TokensError: a token that is several, a prompt longer than the context.
    """
    if not prompt.strip():
        raise EditError("The prompt is empty. Give some text whose next token is asked about.")
    edits, saes, later = Edits.of(edits), dictionaries(sae), dictionaries(downstream or None)
    for one in {**saes, **later}.values():
        check_fit(model, one, any_model, reconstructs=True)
    check_sites(model, saes, edits)
    gauges = gauges_for(model, saes, edits, [prompt], gauges)
    resolved = [resolve(edit, saes, gauges) for edit in edits]
    tokens = model.to_tokens(prompt)
    plain, before, stream = _run(model, tokens, None, later, [*saes])
    editing = Editing(model, saes, resolved)
    edited, after, _ = _run(model, tokens, editing, later, [])
    generator = np.random.default_rng(seed)
    places = [_in_place(resolved, stream, saes, generator) for _ in range(nulls)]
    null_runs = [
        _run(model, tokens, Editing(model, saes, [resolve(e, saes, gauges) for e in null]), later, []) for null in places
    ]
    wanted, against = _tokens(model, plain, edited, token, other)
    p, q = plain.softmax(-1), edited.softmax(-1)
    report = editing.report()
    return Effects(
        prompt=prompt,
        edits=edits,
        sheet=tuple(r.sheet() for r in resolved),
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
        null_latents=tuple(tuple(None if isinstance(e.latent, Direction) else e.latent for e in null) for null in places),
        report=report.line(),
        notes=() if any(report.edited_per_step) else ("Nothing was edited: the latent is silent here, or the rule is empty.",),
    )


def _run(model: HookedModule, tokens: Tensor, editing: Editing | None, later: dict[str, SAE], keep: list[str]):
    """(logits after the last token, site -> later latents there, site -> stream)."""
    kept: dict[str, Tensor] = {}
    hooks = list(editing.hooks()) if editing else []
    sites = [*dict.fromkeys([*later, *keep])]
    if sites:
        hooks.append((sites, lambda x, hook: kept.__setitem__(hook.name, x[0].float())))
    with model.hooks(hooks):
        stream = model(tokens, stop_at_layer=model.cfg.n_layers)
    logits = model.logits_of(stream[:, -1:])[0, 0].float()
    found = {site: one.encode(kept[site][-1:].to(one.W_enc.dtype))[0].float() for site, one in later.items()}
    return logits, found, {site: kept[site][1:] for site in keep}


def _in_place(edits: Sequence[Resolved], stream: dict[str, Tensor], saes: dict[str, SAE], generator) -> Edits:
    """The same edits on other latents, drawn among those whose part in the prompt, sum of f |d|, is nearest in size."""
    made, taken = [], {(e.site, e.edit.latent) for e in edits if not isinstance(e.edit.latent, Direction)}
    for resolved in edits:
        edit, site = resolved.edit, resolved.site
        if isinstance(edit.latent, Direction):
            noise = generator.standard_normal(len(edit.latent.vector))
            made.append(replace(edit, latent=Direction(tuple(noise.tolist()), site, "random direction")))
            continue
        sae = saes[site]
        parts = sae.encode(stream[site].to(sae.W_enc.dtype)).float().sum(0) * sae.W_dec.detach().float().norm(dim=1)
        distance = (parts - parts[edit.latent]).abs().cpu().numpy()
        order = generator.permutation(sae.d_sae)
        order = order[np.argsort(distance[order], kind="stable")]
        living = sae.W_dec.detach().norm(dim=1).cpu().numpy() > 0
        free = [int(i) for i in order if (site, int(i)) not in taken and living[i]][:24]
        if not free:
            raise EditError(f"The dictionary at {site} has no other latent to compare with. Pass nulls=0.")
        chosen = int(generator.choice(free))
        taken.add((site, chosen))
        if edit.has_amount:
            strength = resolved.amount * float(resolved.row.norm()) / resolved.rho
            made.append(replace(edit, latent=chosen, strength=strength, unit="norm"))
        else:
            made.append(replace(edit, latent=chosen))
    return Edits(made)


def _kl(own: Tensor, plain: Tensor) -> float:
    own, plain = own.log_softmax(-1), plain.log_softmax(-1)
    return float((own.exp() * (own - plain)).sum())


def _tokens(model: HookedModule, plain: Tensor, edited: Tensor, token, other) -> tuple[int, int]:
    given = [None if t is None else model.to_single_token(t) if isinstance(t, str) else int(t) for t in (token, other)]
    if given[0] is None:
        given[0] = next(int(i) for i in edited.topk(2).indices if int(i) != given[1])
    if given[1] is None:
        given[1] = next(int(i) for i in plain.topk(2).indices if int(i) != given[0])
    return given[0], given[1]


def _shown(model: HookedModule, p: Tensor, q: Tensor, k: int) -> list[tuple[int, str]]:
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
                told = {"site": site, "latent": i, "plain": float(plain[i]), "edited": float(after[site][i])}
                rows.append(told | {"change": float(change[i]), "null": float(spread[i])})
    return rows

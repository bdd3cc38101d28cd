"""Attributes a logit difference to latents: which ones make the model say one token rather than another.

The stream at the dictionary's site is a sum: x = sum of f_i d_i + b_dec + error. A row of the table is the effect of one of
these parts on m, the difference of two logits after the prompt (both as the model gives them, soft cap included). There are
rows for the error, for b_dec and for the special tokens such as <bos>, on which no dictionary is read; so the rows add up:

integrated  the gradient's mean along the line from b_dec to x, times the part. The whole is m: the rows add up to
            m(x) - m(b_dec), and m at b_dec alone is a row too. What the numerical integral misses is `gap`. The default.
gradient    g . part, g the gradient of m at x. The whole is g . x, exactly: m's linear reading at x, not m itself, and often of
            another sign. One backward pass instead of `steps`.
ablation    m(x) - m(x without the part), each part taken away by itself. What the parts do only together is a row, and the
            whole is m, exactly.
direct      what the part adds to m by way of the stream at the last token alone, past all later blocks: through the final norm,
            whose scale is held fixed, and the unembedding. What later blocks add is a row. Where a soft cap ends the model, it
            squeezes the whole difference, and every row in the same proportion. The whole is m, exactly; one forward pass.

Every latent's row stands beside its null: what a random direction of the same length, active to the same degree at the same
positions, would have (one standard deviation).
Source: integrated gradients, arXiv:1703.01365; of dictionaries, with the error as a node of its own, arXiv:2403.19647.
"""

import operator
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from scope.activations.corpus.inputs import counted_tokens
from scope.circuits.attribution_result import Attribution, Row
from scope.errors import EditError
from scope.fit import check_fit
from scope.models.face import LanguageModel, VisionModel
from scope.models.paligemma.pictured import PicturedPaliGemma
from scope.null_seeds import generator
from scope.sae.base import SAE
from scope.shapes import Vector
from scope.texts import for_each_text

WHOLE = {
    "gradient": "gradient . stream, the logit difference's linear reading at this prompt",
    "integrated": "the logit difference",
    "ablation": "the logit difference",
    "direct": "the logit difference",
}

_JOINS_STREAM = ("hook_resid_pre", "hook_resid_mid", "hook_resid_post", "hook_attn_out", "hook_mlp_out", "hook_rec_out")
"""Ends of the sites whose activations are a part of the residual stream, which "direct" follows to the end."""


_CLOSE = 0.001
"""Logits by which the rows of the integral may miss the logit difference before more points are tried."""


def attribute(
    model: LanguageModel,
    sae: SAE,
    prompt: str | Iterable[str],
    token: str | int | None = None,
    other: str | int | None = None,
    *,
    method: str = "integrated",
    steps: int | None = None,
    exact: int = 32,
    nulls: int = 4,
    pack: Any = None,
    any_model: bool = False,
    seed: int = 0,
) -> Attribution | list[Attribution]:
    """The rows of logit(token) - logit(other) after `prompt`; latents that are silent have none, for theirs would be 0. Several
    prompts give a list.

    Without `token` it is the likeliest next one, without `other` the likeliest besides. `steps` are points of the integral, by
    default 32, or up to 256 where the rows would not add up with fewer. `exact` latents, those of the largest gradient rows,
    are ablated one by one, the rest together; `nulls` random directions a latent are tried with "ablation". Labels come from
    `pack`.

    Raises:
        EditError: an empty prompt, an unknown method, no picture for a model that reads them, or "direct" at a site that is no
            part of the residual stream.
        TokensError: a token that is several, a prompt longer than the context.
        DictionaryError: a dictionary of another model or site.
    """
    if method not in WHOLE:
        raise EditError(f"There is no method {method!r}; there are {', '.join(WHOLE)}.")
    check_fit(model, sae, any_model, reconstructs=True)
    if isinstance(model, VisionModel) and not isinstance(model, PicturedPaliGemma):
        raise EditError(f"A {model.cfg.family_name} is asked about a picture. Give one: attribute_picture, or picture=FILE")

    def explain(one: str) -> Attribution:
        return _explained(model, sae, one, token, other, method, steps, exact, nulls, pack, seed)

    return for_each_text(prompt, explain, EditError)


def _explained(
    model: LanguageModel,
    sae: SAE,
    prompt: str,
    token: str | int | None,
    other: str | int | None,
    method: str,
    steps: int | None,
    exact: int,
    nulls: int,
    pack: Any,
    seed: int,
) -> Attribution:
    """The attribution of one prompt."""
    if not prompt.strip():
        raise EditError("The prompt is empty. Give some text whose next token is asked about.")
    rest = Rest(model, sae, prompt)
    log_p = rest.log_p(rest.x[None])[0]
    wanted, against = token_pair(model, log_p, log_p, token, other)
    parts = Parts(sae, rest)
    difference = float(rest.difference(rest.x[None], wanted, against)[0])
    whole, before_cap = difference, None
    if method == "direct":
        rows, before_cap = _direct(rest, parts, wanted, against)
    elif method == "ablation":
        rows = _ablated(rest, parts, wanted, against, difference, exact, nulls, seed)
    elif method == "gradient":
        grad = rest.gradient(rest.x, wanted, against)
        whole = float((grad * rest.x).sum())
        rows = linear_rows(parts, grad)
        rows.append(Row(name="bias", value=float((grad * parts.bias()).sum())))
        rows.append(Row(name="special tokens", value=float((grad * parts.special()).sum())))
    else:
        start = float(rest.difference(parts.baseline()[None], wanted, against)[0])
        grad = mean_gradient(rest, parts.baseline(), wanted, against, difference - start, steps)
        rows = [*linear_rows(parts, grad), Row(name="at b_dec alone", value=start)]
    gap = whole - sum(row.value for row in rows)
    return Attribution(
        prompt=prompt,
        pieces=rest.pieces,
        token=model.words.pieces([wanted])[0],
        other=model.words.pieces([against])[0],
        p_token=float(log_p[wanted].exp()),
        p_other=float(log_p[against].exp()),
        method=method,
        site=sae.site,
        logit_difference=difference,
        whole=whole,
        before_cap=before_cap,
        whole_is=WHOLE[method],
        gap=gap,
        rows=tuple(described(row, parts, rest, pack) for row in rows),
    )


class Rest:
    """The rest of the model: from a site on, as a function of the stream there; what comes before is computed once."""

    def __init__(self, model: LanguageModel, sae: SAE, prompt: str):
        self.model, self.site = model, sae.site
        self.batch = model.to_tokens(prompt)
        self.x = model.record(self.batch, [self.site])[self.site][0]
        self.counted = counted_tokens(self.batch, model.special_ids)[0]
        self.pieces = tuple(model.words.pieces(self.batch[0].tolist()))

    def logits(self, streams: Tensor) -> Tensor:
        """[batch vocab] after the last token, for streams [batch pos d_model]."""
        replaced = (self.site, lambda x, hook: streams.to(x.dtype))
        with self.model.hooks([replaced]):
            stream = self.model(self.batch.expand(len(streams), -1), stop_at_layer=self.model.cfg.n_layers)
        return wide(self.model.logits_of(stream[:, -1:])[:, 0])

    @torch.no_grad()
    def log_p(self, streams: Tensor) -> Tensor:
        return self.logits(streams).log_softmax(-1)

    @torch.no_grad()
    def difference(self, streams: Sequence[Tensor] | Tensor, token: int, other: int, at_once: int = 16) -> Tensor:
        """[batch] logit(token) - logit(other)."""
        parts = []
        for i in range(0, len(streams), at_once):
            some = streams[i : i + at_once]
            logits = self.logits(some if isinstance(some, Tensor) else torch.stack(list(some)))
            parts.append(logits[:, token] - logits[:, other])
        return torch.cat(parts)

    def gradient(self, stream: Tensor, token: int, other: int) -> Tensor:
        """Gradient [pos d_model] of the difference at a stream [pos d_model]."""
        leaf = stream.detach().clone().requires_grad_(True)
        with torch.enable_grad():
            logits = self.logits(leaf[None])[0]
            return wide(torch.autograd.grad(logits[token] - logits[other], leaf)[0])

    @torch.no_grad()
    def direct(self, token: int, other: int) -> tuple[Vector, Vector, float]:
        """The stream [d_model] that leaves the last block at the last token; the direction by which a part of it, times this,
        is its share of the logit difference; and what the difference is before the soft cap.

        Raises:
            EditError: activations of the site are no part of the stream.
        """
        if not self.site.endswith(_JOINS_STREAM):
            raise EditError(
                f'The method "direct" follows the residual stream, and {self.site} is no part of it.\n'
                f"  Take a dictionary at a site that ends in {', '.join(_JOINS_STREAM)}, or another method."
            )
        model, scale_name = self.model, "ln_final.hook_scale"
        last = f"blocks.{model.cfg.n_layers - 1}.hook_resid_post"
        names = [last, *([scale_name] if scale_name in model.hook_dict else [])]
        _, cache = model.run_with_cache(self.batch, names_filter=names)
        stream = wide(cache[last][0, -1])
        scale = wide(cache[scale_name].reshape(-1)[-1]) if scale_name in cache else 1.0
        columns = model.W_U.detach()[:, [token, other]].to(stream)
        passed = model.through_final_norm(torch.eye(len(stream), dtype=stream.dtype)).to(stream) / scale
        scores, push = (stream @ passed) @ columns, passed @ (columns[:, 0] - columns[:, 1])
        before, cap = float(scores[0] - scores[1]), getattr(model.cfg, "final_cap", None)
        if cap is None:
            return stream, push, before
        squeezed = torch.tanh(scores / cap)
        slope = float(squeezed[0] - squeezed[1]) * cap / before if abs(before) > 1e-6 else 1 - float(squeezed[0]) ** 2
        return stream, push * slope, before


def token_pair(
    model: LanguageModel, likely: Tensor, likely_other: Tensor, token: str | int | None, other: str | int | None
) -> tuple[int, int]:
    """The ids of the two tokens of a logit difference. What is not given is the likeliest of `likely` (for `token`) or
    `likely_other` [d_vocab] that is not the other one.

    Raises:
        EditError: both are the same, an id is outside the vocabulary, or one is no token, such as a list of them.
        TokensError: a text that is several tokens.
    """
    for one in (token, other):
        if one is not None and not isinstance(one, str) and not hasattr(one, "__index__"):
            raise EditError(f"{one!r} is no token. Give the text or the id of one: attribute(prompt, token, other).")
    ids = [None if t is None else model.to_single_token(t) if isinstance(t, str) else operator.index(t) for t in (token, other)]
    outside = next((t for t in ids if t is not None and not 0 <= t < model.cfg.d_vocab), None)
    if outside is not None:
        raise EditError(f"There is no token {outside}: the vocabulary runs from 0 to {model.cfg.d_vocab - 1}.")
    for i, scores in enumerate((likely, likely_other)):
        if ids[i] is None:
            ids[i] = next(t for t in scores.topk(2).indices.tolist() if t != ids[1 - i])
    if ids[0] == ids[1]:
        raise EditError(f"Both tokens are {model.words.pieces(ids[:1])[0]!r}; their difference is 0 by itself.")
    return ids[0], ids[1]


class Parts:
    """The stream as its sum, each part [pos d_model]; zero at special tokens, which are a part of their own."""

    @torch.no_grad()
    def __init__(self, sae: SAE, rest: Rest):
        self.x, self.counted = wide(rest.x), rest.counted[:, None]
        latents = sae.encode(rest.x.to(sae.W_enc.dtype)).to(self.x) * self.counted
        self.ids = latents.amax(0).nonzero().flatten()
        self.values = latents[:, self.ids]
        self.rows = sae.W_dec.detach()[self.ids].to(self.x)
        self.b_dec = sae.decode(torch.zeros_like(latents[:1]).to(sae.W_dec.dtype)).detach().to(self.x)[0]

    def latent(self, place: int) -> Tensor:
        return self.values[:, place, None] * self.rows[place]

    def bias(self) -> Tensor:
        return self.b_dec * self.counted

    def special(self) -> Tensor:
        return self.x * ~self.counted

    def baseline(self) -> Tensor:
        """b_dec alone where a dictionary is read, the stream itself elsewhere."""
        return self.bias() + self.special()

    def error(self) -> Tensor:
        return self.x - self.baseline() - self.values @ self.rows


def linear_rows(parts: Parts, grad: Tensor) -> list[Row]:
    """grad . part of every latent and of the error."""
    pushed = parts.values.T @ grad
    effect = (pushed * parts.rows).sum(1)
    null = pushed.norm(dim=1) * parts.rows.norm(dim=1) / grad.shape[1] ** 0.5
    rows = [
        Row(name=f"latent {i}", latent=i, value=value, null=sd)
        for i, value, sd in zip(parts.ids.tolist(), effect.tolist(), null.tolist(), strict=True)
    ]
    return [*rows, Row(name="error", value=float((grad * parts.error()).sum()))]


def _direct(rest: Rest, parts: Parts, token: int, other: int) -> tuple[list[Row], float]:
    """What each part of the stream at the last token adds on the straight way to the logits; the difference before the cap."""
    stream, push, before = rest.direct(token, other)
    grad = torch.zeros_like(parts.x)
    grad[-1] = push
    silent = set(parts.ids[parts.values[-1] == 0].tolist())
    rows = [row for row in linear_rows(parts, grad) if row.latent not in silent]
    rows.append(Row(name="bias", value=float(push @ parts.bias()[-1])))
    if not parts.counted[-1]:
        rows.append(Row(name="special tokens", value=float(push @ parts.x[-1])))
    rest_is = "later blocks" if "resid" in rest.site else "rest of the stream"
    return [*rows, Row(name=rest_is, value=float(push @ (stream - parts.x[-1])))], before


def _ablated(
    rest: Rest, parts: Parts, token: int, other: int, difference: float, exact: int, nulls: int, seed: int
) -> list[Row]:
    """Each of the largest latents ablated alone, the remaining ones together, and what they do only jointly."""
    first = linear_rows(parts, rest.gradient(rest.x, token, other))[:-1]
    order = sorted(range(len(first)), key=lambda i: -abs(first[i].value))
    alone, together = order[:exact], order[exact:]
    effect = difference - rest.difference([rest.x - parts.latent(i) for i in alone], token, other) if alone else []
    draw = generator("directions of ablation", seed)
    rows = []
    for place, value in zip(alone, effect, strict=True):
        noise = torch.randn(nulls, rest.x.shape[1], generator=draw).to(rest.x.device)
        directions = noise / noise.norm(dim=1, keepdim=True) * parts.rows[place].norm()
        pushes = [rest.x - parts.values[:, place, None] * direction for direction in directions]
        null = float((difference - rest.difference(pushes, token, other)).square().mean().sqrt()) if nulls else None
        latent = int(parts.ids[place])
        rows.append(Row(name=f"latent {latent}", latent=latent, value=float(value), null=null))
    taken = [parts.error(), *([parts.values[:, together] @ parts.rows[together]] if together else [])]
    removed = difference - rest.difference([rest.x - part for part in taken], token, other)
    rows.append(Row(name="error", value=float(removed[0])))
    if together:
        rows.append(Row(name=f"{len(together)} other latents", value=float(removed[1])))
    rows.append(Row(name="at b_dec alone", value=float(rest.difference(parts.baseline()[None], token, other)[0])))
    return [*rows, Row(name="only together", value=difference - sum(row.value for row in rows))]


def mean_gradient(rest: Rest, base: Tensor, token: int, other: int, rise: float, steps: int | None) -> Tensor:
    """The gradient's mean on the line from `base` to x, so that its product with x - base is `rise`."""
    for n in (32, 64, 128, 256) if steps is None else (steps,):
        grad = sum(w * rest.gradient(base + a * (rest.x - base), token, other) for a, w in _gauss(n))
        if abs(float((grad * (rest.x - base)).sum()) - rise) < _CLOSE:
            break
    return grad


def wide(x: Tensor) -> Tensor:
    """In float32, or in float64 if it is."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _gauss(steps: int) -> list[tuple[float, float]]:
    """Points and weights of Gauss-Legendre on 0 to 1."""
    import numpy as np

    if steps < 1:
        raise EditError(f"steps is {steps}; the integral needs at least one point.")
    points, weights = np.polynomial.legendre.leggauss(steps)
    return [(float(p), float(w)) for p, w in zip((points + 1) / 2, weights / 2, strict=True)]


def described(row: Row, parts: Parts, rest: Rest, pack: Any) -> Row:
    """The row with label, largest activation and count of its latent."""
    if row.latent is None:
        return row
    values = parts.values[:, (parts.ids == row.latent).nonzero()[0, 0]]
    at = int(values.argmax())
    label = str(pack.table["label"].iloc[row.latent]) if pack is not None else ""
    return replace(
        row,
        activation=float(values[at]),
        n_active=int((values > 0).sum()),
        strongest=rest.pieces[at],
        label=label,
    )

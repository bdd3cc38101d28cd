"""Measures how long the latents of a state last: what is left, after n more tokens, of what tokens added to them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scope.activations.corpus.inputs import counted_tokens
from scope.errors import DictionaryError, TokensError
from scope.features.pack.decay import LONG, Decay, KeptToken, LatentDecay
from scope.fit import check_fit
from scope.models.face import LanguageModel
from scope.models.griffin.shares import Recurrence, for_each_recurrence, half_lives, layer_of
from scope.null_seeds import null_seed
from scope.progress import OnProgress
from scope.sae.base import SAE
from scope.sae.files import parameters_sha256
from scope.shapes import Tokens

AGES = (1, 2, 4, 8, 16, 32, 64, 128)
FEWEST = 8
"""Writes that a latent needs for a profile."""

_CONTEXTS, _RESAMPLES, _KEPT, _SUMS = 64, 200, 6, 2**26
_PAIRS = 2**14


@torch.no_grad()
def decay(
    model: LanguageModel,
    sae: SAE,
    tokens: Tokens,
    *,
    redrawn: LanguageModel | None = None,
    ages: Sequence[int] = AGES,
    contexts: int = _CONTEXTS,
    seed: int = 0,
    on_progress: OnProgress | None = None,
) -> Decay:
    """The decay profiles of the latents of an SAE of hook_state or hook_write, on evenly spaced ones of the contexts [n pos].
    `redrawn` is the model with its weights drawn again, for the null.

    Raises:
        DictionaryError: an SAE of another model or site.
        TokensError: contexts too short for any age, or no latent with enough writes.
    """
    layer = layer_of(check_fit(model, sae, reconstructs=True))
    if layer is None:
        raise DictionaryError(f"This SAE reads {sae.site}. Decay is that of a state: blocks.N.rec.hook_state or hook_write.")
    ages = tuple(age for age in sorted(set(ages)) if 0 < age < tokens.shape[1] - 1)
    if not ages or not len(tokens):
        raise TokensError(f"Contexts of {tokens.shape[1]} tokens are too short to see what is left after {min(AGES)} more.")
    most = max(4, min(contexts, _SUMS // (2 * len(ages) * sae.d_sae)))
    chosen = tokens[np.unique(np.linspace(0, len(tokens) - 1, min(most, len(tokens))).astype(int))]
    total = len(chosen) * (1 if redrawn is None else 2)
    sums = _Sums(model, sae, layer, ages)
    for i in range(len(chosen)):
        sums.add(chosen[i : i + 1])
        if on_progress:
            on_progress(i + 1, total, {})
    found = np.flatnonzero(sums.writes() >= FEWEST)
    if not len(found):
        raise TokensError(
            f"No latent of this SAE fires and is written {FEWEST} times in {len(chosen)} contexts. Give more text."
        )
    lives = half_lives(ages, sums.profile()[found])
    low, high = sums.intervals(found, seed)
    null: dict[str, float] = {}
    if redrawn is not None:
        others = _Sums(redrawn, sae, layer, ages, np.round(sums.writes() / len(chosen)).astype(int).clip(min=1))
        for i in range(len(chosen)):
            others.add(chosen[i : i + 1])
            if on_progress:
                on_progress(len(chosen) + i + 1, total, {})
        there = half_lives(ages, others.profile()[found])
        null = dict(zip(("null", "null_low", "null_high"), _share(there, seed), strict=True))
    share, share_low, share_high = _share(lives, seed)
    profile, writes, retained = sums.profile(), sums.writes(), sums.retained(found, model)
    rows = [
        LatentDecay(
            latent=int(j),
            writes=int(writes[j]),
            half_life=_known(lives[i]),
            low=_known(low[i]),
            high=_known(high[i]),
            profile=tuple(None if np.isnan(v) else float(v) for v in profile[j]),
            retained=retained.get(int(j), ()),
        )
        for i, j in enumerate(found)
        if not np.isnan(lives[i])
    ]
    return Decay(
        model=str(model.provenance.get("model") or ""),
        site=sae.site,
        dictionary=parameters_sha256(sae),
        tokens=int(chosen.numel()),
        contexts=len(chosen),
        ages=ages,
        kept_at=sums.kept_at,
        share=share,
        low=share_low,
        high=share_high,
        state=tuple(float(v) for v in sums.lengths / max(sums.length, 1e-30)),
        latents=tuple(rows),
        **null,
    )


def _known(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _share(lives: np.ndarray, seed: int) -> tuple[float, float, float]:
    """Share of the half-lives beyond LONG, with a 95 % interval over latents."""
    beyond = (lives[~np.isnan(lives)] > LONG).astype(float)
    if not len(beyond):
        return 0.0, 0.0, 1.0
    rng = np.random.default_rng(null_seed("share of long half-lives", seed))
    means = rng.binomial(len(beyond), beyond.mean(), 2000) / len(beyond)
    return float(beyond.mean()), *(float(v) for v in np.quantile(means, (0.025, 0.975)))


@dataclass(frozen=True)
class _Pairs:
    """Tokens at which latents are written: places and latents, and what was added and is left at `kept_at`."""

    ids: np.ndarray
    latents: np.ndarray
    added: np.ndarray
    left: np.ndarray


class _Sums:
    """Sums of what tokens add to latents, and of what is left at each age, by context."""

    def __init__(
        self, model: LanguageModel, sae: SAE, layer: int, ages: tuple[int, ...], most_of_context: np.ndarray | None = None
    ):
        self.model, self.sae, self.layer, self.ages = model, sae, layer, ages
        self.rows = sae.W_enc.detach().T.double().cpu()
        self.most = None if most_of_context is None else torch.from_numpy(most_of_context)
        self.kept_at = max(age for age in ages if age <= LONG) if min(ages) <= LONG else min(ages)
        self.added: list[np.ndarray] = []
        self.left: list[np.ndarray] = []
        self.counts = np.zeros(sae.d_sae, np.int64)
        self.lengths, self.length = np.zeros(len(ages)), 0.0
        self._pairs: list[_Pairs] = []

    def add(self, tokens: Tokens) -> None:
        """Take in one context [1 pos]."""
        tokens = tokens.to(self.model.device)
        real = tokens != self.model.cfg.pad
        counted = (counted_tokens(tokens, self.model.special_ids) & real)[0].cpu()
        for_each_recurrence(self.model, tokens, [self.layer], lambda _, r: self._take(r, counted, tokens[0].cpu()))

    def _take(self, recurrence: Recurrence, counted: Tensor, ids: Tensor) -> None:
        sae, write = self.sae, recurrence.write
        x = recurrence.state if sae.site.endswith("hook_state") else write
        first = write @ self.rows.T
        if self.most is None:
            fires = (sae.encode(x.to(sae.W_enc)).cpu() > 0) & (first > 0) & counted[:, None]
        else:
            order = torch.where(counted[:, None], first, -torch.inf).argsort(0, descending=True).argsort(0)
            fires = (order < self.most) & (first > 0) & counted[:, None]
        places, latents = fires.nonzero(as_tuple=True)
        added = np.zeros((len(self.ages), sae.d_sae))
        left = np.zeros_like(added)
        self.counts += np.bincount(latents.numpy(), minlength=sae.d_sae)
        n, now = len(write), write.clone()
        for age in range(1, max(self.ages) + 1):
            now = now[: n - age] * recurrence.retained[age:]
            if age not in self.ages:
                continue
            k = self.ages.index(age)
            # a start in between ends a document, and is no forgetting
            begun = recurrence.starts.long().cumsum(0)
            inside = counted[: n - age] & (begun[age:] == begun[: n - age])
            ok = torch.zeros(n, dtype=torch.bool)
            ok[: n - age] = inside
            chosen = ok[places]
            t, j = places[chosen], latents[chosen]
            values = torch.cat(
                [(now[t[i : i + _PAIRS]] * self.rows[j[i : i + _PAIRS]]).sum(1) for i in range(0, len(t), _PAIRS)]
                or [torch.zeros(0, dtype=torch.float64)]
            )
            was = first[t, j]
            added[k] = np.bincount(j.numpy(), was.numpy(), sae.d_sae)
            left[k] = np.bincount(j.numpy(), values.numpy(), sae.d_sae)
            if inside.any():
                written = write[: n - age][inside].norm(dim=1).clamp(min=1e-30)
                self.lengths[k] += float((now[inside].norm(dim=1) / written).mean())
            if age == self.kept_at:
                arrays = (ids[t], j, was, values)
                self._pairs.append(_Pairs(*(array.numpy() for array in arrays)))
        self.length += 1
        self.added.append(added.T)
        self.left.append(left.T)

    def writes(self) -> np.ndarray:
        return self.counts

    def profile(self) -> np.ndarray:
        """[latent age], NaN where nothing was added that far from the end."""
        return _ratio(sum(self.left), sum(self.added))

    def intervals(self, latents: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """95 % intervals of the half-lives of some latents, over contexts."""
        rng = np.random.default_rng(null_seed("contexts of a decay", seed))
        n = len(self.added)
        times = rng.multinomial(n, np.full(n, 1 / n), _RESAMPLES).astype(float)
        added, left = (np.stack([one[latents] for one in part]).reshape(n, -1) for part in (self.added, self.left))
        low, high = [], []
        width = len(self.ages) * 256
        for start in range(0, added.shape[1], width):
            a, b = times @ added[:, start : start + width], times @ left[:, start : start + width]
            profiles = _ratio(b, a).reshape(_RESAMPLES, -1, len(self.ages))
            lives = np.sort(np.where(np.isnan(drawn := half_lives(self.ages, profiles)), np.inf, drawn), 0)
            low.append(lives[int(0.025 * _RESAMPLES)])
            high.append(lives[int(0.975 * _RESAMPLES) - 1])
        return np.concatenate(low), np.concatenate(high)

    def retained(self, latents: np.ndarray, model: LanguageModel) -> dict[int, tuple[KeptToken, ...]]:
        """Latent -> the tokens that leave it most after `kept_at` more, of those that stood there three times or more."""
        ids, js, added, left = (np.concatenate([getattr(p, name) for p in self._pairs]) for name in _Pairs.__annotations__)
        wanted = np.isin(js, latents)
        keys, place = np.unique(np.stack([js[wanted], ids[wanted]]), axis=1, return_inverse=True)
        place = place.reshape(-1)
        count = np.bincount(place, minlength=keys.shape[1])
        sums = [np.bincount(place, values[wanted], keys.shape[1]) for values in (added, left)]
        found: dict[int, list[Any]] = {}
        for k in np.lexsort((-sums[1], keys[0])):
            rows = found.setdefault(int(keys[0, k]), [])
            if count[k] >= 3 and sums[1][k] > 0 and len(rows) < _KEPT:
                rows.append((int(keys[1, k]), int(count[k]), float(sums[1][k] / sums[0][k])))
        pieces = {i: model.words.pieces([i])[0] if model.tokenizer else str(i) for rows in found.values() for i, _, _ in rows}
        return {
            j: tuple(KeptToken(token=pieces[i], id=i, count=n, left=part) for i, n, part in rows) for j, rows in found.items()
        }


def _ratio(left: Any, added: Any) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(added > 0, left / added, np.nan)

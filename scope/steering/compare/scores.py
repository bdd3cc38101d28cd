"""What a text says about the edit that made it: read by the unsteered model, beside measures that know nothing of the feature.

Every figure is about the new tokens alone, as a continuation of the prompt that the plain arm had. `concept` asks the feature
that steered, so it is circular by itself: `share` and `mass` ask the vocabulary instead, `log_prob`, `repetition`, `distinct`
and `zipped` whether the text is still language, `pmi` whether it still belongs to its prompt, `off_target` how many other
latents the edit moves, `kl` how large the dose was. How these proxies stand to a human or model judge is not known.
"""

import math
import zlib
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from scope.models.hooks import HookedModule
from scope.steering.apply.editing import Editing
from scope.steering.apply.gauge import Gauge
from scope.steering.apply.latent_reader import LatentReader, Unexplained
from scope.steering.apply.resolve import Resolved
from scope.steering.edits.interventions import Direction

TOP = 10


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Of one text. Dictionaries are keyed by the edit's target ("latent 1208")."""

    log_prob: float
    """Mean log-probability of a new token under the unsteered model, nats."""
    repetition: float
    """Share of 4-grams of new tokens that already stood in them."""
    kl: float
    """Mean over steps of KL(edited || unedited) between next-token distributions on this text, nats; 0 for plain text."""
    concept: dict[str, float]
    """Mean activation over the new tokens, read by the unsteered model: a share of the latent's 99th percentile, at most 1,
    where that is known, else in its own units. For a direction, the mean projection as a fraction of the residual norm."""
    active: dict[str, float]
    """Share of new tokens at which the target reads above 0."""
    share: dict[str, float]
    """Share of new tokens that are among the ten that the target's decoder row promotes most."""
    mass: dict[str, float]
    """Mean probability that the arm itself gives to those ten tokens."""
    readings: dict[str, list[float]]
    """The target's activation at each new token, read by the unsteered model, in the units of the pack."""
    kl_steps: list[float]
    """KL at each step; `kl` is their mean."""
    distinct: float | None = None
    """Share of pairs of neighbouring new tokens that are different pairs; None below two tokens."""
    zipped: float | None = None
    """Size of the new text compressed by zlib over its size: small where it repeats itself in any rhythm."""
    pmi: float | None = None
    """(log p(text | prompt) - log p(text)) / tokens under the unsteered model, nats: what the prompt says about the text."""
    off_target: int | None = None
    """Latents that are not edited, and whose mean over this text the edit moves by more than three standard errors (of the
    difference between the stream with and without the edit, paired by token); None without a dictionary."""


def promoted(model: HookedModule, row: Tensor, k: int = TOP) -> list[int]:
    """The tokens whose scores a push along `row` raises most, by the weights: final norm's gain, then unembedding.

    The mean over the vocabulary is a shift that no softmax sees; special tokens are left out.
    """
    unembedding = model.W_U.detach().float()
    scores = model.through_final_norm(row).to(unembedding.device) @ unembedding
    special = sorted(model.tokenizer.special_ids) if model.tokenizer else []
    scores[special] = -torch.inf
    return scores.topk(min(k, len(scores) - len(special))).indices.tolist()


def repetition(ids: Sequence[int], n: int = 4) -> float:
    """Share of n-grams that are repeats of an earlier one; 0 for texts shorter than n."""
    grams = [tuple(ids[i : i + n]) for i in range(len(ids) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def distinct(ids: Sequence[int], n: int = 2) -> float | None:
    """Share of n-grams that are different ones; None for texts shorter than n."""
    grams = [tuple(ids[i : i + n]) for i in range(len(ids) - n + 1)]
    return len(set(grams)) / len(grams) if grams else None


def zipped(text: str) -> float | None:
    """Compressed size over size in bytes, None for no text. Above 1 for very short texts: compare texts of like length."""
    raw = text.encode()
    return len(zlib.compress(raw, 9)) / len(raw) if raw else None


def moved(before: Tensor, after: Tensor, errors: float = 3.0) -> Tensor:
    """bool [d_sae]: whose mean over tokens [pos d_sae] moved by more than `errors` standard errors of the paired difference.

    Latents that both times read the same everywhere did not move. Needs two tokens at least.
    """
    difference = (after - before).double()
    n = len(difference)
    if n < 2:
        return torch.zeros(before.shape[1], dtype=torch.bool, device=before.device)
    mean = difference.mean(0)
    return mean.abs() > errors * difference.std(0) / math.sqrt(n) + 1e-6 * before.abs().amax().clamp(min=1)


class Reader:
    """Reads finished texts for one set of edits: `scores(prompt, new, editing)`."""

    def __init__(self, model: HookedModule, saes: dict, edits: Sequence[Resolved], gauges: dict[str, Gauge]):
        self.model, self.saes, self.gauges = model, saes, gauges
        sites = {name: {e.site for e in edits if e.edit.target == name} for name in (e.edit.target for e in edits)}
        self.targets = {e.edit.target if len(sites[e.edit.target]) == 1 else f"{e.edit.target} at {e.site}": e for e in edits}
        self.promoted = {name: promoted(model, e.row) for name, e in self.targets.items()}
        self.unexplained = {e.site: Unexplained(saes[e.site]) for e in edits if e.site in saes}
        """Of the texts that nothing edited."""
        self.readers = {
            name: LatentReader(saes[e.site], [e.edit.latent])
            for name, e in self.targets.items()
            if not isinstance(e.edit.latent, Direction)
        }

    @torch.no_grad()
    def scores(self, prompt: Sequence[int], new: Sequence[int], editing: Editing | None) -> Scores | None:
        """None where nothing was written. `editing` is the arm's own, made anew so that its tally stays the generation's."""
        if not new:
            return None
        model, n = self.model, len(new)
        tokens = torch.tensor([[*prompt, *new]], device=model.device)
        sites = sorted({e.site for e in self.targets.values()})
        logits, cache = model.run_with_cache(tokens, names_filter=sites)
        plain = logits[0, -n - 1 : -1].float().log_softmax(-1)
        own, off_target = plain, 0 if any(site in self.saes for site in sites) else None
        if editing is None:
            for site, found in self.unexplained.items():
                found.see(cache[site][0][tokens[0] != model.cfg.bos])
        if editing is not None:
            edited_at: dict[str, Tensor] = {}
            keep = (sites, lambda x, hook: edited_at.__setitem__(hook.name, x[0, -n:].float()))
            with as_generation(model, len(prompt)):
                edited = model.run_with_hooks(tokens, fwd_hooks=[*editing.hooks(), keep])
            own = edited[0, -n - 1 : -1].float().log_softmax(-1)
            off_target = self._off_target({site: cache[site][0, -n:].float() for site in sites}, edited_at)
        said = tokens[0, -n:]
        readings = {name: self._reading(name, e, cache[e.site][0, -n:].float()) for name, e in self.targets.items()}
        kl = (own.exp() * (own - plain)).sum(1) if editing is not None else plain.new_zeros(n)
        given = plain.gather(1, said[:, None])[:, 0]
        return Scores(
            log_prob=float(given.mean()),
            repetition=repetition(list(new)),
            kl=float(kl.mean()),
            concept={name: self._concept(name, reading) for name, reading in readings.items()},
            active={name: float((reading > 0).float().mean()) for name, reading in readings.items()},
            share={name: sum(i in top for i in new) / n for name, top in self.promoted.items()},
            mass={name: float(own[:, top].exp().sum(1).mean()) for name, top in self.promoted.items()},
            readings={name: [round(v, 4) for v in reading.tolist()] for name, reading in readings.items()},
            kl_steps=[round(v, 5) for v in kl.tolist()],
            distinct=distinct(list(new)),
            zipped=zipped(model.tokenizer.decode(list(new))) if model.tokenizer else None,
            pmi=float((given - self._without_prompt(said)).mean()),
            off_target=off_target,
        )

    def _without_prompt(self, said: Tensor) -> Tensor:
        """Log-probability of each new token where nothing but <bos> stands before the text."""
        bos = said.new_tensor([self.model.cfg.bos])
        logits = self.model(torch.cat([bos, said])[None])[0, :-1]
        return logits.float().log_softmax(-1).gather(1, said[:, None])[:, 0]

    def _off_target(self, before: dict[str, Tensor], after: dict[str, Tensor]) -> int | None:
        """Latents that moved, over all sites; the edited ones are not counted."""
        if not any(site in self.saes for site in before):
            return None
        count = 0
        for site in before:
            if site not in self.saes:
                continue
            sae = self.saes[site]
            x, y = (sae.encode(t.to(sae.W_enc.dtype)).float() for t in (before[site], after[site]))
            found = moved(x, y)
            own = [e.edit.latent for e in self.targets.values() if e.site == site and not isinstance(e.edit.latent, Direction)]
            found[own] = False
            count += int(found.sum())
        return count

    def _reading(self, name: str, edit: Resolved, x: Tensor) -> Tensor:
        if name in self.readers:
            return self.readers[name](x)[:, 0]
        return x @ edit.row.to(x.device) / edit.rho

    def _concept(self, name: str, reading: Tensor) -> float:
        edit = self.targets[name]
        reference = self.gauges[edit.site].p99.get(edit.edit.latent) if name in self.readers else None
        return float((reading / reference).clamp(max=1).mean()) if reference else float(reading.mean())


@contextmanager
def as_generation(model: HookedModule, prompt_length: int):
    """Within the block, a whole text run at once counts as a prompt of this length and what was generated after it."""
    before = model.run.prompt_lengths
    model.run.prompt_lengths = torch.tensor([prompt_length], device=model.device)
    try:
        yield
    finally:
        model.run.prompt_lengths = before

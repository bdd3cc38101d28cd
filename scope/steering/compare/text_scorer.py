"""Scores finished texts: the unsteered model reads them again, and the condition's own edits are run over them."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor

from scope.activations.corpus.inputs import counted_tokens
from scope.evaluation.metrics import FvuSums
from scope.models.face import LanguageModel
from scope.models.griffin.shares import Recurrence, for_each_recurrence, layer_of, remaining
from scope.sae.base import SAE
from scope.shapes import Tokens
from scope.sites import in_stream_space
from scope.steering.apply.editing import Editing
from scope.steering.apply.latent_reader import LatentReader
from scope.steering.apply.resolve import Resolved
from scope.steering.apply.strength_units import StrengthUnits
from scope.steering.compare.scores import Scores, distinct, repetition, zipped
from scope.steering.edits.interventions import Add

TOP = 10


def promoted(model: LanguageModel, row: Tensor, k: int = TOP) -> list[int]:
    """The tokens whose scores a push along `row` raises most, by the weights: final norm's gain, then unembedding.

    The mean over the vocabulary is a shift that no softmax sees; special tokens are left out.
    """
    unembedding = model.W_U.detach().float()
    scores = model.through_final_norm(row).to(unembedding.device) @ unembedding
    special = sorted(model.tokenizer.special_ids) if model.tokenizer else []
    scores[special] = -torch.inf
    return scores.topk(min(k, len(scores) - len(special))).indices.tolist()


@torch.no_grad()
def raised(
    model: LanguageModel, saes: Mapping[str, SAE], edits: Sequence[Resolved], prompts: Sequence[str], k: int = TOP
) -> list[int]:
    """The tokens whose log-probability after the prompts is raised most by a push along the row at the last token, half the
    typical norm long, or by forgetting all; for places from which no direct way leads to the unembedding. [] where none is."""
    change = torch.zeros(model.cfg.d_vocab)
    tried = [_at_half_strength(e) for e in edits]
    for prompt in prompts:
        tokens = model.to_tokens(prompt)
        runs = (Editing(model, saes, tried).hooks(), [])
        edited, plain = (model.run_with_hooks(tokens, fwd_hooks=h)[0, -1].float().log_softmax(-1) for h in runs)
        change += (edited - plain).cpu()
    special = sorted(model.tokenizer.special_ids) if model.tokenizer else []
    change[special] = -torch.inf
    return [i for i in change.topk(min(k, len(change) - len(special))).indices.tolist() if change[i] > 0]


def _at_half_strength(resolved: Resolved) -> Resolved:
    edit = resolved.edit
    if edit.on_tokens:
        return replace(resolved, edit=replace(edit, positions="last_prompt"), amount=1.0)
    push = Add(edit.latent, positions="last_prompt", site=edit.site)
    return replace(resolved, edit=push, amount=0.5 * resolved.typical_norm / float(resolved.row.norm()))


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


class TextScorer:
    """Scores finished texts for one set of edits: `scores(prompt, new, editing)`."""

    def __init__(
        self,
        model: LanguageModel,
        saes: Mapping[str, SAE],
        edits: Sequence[Resolved],
        strength_units: Mapping[str, StrengthUnits],
        prompts: Sequence[str] = (),
    ):
        self.model, self.saes, self.strength_units = model, saes, strength_units
        sites = {name: {e.site for e in edits if e.edit.target == name} for name in (e.edit.target for e in edits)}
        names = {
            i: e.edit.target if e.edit.on_tokens or len(sites[e.edit.target]) == 1 else f"{e.edit.target} at {e.site}"
            for i, e in enumerate(edits)
        }
        self.targets = {names[i]: e for i, e in enumerate(edits) if not e.edit.on_tokens}
        self.forgotten = {n: [e for i, e in enumerate(edits) if names[i] == n and e.edit.on_tokens] for n in names.values()}
        """Tokens that are forgotten, with the edit of each layer."""
        self.forgotten = {name: each for name, each in self.forgotten.items() if each}
        self.promoted = {
            name: promoted(model, self.targets[name].row)
            if name in self.targets and in_stream_space(self.targets[name].site)
            else raised(model, saes, self.forgotten.get(name) or [self.targets[name]], prompts)
            for name in dict.fromkeys(names.values())
        }
        self.measured = [n for n in self.promoted if n in self.forgotten or not in_stream_space(self.targets[n].site)]
        """The targets whose promoted tokens are measured, not read from the weights."""
        self._fvu = {e.site: FvuSums() for e in self.targets.values() if e.site in saes}
        """Per site, over the texts that nothing edited."""
        self.readers = {
            name: LatentReader(saes[e.site], [e.edit.latent]) for name, e in self.targets.items() if e.edit.on_latent
        }

    @torch.no_grad()
    def scores(self, prompt: Sequence[int], new: Sequence[int], editing: Editing | None) -> Scores | None:
        """None where nothing was written. `editing` is a new one of the same edits: the generation's keeps its counts."""
        if not new:
            return None
        model, n = self.model, len(new)
        tokens = torch.tensor([[*prompt, *new]], device=model.device)
        sites = sorted({e.site for e in self.targets.values()})
        keeps = [(sites, lambda x, hook: edited_at.__setitem__(hook.name, x[0, -n:].float()))] if sites else []
        logits, cache = model.run_with_cache(tokens, names_filter=sites)
        plain = logits[0, -n - 1 : -1].float().log_softmax(-1)
        edited_at: dict[str, Tensor] = {}
        log_probs, off_target = plain, 0 if any(site in self.saes for site in sites) else None
        if editing is None:
            counted = counted_tokens(tokens, model.special_ids)[0]
            for site in self._fvu:
                x, sae = cache[site][0][counted], self.saes[site]
                error = x.float() - sae.decode(sae.encode(x.to(sae.W_enc.dtype))).float()
                self._fvu[site] += FvuSums.of(x, float(error.double().square().sum()))
        else:
            with as_generation(model, len(prompt)):
                edited = model.run_with_hooks(tokens, fwd_hooks=[*editing.hooks(), *keeps])
            log_probs = edited[0, -n - 1 : -1].float().log_softmax(-1)
            off_target = self._off_target({site: cache[site][0, -n:].float() for site in sites}, edited_at)
        written = tokens[0, -n:]
        readings = {name: self._reading(name, e, cache[e.site][0, -n:].float()) for name, e in self.targets.items()}
        readings |= {name: self._still_there(each, prompt, tokens) for name, each in self.forgotten.items()}
        kl = (log_probs.exp() * (log_probs - plain)).sum(1) if editing is not None else plain.new_zeros(n)
        log_p = plain.gather(1, written[:, None])[:, 0]
        return Scores(
            log_prob=float(log_p.mean()),
            repetition=repetition(list(new)),
            kl=float(kl.mean()),
            concept={name: self._concept(name, reading) for name, reading in readings.items()},
            active={name: float((reading > 0).float().mean()) for name, reading in readings.items()},
            share={name: sum(i in top for i in new) / n for name, top in self.promoted.items()},
            mass={name: float(log_probs[:, top].exp().sum(1).mean()) for name, top in self.promoted.items()},
            readings={name: [round(v, 4) for v in reading.tolist()] for name, reading in readings.items()},
            kl_steps=[round(v, 5) for v in kl.tolist()],
            distinct=distinct(list(new)),
            zipped=zipped(model.tokenizer.decode(list(new))) if model.tokenizer else None,
            pmi=float((log_p - self._without_prompt(written)).mean()),
            off_target=off_target,
        )

    def fvu(self) -> dict[str, float]:
        """Per dictionary's site the FVU over the counted tokens of the unedited texts; none for sites without variance."""
        values = {site: sums.value() for site, sums in self._fvu.items()}
        return {site: value for site, value in values.items() if not math.isnan(value)}

    def _without_prompt(self, new: Tensor) -> Tensor:
        """Log-probability of each new token where nothing but <bos> stands before the text."""
        bos = new.new_tensor([self.model.cfg.bos])
        logits = self.model(torch.cat([bos, new])[None])[0, :-1]
        return logits.float().log_softmax(-1).gather(1, new[:, None])[:, 0]

    def _off_target(self, before: dict[str, Tensor], after: dict[str, Tensor]) -> int | None:
        """Latents that moved, over all sites; the edited ones are not counted."""
        sites = [site for site in before if site in self.saes]
        count = 0
        for site in sites:
            sae = self.saes[site]
            x, y = (sae.encode(t.to(sae.W_enc.dtype)).float() for t in (before[site], after[site]))
            other = moved(x, y)
            other[[e.edit.latent for e in self.targets.values() if e.site == site and e.edit.on_latent]] = False
            count += int(other.sum())
        return count if sites else None

    def _reading(self, name: str, edit: Resolved, x: Tensor) -> Tensor:
        if name in self.readers:
            return self.readers[name](x)[:, 0]
        if edit.edit.reads_own_latent and edit.edit.latent.encoder.weights is not None:
            return edit.edit.latent.encoder(x)
        return x @ edit.row.to(x.device) / edit.typical_norm

    def _still_there(self, edits: Sequence[Resolved], prompt: Sequence[int], tokens: Tokens) -> Tensor:
        """At each new token the length of what the tokens of the prompt left, in typical norms, mean over layers."""
        places = edits[0].edit.latent.places(prompt, self.model.words)
        times, norms = range(len(prompt), tokens.shape[1]), {layer_of(e.site): e.typical_norm for e in edits}

        def lengths(layer: int, recurrence: Recurrence) -> Tensor:
            squared = torch.zeros(len(times), dtype=torch.float64)
            for _, index, left in remaining(recurrence, times):
                squared[index] += left[places].sum(0).square().sum()
            return squared.sqrt() / norms[layer]

        by_layer = for_each_recurrence(self.model, tokens, sorted(norms), lengths)
        return torch.stack(list(by_layer.values())).mean(0).float()

    def _concept(self, name: str, reading: Tensor) -> float:
        if name in self.forgotten:
            return float(reading.mean())
        edit = self.targets[name]
        reference = self.strength_units[edit.site].p99.get(edit.edit.latent) if name in self.readers else None
        return float((reading / reference).clamp(max=1).mean()) if reference else float(reading.mean())


@contextmanager
def as_generation(model: LanguageModel, prompt_length: int) -> Iterator[None]:
    """Within the block, a whole text run at once counts as a prompt of this length and what was generated after it."""
    before = model.run.prompt_lengths
    model.run.prompt_lengths = torch.tensor([prompt_length], device=model.device)
    try:
        yield
    finally:
        model.run.prompt_lengths = before

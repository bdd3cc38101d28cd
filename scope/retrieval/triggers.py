"""Retrieval triggers: which latents announce, k tokens ahead, that a call to Data Commons opens.

A detector says of every position of an answer whether the call's first token stands exactly k tokens further. Each is chosen on
one half of the questions (the latent with its threshold, the weights of the probe, the tokens of the token baselines) and
scored on the other: precision, the share of its alarms that are right, and recall, the share of the calls that it announces.

Beside the best latent stand a linear probe on the same activations, which may use every direction; baselines that see only the
last token, or the last two; and a null: the best latent for the calls of another answer, which shows what choosing among many
latents reaches by chance.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from scope.errors import ConfigError
from scope.models.face import LanguageModel
from scope.null_seeds import null_seed
from scope.retrieval.calls import OPEN
from scope.sae.base import SAE
from scope.shapes import Acts, Latents
from scope.steering.edits.directions import Direction

Labels = Bool[Tensor, " tok"]
_THRESHOLDS = 12
_RIDGE = 0.01


@dataclass(frozen=True)
class Answer:
    """Ids of a prompt with its answer, how many of them are the prompt's, and where calls open."""

    ids: tuple[int, ...]
    n_prompt: int
    openings: tuple[int, ...]

    @classmethod
    def of(cls, model: LanguageModel, prompt_ids: Sequence[int], new_ids: Sequence[int]) -> "Answer":
        ids = (*prompt_ids, *new_ids)
        text, ends = "", []
        for piece in model.words.pieces(list(ids)):
            byte = re.fullmatch(r"<0x([0-9A-F]{2})>", piece)  # a call is written in ASCII, a byte a character
            text += chr(int(byte[1], 16)) if byte else piece
            ends.append(len(text))
        start = ends[len(prompt_ids) - 1]
        openings = []
        while (place := text.find(OPEN, start)) >= 0:
            openings.append(next(i for i, end in enumerate(ends) if end > place))
            start = place + 1
        return cls(ids, len(prompt_ids), tuple(openings))


@dataclass(frozen=True)
class Score:
    """How well a detector announces calls on the half of the questions that it was not chosen on."""

    precision: float | None
    """Share of its alarms that are right; None without an alarm."""

    recall: float
    """Share of the calls that it announces."""

    @property
    def f1(self) -> float:
        """Harmonic mean of both; 0 without a right alarm."""
        precision = self.precision or 0.0
        total = precision + self.recall
        return 2 * precision * self.recall / total if total > 0 else 0.0


@dataclass(frozen=True)
class Announcement:
    """The detectors of a call k tokens ahead."""

    k: int
    n_calls: int
    """Calls in the half that is scored."""
    latent: int
    threshold: float
    latents: tuple[int, ...]
    """The best latents, by F1 on the half that they are chosen on."""
    scores: dict[str, Score]
    """By detector: latent, probe, token, two tokens, null."""


DETECTORS = ("latent", "probe", "token", "two tokens", "null")


def announcements(
    model: LanguageModel, sae: SAE, answers: Sequence[Answer], ahead: Sequence[int] = (1, 2, 3, 4), seed: int = 0, top: int = 16
) -> list[Announcement]:
    """The best detectors for each distance; answers with even places choose, those with odd places score.

    Raises:
        ConfigError: fewer than two calls in either half, so there is nothing to announce.
    """
    halves = [answers[0::2], answers[1::2]]
    acts, latents = zip(*(_activations(model, sae, half) for half in halves), strict=True)
    results = []
    for k in ahead:
        labels = [_labels(half, k) for half in halves]
        if min(int(part.sum()) for part in labels) < 2:
            n_calls = " and ".join(str(int(part.sum())) for part in labels)
            raise ConfigError(
                f"In the two halves of {len(answers)} answers, {n_calls} calls open {k} tokens or more after the question; "
                "two are needed in either.\n  Give more questions, or a model that calls Data Commons."
            )
        shuffled = [_labels(half, k, _exchange(len(half), seed)) for half in halves]
        best, threshold, order = _best_latent(latents[0], labels[0])
        null, null_threshold, _ = _best_latent(latents[0], shuffled[0])
        probe = _probe(acts[0], labels[0])
        cut = _best_threshold(probe(acts[0]), labels[0])
        scores = {
            "latent": score(latents[1][:, best] > threshold, labels[1]),
            "probe": score(probe(acts[1]) > cut, labels[1]),
            "token": _by_tokens(halves, labels, 1),
            "two tokens": _by_tokens(halves, labels, 2),
            "null": score(latents[1][:, null] > null_threshold, shuffled[1]),
        }
        results.append(Announcement(k, int(labels[1].sum()), best, threshold, order[:top], scores))
    return results


def before_calls(model: LanguageModel, sites: Sequence[str], answers: Sequence[Answer]) -> list[Direction]:
    """At each site the mean activation one token before a call minus the mean in answers without one, over the answers with
    even places. Where every answer has a call, the mean elsewhere is taken, which is mostly that within calls."""
    half = answers[0::2]
    acts, (labels, without, name) = _recorded(model, sites, half), _contrast(half)
    means = {site: acts[site][labels].mean(0) - acts[site][without].mean(0) for site in sites}
    return [Direction(tuple(mean.tolist()), site, f"mean before a call minus {name}") for site, mean in means.items()]


def written_before_calls(model: LanguageModel, sae: SAE, answers: Sequence[Answer]) -> list[tuple[int, float]]:
    """The same difference as the SAE has it: latents with how much more they fire one token before a call, those that write
    most to the stream first."""
    half = answers[0::2]
    latents, (labels, without, _) = _activations(model, sae, half)[1], _contrast(half)
    more = latents[labels].mean(0) - latents[without].mean(0)
    order = (more * sae.W_dec.detach().float().norm(dim=1).cpu()).argsort(descending=True, stable=True)
    return [(int(i), float(more[i])) for i in order if more[i] > 0]


def _contrast(answers: Sequence[Answer]) -> tuple[Labels, Labels, str]:
    """(positions one token before a call, positions to compare them with, what the latter are)."""
    labels = _labels(answers, 1)
    without = torch.cat([torch.full((len(_positions(a)),), not a.openings) for a in answers])
    return (labels, without, "answers without one") if bool(without.any()) else (labels, ~labels, "elsewhere")


def score(alarms: Labels, labels: Labels) -> Score:
    """Precision and recall of alarms."""
    right, n = float((alarms & labels).sum()), float(alarms.sum())
    return Score(right / n if n else None, right / max(1.0, float(labels.sum())))


def table(results: Sequence[Announcement]) -> str:
    """A row for each distance: precision and recall of each detector."""
    head = f"{'k':>2} {'calls':>6} {'latent':>7}  " + "  ".join(f"{name:>16}" for name in DETECTORS)
    rows = [head, f"{'':>17}  " + "  ".join(f"{'prec.  recall':>16}" for _ in DETECTORS)]
    for r in results:
        scores = [r.scores[name] for name in DETECTORS]
        cells = (f"{'-' if s.precision is None else format(s.precision, '.2f'):>8}{s.recall:>8.2f}" for s in scores)
        rows.append(f"{r.k:>2} {r.n_calls:>6} {r.latent:>7}  " + "  ".join(cells))
    return "\n".join(rows)


def _positions(answer: Answer) -> range:
    """Where an alarm can be given: from the last token of the question to the last but one of the answer."""
    return range(answer.n_prompt - 1, len(answer.ids) - 1)


def _labels(answers: Sequence[Answer], k: int, order: Sequence[int] | None = None) -> Labels:
    """Whether a call opens k tokens after each position; with `order`, where one opens in another answer, counted from its
    question's end."""
    rows = []
    for i, answer in enumerate(answers):
        other = answers[order[i]] if order is not None else answer
        places = {place - k - other.n_prompt + answer.n_prompt for place in other.openings}
        rows += [t in places for t in _positions(answer)]
    return torch.tensor(rows, dtype=torch.bool)


def _exchange(n: int, seed: int) -> list[int]:
    """For each of n answers another one: a random order in which everyone takes the next one's place."""
    order = np.random.default_rng(null_seed("calls of another answer", seed)).permutation(n)
    return [int(i) for i in order[np.argsort(order) - 1]]


def _activations(model: LanguageModel, sae: SAE, answers: Sequence[Answer]) -> tuple[Acts, Latents]:
    """The site's activations and the SAE's latents at every position of the answers."""
    x = _recorded(model, [sae.site], answers)[sae.site]
    with torch.no_grad():
        return x, sae.encode(x.to(sae.W_enc)).float().cpu()


@torch.no_grad()
def _recorded(model: LanguageModel, sites: Sequence[str], answers: Sequence[Answer], batch: int = 32) -> dict[str, Acts]:
    """The activations of sites at every position of the answers."""
    acts: dict[str, list[Acts]] = {site: [] for site in sites}
    for start in range(0, len(answers), batch):
        some = answers[start : start + batch]
        longest = max(len(a.ids) for a in some)
        tokens = torch.tensor([[*a.ids, *[model.cfg.pad] * (longest - len(a.ids))] for a in some], device=model.device)
        recorded = model.record(tokens, list(sites))  # padding stands on the right, where no token sees it
        for site, rows in acts.items():
            x = recorded[site].float().cpu()
            rows += [row[list(_positions(a))] for row, a in zip(x, some, strict=True)]
    return {site: torch.cat(rows) for site, rows in acts.items()}


def _best_latent(latents: Latents, labels: Labels) -> tuple[int, float, tuple[int, ...]]:
    """The latent and threshold with the highest F1, and the latents in the order of their best F1."""
    best = torch.zeros(latents.shape[1])
    at = torch.zeros(latents.shape[1])
    positives = float(labels.sum())
    largest = latents.amax(0)
    for step in range(_THRESHOLDS):
        cuts = largest * (step / _THRESHOLDS)
        alarms = latents > cuts
        right = (alarms & labels[:, None]).sum(0).float()
        f1 = 2 * right / (alarms.sum(0) + positives)
        better = f1 > best
        best, at = torch.where(better, f1, best), torch.where(better, cuts, at)
    order = best.argsort(descending=True, stable=True)
    return int(order[0]), float(at[order[0]]), tuple(int(i) for i in order[best[order] > 0])


def _probe(x: Acts, labels: Labels) -> Any:
    """Ridge regression on the activations, calls and other positions weighted alike; from activations to scores."""
    mean, scale = x.mean(0), x.std(0).mean().clamp_min(1e-6)
    z = ((x - mean) / scale).double()
    z = torch.cat([z, torch.ones(len(z), 1, dtype=z.dtype)], 1)
    weight = torch.where(labels, 0.5 / labels.sum(), 0.5 / (~labels).sum().clamp(min=1)).double()
    gram = z.T @ (weight[:, None] * z)
    gram += _RIDGE * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
    w = torch.linalg.solve(gram, z.T @ (weight * (labels.double() * 2 - 1)))
    return lambda rows: (((rows - mean) / scale).double() @ w[:-1] + w[-1]).float()


def _best_threshold(scores: Float[Tensor, " tok"], labels: Labels) -> float:
    """The cut with the highest F1: scores above it are alarms."""
    order = scores.argsort(descending=True)
    right = labels[order].cumsum(0).float()
    f1 = 2 * right / (torch.arange(1, len(order) + 1) + float(labels.sum()))
    sorted_scores = scores[order]
    last_of_its_value = torch.ones(len(order), dtype=torch.bool)
    last_of_its_value[:-1] = sorted_scores[:-1] != sorted_scores[1:]
    best = int(torch.where(last_of_its_value, f1, -1.0).argmax())
    below = sorted_scores[best + 1] if best + 1 < len(order) else sorted_scores[best] - 1
    return float((sorted_scores[best] + below) / 2)


def _by_tokens(halves: Sequence[Sequence[Answer]], labels: Sequence[Labels], n: int) -> Score:
    """What the last n tokens alone announce: the share of calls after them in one half, cut where F1 is highest."""
    seen = [[a.ids[max(0, t - n + 1) : t + 1] for a in half for t in _positions(a)] for half in halves]
    counts: dict[tuple[int, ...], Int[np.ndarray, " two"]] = {}
    for tokens, label in zip(seen[0], labels[0].tolist(), strict=True):
        counts.setdefault(tokens, np.zeros(2, dtype=int))[int(label)] += 1
    share = {tokens: c[1] / c.sum() for tokens, c in counts.items()}
    by_share = [torch.tensor([share.get(tokens, 0.0) for tokens in part]) for part in seen]
    return score(by_share[1] > _best_threshold(by_share[0], labels[0]), labels[1])

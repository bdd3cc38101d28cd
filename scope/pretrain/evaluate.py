"""Scores of a model on text that it never saw: bits per byte, domain by domain.

Bytes, not tokens, are the yardstick, so models with different tokenizers, n-grams and compressors can stand in one table.
"""

import math
import random
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from scope.activations.errors import CorpusError
from scope.models.face import LanguageModel
from scope.typed_json import json_lines, read_bytes, typed

Progress = Callable[[int, int, dict], None] | None


@dataclass(frozen=True)
class Score:
    """Bits per byte over some documents; `low` and `high` bound 95 % of resamplings of the documents."""

    bits_per_byte: float
    low: float
    high: float
    documents: int
    bytes: int
    tokens: int


@dataclass(frozen=True)
class DocumentBits:
    """What one held-out document costs to predict."""

    domain: str
    bits: float
    bytes: int
    tokens: int


def read_held_out(corpus: Path, per_domain: int = 60, seed: int = 0) -> list[tuple[str, str]]:
    """(domain, text) of held-out documents, at most `per_domain` of each domain, drawn by the seed; sorted by domain.

    Raises:
        CorpusError: the folder has no heldout.jsonl, or nothing was held out.
    """
    file = corpus / "heldout.jsonl"
    if not file.exists():
        raise CorpusError(f"{corpus} has no heldout.jsonl. `scope pretrain` writes it when it builds a corpus.")
    domains: dict[str, list[str]] = {}
    for line in json_lines(read_bytes(file, CorpusError, largest=1 << 34), file, CorpusError):
        row = typed(line, dict[str, str], file, CorpusError)
        domains.setdefault(row["domain"], []).append(row["text"])
    if not domains:
        raise CorpusError(f"{file} is empty: the corpus is too small to hold documents out. Give more text.")
    chosen = []
    for domain, texts in sorted(domains.items()):
        random.Random(f"{seed} {domain}").shuffle(texts)
        chosen += [(domain, text) for text in texts[:per_domain]]
    return chosen


def windows(n_tokens: int, n_ctx: int) -> list[tuple[int, int, int]]:
    """(start, first, stop) of the windows over a document: each reads <bos> and tokens from `start`, and scores first..stop.

    Windows advance by half a context, so that every token but those of the first window has half a context before it.
    """
    found, scored, start = [], 0, 0
    while scored < n_tokens:
        stop = min(start + n_ctx, n_tokens)
        found.append((start, scored, stop))
        scored, start = stop, start + max(1, n_ctx // 2)
    return found


@torch.no_grad()
def document_bits(
    model: LanguageModel, texts: list[str], batch: int = 8, on_progress: Progress = None
) -> list[tuple[float, int]]:
    """(bits, tokens) of each text: the sum of -log2 p over its tokens. <bos> begins every window; <eos> is not counted."""
    ids = [np.array(model.words.encode(text, bos=False)) for text in texts]
    jobs = [(d, *w) for d, tokens in enumerate(ids) for w in windows(len(tokens), model.cfg.n_ctx)]
    jobs.sort(key=lambda job: job[3] - job[1])  # windows of like length share a batch
    bits = np.zeros(len(texts))
    for at in range(0, len(jobs), batch):
        rows = jobs[at : at + batch]
        longest = max(stop - start for _, start, _, stop in rows)
        tokens = torch.full((len(rows), longest + 1), model.cfg.pad)
        for row, (d, start, _, stop) in enumerate(rows):
            tokens[row, 0] = model.cfg.bos
            tokens[row, 1 : stop - start + 1] = torch.from_numpy(ids[d][start:stop])
        tokens = tokens.to(model.device)
        # Right padding comes after everything that is scored, so it needs no mask.
        logits = model(tokens[:, :-1]).float()
        nats = cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="none").view(len(rows), -1)
        for row, (d, start, first, stop) in enumerate(rows):
            bits[d] += nats[row, first - start : stop - start].double().sum().item() / math.log(2)
        if on_progress:
            on_progress(min(at + batch, len(jobs)), len(jobs), {})
    return [(float(b), len(i)) for b, i in zip(bits, ids, strict=True)]


def evaluate_text(
    model: LanguageModel, documents: list[tuple[str, str]], batch: int = 8, on_progress: Progress = None
) -> list[DocumentBits]:
    """The cost of each (domain, text) under the model."""
    costs = document_bits(model, [text for _, text in documents], batch, on_progress)
    return [
        DocumentBits(domain, bits, len(text.encode()), n_tokens)
        for (domain, text), (bits, n_tokens) in zip(documents, costs, strict=True)
    ]


def score(costs: list[DocumentBits], seed: int = 0, resamples: int = 1000) -> Score:
    """Total bits over total bytes, with a bootstrap interval over documents."""
    bits, sizes = (np.array([getattr(c, field) for c in costs], dtype=np.float64) for field in ("bits", "bytes"))
    rng = np.random.default_rng(seed)
    weights = rng.multinomial(len(costs), np.full(len(costs), 1 / len(costs)), size=resamples)
    low, high = np.quantile((weights @ bits) / (weights @ sizes), [0.025, 0.975])
    n_tokens = sum(c.tokens for c in costs)
    return Score(bits.sum() / sizes.sum(), float(low), float(high), len(costs), int(sizes.sum()), n_tokens)


def by_domain(costs: list[DocumentBits]) -> dict[str, Score]:
    """The score of every domain, in the order of their names."""
    return {d: score([c for c in costs if c.domain == d]) for d in sorted({c.domain for c in costs})}


def mean_bits_per_byte(scores: dict[str, Score]) -> float:
    """The plain mean over domains: a large domain does not outvote a small one."""
    return sum(s.bits_per_byte for s in scores.values()) / len(scores)


def report(costs: list[DocumentBits]) -> dict:
    """What evaluation.json says: the mean over domains, and every domain's score."""
    scores = by_domain(costs)
    return {"mean_bits_per_byte": mean_bits_per_byte(scores), "domains": {d: asdict(s) for d, s in scores.items()}}

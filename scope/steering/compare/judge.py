"""How well steered, from what was read: concept, relevance and fluency, each 0 to 1, and their harmonic mean.

All three are relative to the plain arm's texts, so plain text itself scores 0. It stands for a judge that costs money
(AxBench lets a language model rate the same three, arXiv:2501.17148); how the two agree is not known.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, harmonic_mean
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from scope.steering.compare.run import Sample

By = Literal["share", "concept"]


@dataclass(frozen=True)
class Judged:
    """Of one text."""

    concept: float
    """What the arm adds to the plain text's share of promoted tokens (or to the latent's own reading), 0 to 1."""
    relevance: float | None
    """`pmi` over that of the plain texts, 0 to 1. None where the plain texts have none (theirs is 0 or less): with a prompt
    that says nothing about what follows there is nothing to keep, and the score is that of the other two."""
    fluency: float
    """Probability per token over the plain text's, at most 1, times what is not repeated, times what zlib cannot spare."""
    score: float
    """Harmonic mean of these; 0 if any is."""


def judge(sample: "Sample", plain: "Sample", plain_pmi: float | None, target: str, by: By = "share") -> Judged | None:
    """One text beside the plain text with the same noise; None where either is empty.

    By default the concept is read from the vocabulary: the feature that steers would be its own judge otherwise.

    Args:
        plain_pmi: mean over the plain texts of the run, see `typical_pmi`.
        by: "share" of promoted tokens, or "concept", the latent's own activation.
    """
    mine, other = sample.scores, plain.scores
    if mine is None or other is None:
        return None
    concept = min(1.0, max(0.0, getattr(mine, by)[target] - getattr(other, by)[target]))
    fluency = min(1.0, math.exp(mine.log_prob - other.log_prob)) * (1 - mine.repetition)
    if mine.zipped and other.zipped:
        fluency *= min(1.0, mine.zipped / other.zipped)
    known = plain_pmi is not None and plain_pmi > 0 and mine.pmi is not None
    relevance = min(1.0, max(0.0, mine.pmi / plain_pmi)) if known else None
    parts = [concept, fluency, *([] if relevance is None else [relevance])]
    return Judged(concept, relevance, fluency, harmonic_mean(parts) if min(parts) > 0 else 0.0)


def typical_pmi(plain: Sequence["Sample"]) -> float | None:
    """Mean over the plain texts: a single text's is too noisy to divide by."""
    found = [s.scores.pmi for s in plain if s.scores and s.scores.pmi is not None]
    return fmean(found) if found else None

"""Scores of a steered text: how strongly the edit shows in it, and whether it is still fluent and about its prompt.

Every score is about the new tokens alone, as a continuation of the prompt that the plain condition had. `concept` is read by
the very feature that steered, so it is circular by itself: `share` and `mass` look at the vocabulary instead; `log_prob`,
`repetition`, `distinct` and `zipped` say whether the text is still language, `pmi` whether it still belongs to its prompt,
`off_target` how many other latents the edit moves, `kl` how strongly it acts. How these proxies stand to a human or model judge
is not known.
"""

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, harmonic_mean
from typing import Literal

By = Literal["share", "concept"]


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Scores of one text. Dictionaries are keyed by the edit's target ("latent 1208")."""

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
    """Mean probability that the condition itself gives to those ten tokens."""
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


@dataclass(frozen=True)
class Judged:
    """How well one text was steered: concept, relevance and fluency, each 0 to 1, and their harmonic mean.

    All three are relative to the plain condition's texts, so plain text itself scores 0. It stands for a judge that costs money
    (AxBench lets a language model rate the same three, arXiv:2501.17148); how the two agree is not known.
    """

    concept: float
    """What the condition adds to the plain text's share of promoted tokens (or to the latent's own reading), 0 to 1."""
    relevance: float | None
    """`pmi` over that of the plain texts, 0 to 1. None where the plain texts have none (theirs is 0 or less): with a prompt
    that says nothing about what follows there is nothing to keep, and the score is that of the other two."""
    fluency: float
    """Probability per token over the plain text's, at most 1, times what is not repeated, times what zlib cannot spare."""
    score: float
    """Harmonic mean of these; 0 if any is."""


def judge(scores: Scores | None, plain: Scores | None, plain_pmi: float | None, target: str, by: By = "share") -> Judged | None:
    """One text beside the plain text with the same noise; None where either is empty.

    By default the concept is read from the vocabulary: the feature that steers would be its own judge otherwise.

    Args:
        plain_pmi: mean over the plain texts of the run, see `typical_pmi`.
        by: "share" of promoted tokens, or "concept", the latent's own activation.
    """
    if scores is None or plain is None:
        return None
    concept = min(1.0, max(0.0, getattr(scores, by)[target] - getattr(plain, by)[target]))
    fluency = math.exp(min(0.0, scores.log_prob - plain.log_prob)) * (1 - scores.repetition)
    if scores.zipped and plain.zipped:
        fluency *= min(1.0, scores.zipped / plain.zipped)
    known = plain_pmi is not None and plain_pmi > 0 and scores.pmi is not None
    relevance = min(1.0, max(0.0, scores.pmi / plain_pmi)) if known else None
    parts = [concept, fluency, *([] if relevance is None else [relevance])]
    return Judged(concept, relevance, fluency, harmonic_mean(parts) if min(parts) > 0 else 0.0)


def typical_pmi(plain: Sequence[Scores | None]) -> float | None:
    """Mean over the plain texts: a single text's is too noisy to divide by."""
    values = [s.pmi for s in plain if s and s.pmi is not None]
    return fmean(values) if values else None


def repetition(ids: Sequence[int], n: int = 4) -> float:
    """Share of n-grams that are repeats of an earlier one; 0 for texts shorter than n."""
    different = distinct(ids, n)
    return 0.0 if different is None else 1 - different


def distinct(ids: Sequence[int], n: int = 2) -> float | None:
    """Share of n-grams that are different ones; None for texts shorter than n."""
    grams = [tuple(ids[i : i + n]) for i in range(len(ids) - n + 1)]
    return len(set(grams)) / len(grams) if grams else None


def zipped(text: str) -> float | None:
    """Compressed size over size in bytes, None for no text. Above 1 for very short texts: compare texts of like length."""
    raw = text.encode()
    return len(zlib.compress(raw, 9)) / len(raw) if raw else None

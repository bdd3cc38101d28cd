"""Rows of huge norm, told apart by a stated rule: norm > times x the median of the site's norms on a stated sample.

A few tokens of a text, <bos> before all, carry norms of ten to hundreds of medians. One such row can decide a mean, a variance
or a training step. The recording keeps them, since every site has the same rows; because the norm of every row is stored
and the threshold stands in the manifest, the flag of a row is a fact of the recording and not a guess of its reader.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scope.activations.corpus.contexts import Packer, TextTokenizer, kept_positions
from scope.activations.corpus.sources import Corpus
from scope.activations.errors import CorpusError, RecordingError
from torch import Tensor

RULE = "norm > times x median of the site's norms in the sample"
SAMPLE_CONTEXTS = 16
"""The first contexts of the corpus, whatever the budget: a longer recording has the thresholds of a shorter one."""


@dataclass(frozen=True, kw_only=True)
class Survey:
    """What a first look at the corpus found: the median norm of each site over `rows` rows, and how fast the model ran."""

    contexts: int
    rows: int
    median: dict[str, float]
    tokens_per_second: float

    def rule(self, times: float) -> dict | None:
        """The rule as the manifest holds it; None where there is none."""
        if not times:
            return None
        return {
            "rule": RULE,
            "times": times,
            "sample": {"contexts": self.contexts, "rows": self.rows, "from": "the first contexts of the corpus"},
            "median": self.median,
            "threshold": {site: times * median or None for site, median in self.median.items()},
        }


def survey(recorder, tokenizer: TextTokenizer, corpus: Corpus, config, sites: Sequence[str], timed: bool = False) -> Survey:
    """Run the first contexts of a corpus. `config` is a HarvestConfig. `timed` repeats a single quick batch, warm.

    Raises:
        CorpusError: the corpus holds no text, or the rules leave nothing of it.
        RecordingError: activations are NaN or Inf.
    """
    packed = Packer(corpus.documents(config.seed), tokenizer, config.context).take(SAMPLE_CONTEXTS)
    if not len(packed.tokens):
        raise CorpusError(f"The corpus {corpus.spec} holds no text, so there is nothing to record.")
    kept = kept_positions(packed.tokens, packed.documents, config.exclude, tokenizer)
    norms: dict[str, list[Tensor]] = {site: [] for site in sites}
    rates: list[float] = []
    starts = list(range(0, len(packed.tokens), config.batch_contexts))
    for start in starts:
        batch = torch.from_numpy(packed.tokens[start : start + config.batch_contexts].astype(np.int64))
        batch = batch.to(getattr(recorder, "device", "cpu"))
        chosen = torch.from_numpy(kept[start : start + config.batch_contexts].reshape(-1).nonzero()[0])
        recorded = _timed(recorder, batch, sites, rates)
        for site in sites:
            x = recorded[site].flatten(0, 1)
            norms[site].append(_norms(x.index_select(0, chosen.to(x.device)), config.dtype))
    if timed and len(starts) == 1 and batch.numel() / rates[0] < 5.0:
        _timed(recorder, batch, sites, rates)
    found = {site: torch.cat(parts).numpy() for site, parts in norms.items()}
    rows = int(kept.sum())
    if not rows:
        raise CorpusError(f"The rules {', '.join(config.exclude)} leave no token of the first text of {corpus.spec}.")
    bad = [site for site, n in found.items() if not np.isfinite(n).all()]
    if bad:
        raise RecordingError(
            f"{', '.join(bad)}: the model gives NaN or Inf on the first {len(packed.tokens)} contexts of {corpus.spec}.\n"
            "  Load the model in float32 or bfloat16, or leave that site out."
        )
    median = {site: float(np.partition(n, (rows - 1) // 2)[(rows - 1) // 2]) for site, n in found.items()}
    return Survey(contexts=len(packed.tokens), rows=rows, median=median, tokens_per_second=max(rates))


def flagged(norms: np.ndarray, threshold: float | None) -> np.ndarray:
    """Which rows are outliers, given their norms as stored."""
    return np.zeros(len(norms), bool) if threshold is None else norms > np.float32(threshold)


def counts(norms: dict[str, np.ndarray], rule: dict | None) -> dict[str, int]:
    """Outliers of each site of a shard, {} where the recording has no rule."""
    return {site: int(flagged(n, rule["threshold"][site]).sum()) for site, n in norms.items()} if rule else {}


def _timed(recorder, batch: Tensor, sites: Sequence[str], rates: list[float]) -> dict[str, Tensor]:
    began = time.perf_counter()
    with torch.no_grad():
        recorded = recorder.record(batch, sites)
    for site in sites:
        recorded[site].reshape(-1)[:1].cpu()  # a device has done its work when it can answer
    rates.append(batch.numel() / max(time.perf_counter() - began, 1e-9))
    return recorded


def _norms(x: Tensor, dtype: str) -> Tensor:
    """float32 [row], of what would be stored; finite values whose squares overflow are taken in float64."""
    stored = x.detach().to(torch.bfloat16 if dtype == "bfloat16" else torch.float32).cpu()
    norms = torch.linalg.vector_norm(stored, dim=1, dtype=torch.float32)
    return norms if bool(norms.isfinite().all()) else stored.double().norm(dim=1).float()

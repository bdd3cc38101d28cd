"""Runs the model on the first contexts of a corpus to measure the median norm at each site and the speed.

The outlier thresholds follow from the medians: norm > times x the median of the site's norms in the sample.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from scope.activations.corpus.inputs import InputMaker, Inputs, Recorder, record
from scope.activations.corpus.outlier_rule import FIRST_CONTEXTS, OutlierRule, Sample, outlier_rule
from scope.activations.corpus.roles import Role
from scope.activations.corpus.sources import Corpus
from scope.activations.errors import CorpusError, RecordingError
from torch import Tensor

SAMPLE_CONTEXTS = 16
"""Contexts in the sample. It does not depend on the budget, so a longer recording has the thresholds of a shorter one."""


@runtime_checkable
class Settings(Protocol):
    """The fields of HarvestConfig and LiveConfig that a survey uses."""

    context: int
    batch_contexts: int
    dtype: str
    exclude: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Survey:
    """Median norm of each site over the `rows` rows of the sample, and the speed of the model."""

    contexts: int
    rows: int
    median: dict[str, float]
    tokens_per_second: float
    image_median: dict[str, float] = field(default_factory=dict)
    """Median norm of image patches if the sample also has other rows, which `median` is then computed from."""

    def rule(self, times: float) -> OutlierRule | None:
        """The outlier rule as stored in the manifest; None if `times` is 0."""
        sample: Sample = {"contexts": self.contexts, "rows": self.rows, "from": FIRST_CONTEXTS}
        return outlier_rule(times, sample, self.median, self.image_median) if times else None


def survey(
    recorder: Recorder,
    maker: InputMaker,
    corpus: Corpus,
    sites: Sequence[str],
    config: Settings,
    seed: int,
    timed: bool = False,
) -> Survey:
    """Run the model on the first contexts of a corpus. With `timed`, a single fast batch is run twice to time it warm.

    Raises:
        CorpusError: the corpus is empty, or the rules exclude every row.
        RecordingError: activations are NaN or Inf.
    """
    packed = maker.stream(corpus.documents(seed), config.context).take(SAMPLE_CONTEXTS)
    if not len(packed):
        reasons = [str(facts["skipped"]) for facts in packed.facts if "skipped" in facts]
        why = f"None of the {len(reasons):,} documents of {corpus.spec} can be used" if reasons else ""
        why += f", such as: {reasons[0]}\n  So" if reasons else f"The corpus {corpus.spec} holds no text, so"
        raise CorpusError(f"{why} there is nothing to record.")
    counted = packed.counted(config.exclude)
    norms: dict[str, list[Tensor]] = {site: [] for site in sites}
    rates: list[float] = []
    starts = list(range(0, len(packed), config.batch_contexts))
    for start in starts:
        some = slice(start, start + config.batch_contexts)
        chosen = torch.from_numpy(counted[some].reshape(-1).nonzero()[0])
        for site, x in _timed(recorder, packed[some], sites, rates).items():
            norms[site].append(stored_norms(x.index_select(0, chosen.to(x.device)), config.dtype))
    if timed and len(starts) == 1 and packed.tokens.size / rates[0] < 5.0:
        _timed(recorder, packed, sites, rates)
    norms_of = {site: torch.cat(parts).numpy() for site, parts in norms.items()}
    rows = int(counted.sum())
    if not rows:
        raise CorpusError(f"The rules {', '.join(config.exclude)} leave no token of the first text of {corpus.spec}.")
    bad = [site for site, n in norms_of.items() if not np.isfinite(n).all()]
    if bad:
        raise RecordingError(
            f"{', '.join(bad)}: the model gives NaN or Inf on the first {len(packed)} contexts of {corpus.spec}.\n"
            "  Load the model in float32 or bfloat16, or leave that site out."
        )
    patches = packed.roles[counted] == Role.IMAGE
    mixed = patches.any() and not patches.all()
    return Survey(
        contexts=len(packed),
        rows=rows,
        median={site: _lower_median(n[~patches] if mixed else n) for site, n in norms_of.items()},
        tokens_per_second=max(rates),
        image_median={site: _lower_median(n[patches]) for site, n in norms_of.items()} if mixed else {},
    )


def _lower_median(norms: np.ndarray) -> float:
    at = (len(norms) - 1) // 2
    return float(np.partition(norms, at)[at])


def _timed(recorder: Recorder, inputs: Inputs, sites: Sequence[str], rates: list[float]) -> dict[str, Tensor]:
    began = time.perf_counter()
    recorded = record(recorder, inputs, sites)
    for site in sites:
        recorded[site].reshape(-1)[:1].cpu()  # waits for the device
    rates.append(inputs.tokens.size / max(time.perf_counter() - began, 1e-9))
    return recorded


def stored_norms(x: Tensor, dtype: str) -> Tensor:
    """float32 [row]: norms of the values as stored; computed in float64 where squares overflow."""
    stored = x.detach().to(torch.bfloat16 if dtype == "bfloat16" else torch.float32).cpu()
    norms = torch.linalg.vector_norm(stored, dim=1, dtype=torch.float32)
    return norms if bool(norms.isfinite().all()) else stored.double().norm(dim=1).float()

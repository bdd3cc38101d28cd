"""Both models read the same text: sums of how far their activations lie apart, and of what the base's SAE makes of either.

The sums are plain tensors, so that a reading which was stopped goes on where it was.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from scope.activations.corpus.inputs import counted_tokens
from scope.diffing.config import DiffConfig
from scope.diffing.text import DiffText
from scope.evaluation.metrics import OUTLIER_TIMES, FvuSums
from scope.models.face import LanguageModel
from scope.sae.base import SAE
from scope.shapes import Acts, Latents

ROWS = 512
"""Differences kept at each site, evenly over the text, to find their directions."""

BASE, TUNED = "base", "tuned"
_SUMS = ("tokens", "error", "squares", "total")


@dataclass
class Reading:
    """Sums by name after `done` contexts. With SITE a hook point, WHO base or tuned:

    SITE/relative SITE/difference SITE/base     sums over tokens of |d| / |x|, |d|^2, |x|^2; d = tuned - base, x = base
    SITE/mean [d]  SITE/rows [ROWS d]           the sum of d; some of its rows
    group/tokens [g]  group/relative [site g]   the first by group
    token/tokens [v]  token/relative [v]        the first by token, at the site that tokens are listed for
    unit/tokens [u]  WHO/activation [u f]       sums of latents by unit
    WHO/firing [g f]                            tokens of each group on which latents fire
    WHO/fvu/...  WHO/inliers/...                what FVU is made of; inliers: without tokens of huge norm
    """

    done: int = 0
    sums: dict[str, Tensor] = field(default_factory=dict)

    def add(self, name: str, value: Tensor) -> None:
        value = value.detach().cpu()
        self.sums[name] = self.sums[name] + value if name in self.sums else value

    def fvu(self, prefix: str) -> float:
        """FVU of one kind of tokens; nan where there are none."""
        if f"{prefix}/tokens" not in self.sums:
            return math.nan
        n, error, squares, total = (self.sums[f"{prefix}/{name}"] for name in _SUMS)
        return FvuSums(int(n), float(error), squares, total).value()


class Reader:
    """Runs both models, batch by batch, and adds to a `Reading`."""

    def __init__(
        self,
        base: LanguageModel,
        tuned: LanguageModel,
        text: DiffText,
        sites: Sequence[str],
        sae: SAE | None,
        config: DiffConfig,
    ):
        self.models = {BASE: base, TUNED: tuned}
        self.text, self.sites, self.sae, self.config = text, list(sites), sae, config
        self.listed = sae.site if sae is not None else self.sites[-1]
        self.mask = counted_tokens(text.tokens, base.special_ids) & ~torch.isin(
            text.tokens, torch.tensor(sorted(tuned.special_ids))
        )
        n = int(self.mask.sum())
        kept = torch.zeros(n, dtype=torch.bool)
        kept[torch.linspace(0, max(n - 1, 0), min(ROWS, n)).long()] = True
        self.kept = torch.zeros_like(self.mask).masked_scatter(self.mask, kept)

    @torch.no_grad()
    def run(self, reading: Reading, after_batch: Callable[[Reading], None]) -> Reading:
        """Read what is left of the text."""
        while reading.done < len(self.text.tokens):
            rows = slice(reading.done, reading.done + self.config.batch_contexts)
            acts = {}
            for who, model in self.models.items():
                tokens = self.text.tokens[rows].to(model.device)
                acts[who] = {site: x.flatten(2) for site, x in model.record(tokens, self.sites).items()}
            self._add(reading, rows, acts)
            reading.done = min(rows.stop, len(self.text.tokens))
            after_batch(reading)
        return reading

    def _add(self, reading: Reading, rows: slice, acts: dict[str, dict[str, Tensor]]) -> None:
        mask, n_groups = self.mask[rows], len(self.text.names)
        groups, units, ids = (x[rows][mask] for x in (self.text.groups, self.text.units, self.text.tokens))
        kept = self.kept[rows][mask]
        n_vocab = self.models[BASE].cfg.d_vocab
        reading.add("group/tokens", torch.bincount(groups, minlength=n_groups).double())
        by_group = []
        for site in self.sites:
            x, y = (acts[who][site][mask].float().cpu() for who in (BASE, TUNED))
            d, apart = self._apart(x, y)
            by_group.append(torch.zeros(n_groups, dtype=torch.float64).index_add_(0, groups, apart))
            reading.add(f"{site}/relative", apart.sum())
            reading.add(f"{site}/difference", d.double().square().sum())
            reading.add(f"{site}/base", x.double().square().sum())
            reading.add(f"{site}/mean", d.double().sum(0))
            before = reading.sums.get(f"{site}/rows")
            reading.sums[f"{site}/rows"] = d[kept] if before is None else torch.cat([before, d[kept]])
        reading.add("group/relative", torch.stack(by_group))
        x, y = (acts[who][self.listed][mask].float().cpu() for who in (BASE, TUNED))
        reading.add("token/tokens", torch.bincount(ids, minlength=n_vocab).double())
        reading.add("token/relative", torch.zeros(n_vocab, dtype=torch.float64).index_add_(0, ids, self._apart(x, y)[1]))
        if self.sae is None:
            return
        reading.add("unit/tokens", torch.bincount(units, minlength=self.text.n_units).double())
        for who, values in ((BASE, x), (TUNED, y)):
            self._add_latents(reading, who, values, groups, units)

    @staticmethod
    def _apart(x: Acts, y: Acts) -> tuple[Tensor, Tensor]:
        d = y - x
        return d, d.norm(dim=1).double() / x.norm(dim=1).double().clamp_min(1e-30)

    def _add_latents(self, reading: Reading, who: str, x: Acts, groups: Tensor, units: Tensor) -> None:
        assert self.sae is not None
        latents: Latents = self.sae.encode(x.to(self.sae.W_enc)).float()
        error = (x.to(latents) - self.sae.decode(latents)).double().square().sum(1).cpu()
        latents = latents.cpu()
        shape = (self.text.n_units, latents.shape[1])
        reading.add(f"{who}/activation", torch.zeros(shape).index_add_(0, units, latents))
        firing = (latents > 0).float()
        reading.add(f"{who}/firing", torch.zeros(len(self.text.names), shape[1]).index_add_(0, groups, firing))
        norms = x.norm(dim=1)
        if f"{who}/median" not in reading.sums:
            reading.sums[f"{who}/median"] = norms.median()
        few = norms <= OUTLIER_TIMES * reading.sums[f"{who}/median"]
        for kind, some in (("fvu", torch.ones_like(few)), ("inliers", few)):
            sums = FvuSums.of(x[some], error[some].sum().item())
            for name, value in zip(_SUMS, (sums.tokens, sums.error, sums.squares, sums.total), strict=True):
                reading.add(f"{who}/{kind}/{name}", torch.as_tensor(value, dtype=torch.float64))

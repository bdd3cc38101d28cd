"""Training of TopK and BatchTopK SAEs: squared error, and an auxiliary loss that brings silent latents back.

Sparsity needs no penalty. What dies does not come back by itself, so latents that have been silent for long are asked to
reconstruct what the living ones left over ("AuxK"). Decoder rows may have any norm while training (`decoder` "free"): rows that
start short turn far in a step at first, and less the longer they have grown. In a short run that decides what is found.

The threshold of BatchTopK follows, as a running mean, the smallest value that training kept.

Sources: Gao et al. 2024, arXiv:2406.04093, appendix A; Bussmann et al. 2024, arXiv:2412.06410.
"""

from typing import Any

import torch
from torch import Tensor

from scope.sae.configs.topk import BatchTopKConfig, TopKConfig
from scope.sae.objectives.base import Objective, drop_lengthening, start_tied, unit_rows
from scope.sae.topk import BatchTopKSAE, TopKSAE
from scope.shapes import Acts, Scalar

_WAYS, _SLOWEST, _FASTEST = 20.0, 0.01, 0.5  # ways that the threshold goes in a run, and shares of one in a step


class TopKObjective(Objective):
    """`silent` counts, for each latent, the tokens since it fired last."""

    sae: TopKSAE
    config: TopKConfig

    def __init__(self, sae: TopKSAE):
        super().__init__(sae)
        self.silent = torch.zeros(sae.d_sae, dtype=torch.long, device=sae.W_dec.device)
        self.fired, self.tokens = self.silent > 0, 0

    def choose(self, sizes: Tensor) -> Tensor:
        """Those that are kept of pre-activations, or of these times the norms of their rows."""
        return self.sae.greatest(sizes)

    def losses(self, x: Acts) -> dict[str, Scalar]:
        """Squared error per token, nested ones, and what silent latents leave of it."""
        pre = self.sae.pre_activations(x)
        latents = self.sae.compete(pre, self.choose)
        terms = self.errors(latents, x)
        revived = self.auxiliary(x, pre, latents)
        if revived is not None:
            terms["auxiliary"] = revived
        self.note(latents.detach())
        return terms

    def auxiliary(self, x: Acts, pre: Tensor, latents: Tensor) -> Scalar | None:
        """Squared error of the silent latents as reconstruction of the others' error, weighted; None if none is silent.

        With fewer silent latents than `aux_k` the term counts for less, in proportion.
        """
        c = self.config
        dead = (self.silent >= c.revive_after).nonzero().squeeze(1)
        if not len(dead) or not c.aux_weight:
            return None
        wanted = c.aux_k or max(1, c.d_in // 2)
        rows = self.sae.W_dec[dead]
        norms = rows.norm(dim=1).clamp_min(1e-12) if self.sae.free else torch.ones(len(dead)).to(pre)
        values, ids = (pre[:, dead] * norms).topk(min(wanted, len(dead)), dim=1, sorted=False)
        revived = torch.zeros(len(x), len(dead)).to(pre).scatter(1, ids, torch.relu(values))
        left = (x - self.sae.decode(latents)).detach()
        error = ((revived / norms) @ rows - left).square().sum(1).mean()
        return c.aux_weight * min(1.0, len(dead) / wanted) * error

    def note(self, latents: Tensor) -> None:
        """Keep which latents fired on this batch until the step is taken."""
        self.fired, self.tokens = (latents > 0).any(0), len(latents)

    @torch.no_grad()
    def start(self, sample: Acts, seed: int = 0) -> None:
        sae = self.sae
        start_tied(sae, seed)
        sae.free = self.config.decoder == "free"
        if sae.free:
            for weights in (sae.W_enc, sae.W_dec):
                weights.mul_(0.1 if self.config.start_norm is None else self.config.start_norm)

    @torch.no_grad()
    def before_step(self) -> None:
        if not self.sae.free:
            drop_lengthening(self.sae.W_dec)

    @torch.no_grad()
    def after_step(self, l0: float, progress: float) -> None:
        """Rows that are to be unit are so again, and the count of silent tokens goes on."""
        if not self.sae.free:
            unit_rows(self.sae.W_dec)
        self.silent.add_(self.tokens)
        self.silent[self.fired] = 0

    def state(self) -> dict[str, Any]:
        return {"silent": self.silent}

    @torch.no_grad()
    def load_state(self, state: dict[str, Any]) -> None:
        self.silent.copy_(state["silent"])
        self.sae.free = self.config.decoder == "free"

    def watched(self) -> dict[str, float]:
        return {"silent": (self.silent >= self.config.revive_after).float().mean().item()}


class BatchTopKObjective(TopKObjective):
    """`lowest` is the least that a latent kept in the last batch added."""

    sae: BatchTopKSAE
    config: BatchTopKConfig

    def __init__(self, sae: BatchTopKSAE):
        super().__init__(sae)
        self.lowest, self.progress = 0.0, 0.0

    def choose(self, sizes: Tensor) -> Tensor:
        """By rank within the batch."""
        flat = torch.relu(sizes).flatten()
        values, ids = flat.topk(int(self.config.k * (flat.numel() // self.sae.d_sae)), sorted=False)
        return torch.zeros_like(flat).scatter(0, ids, values).view_as(sizes)

    @torch.no_grad()
    def note(self, latents: Tensor) -> None:
        super().note(latents)
        sizes = latents * self.sae.norms() if self.sae.free else latents
        self.lowest = sizes[sizes > 0].min().item() if self.fired.any() else 0.0

    @torch.no_grad()
    def start(self, sample: Acts, seed: int = 0) -> None:
        super().start(sample, seed)
        some = sample[: max(64, 2**24 // self.sae.d_sae)]  # all latents on all of the sample might be large
        self.note(self.sae.compete(self.sae.pre_activations(some), self.choose))
        self.sae.threshold.fill_(self.lowest)
        self._as_latents()

    def before_step(self) -> None:
        super().before_step()
        self._as_sizes()

    @torch.no_grad()
    def after_step(self, l0: float, progress: float) -> None:
        super().after_step(l0, progress)
        share = self.config.follow
        if share is None:
            done, self.progress = progress - self.progress, progress
            share = min(_FASTEST, max(_SLOWEST, _WAYS * done))
        threshold = self.sae.threshold
        threshold.add_(share * (self.lowest - threshold))
        self._as_latents()

    @torch.no_grad()
    def _as_sizes(self) -> None:
        """What is followed is one number for all: the least that a latent that was kept added."""
        if self.sae.free:
            self.sae.threshold.mul_(self.sae.norms())

    @torch.no_grad()
    def _as_latents(self) -> None:
        if self.sae.free:
            self.sae.threshold.div_(self.sae.norms())

    def watched(self) -> dict[str, float]:
        threshold = self.sae.threshold * self.sae.norms() if self.sae.free else self.sae.threshold
        return super().watched() | {"threshold": threshold.median().item()}

    def state(self) -> dict[str, Any]:
        return super().state() | {"threshold": self.sae.threshold.detach(), "progress": self.progress}

    @torch.no_grad()
    def load_state(self, state: dict[str, Any]) -> None:
        super().load_state(state)
        self.sae.threshold.copy_(state["threshold"])
        self.progress = state.get("progress", 0.0)

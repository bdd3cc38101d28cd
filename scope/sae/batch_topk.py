"""BatchTopK: in training the k x n greatest pre-activations of a batch of n tokens are the latents, so that hard tokens may
have more; afterwards a latent fires above a threshold, so that a token's latents do not depend on its neighbours.

The threshold follows the smallest value that training kept, as a running mean. Encoding is JumpReLU's, and that is how the
dictionary is written for others.

Source: Bussmann et al. 2024, arXiv:2412.06410.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from scope.errors import ConfigError
from scope.sae.base import SAE
from scope.sae.topk import TopKConfig, TopKSAE
from scope.shapes import Acts

_WAYS, _SLOWEST, _FASTEST = 20.0, 0.01, 0.5  # ways that the threshold goes in a run, and shares of one in a step


@dataclass(frozen=True, kw_only=True)
class BatchTopKConfig(TopKConfig):
    """A BatchTopK dictionary."""

    k: float = 32.0
    """Latents that fire per token, on the mean of a batch."""

    follow: float | None = None
    """How fast the threshold follows: the share of its way to the batch's smallest kept value that it goes each step. None is
    20 over the steps of the run, but 0.01 at least and 0.5 at most, so that a short run's threshold arrives too."""

    def __post_init__(self):
        super().__post_init__()
        if self.follow is not None and not 0 < self.follow <= 1:
            raise ConfigError(f"follow is {self.follow:g}; it is a share, above 0 and at most 1.")


class BatchTopKSAE(TopKSAE):
    """A TopK dictionary whose k holds over a batch, with the threshold that stands for it after training."""

    kind = "batch_topk"
    config: BatchTopKConfig

    def __init__(self, config: BatchTopKConfig, site: str = ""):
        super().__init__(config, site)
        # Followed, not learnt: the same for all latents until decoder norms are folded into it.
        self.threshold = nn.Parameter(torch.zeros(config.d_sae), requires_grad=False)
        self.lowest, self.progress = 0.0, 0.0

    def encode(self, x: Tensor) -> Tensor:
        """By the threshold, one token at a time: what the dictionary does once it is trained."""
        pre = self.pre_activations(x)
        return torch.relu(pre) * (pre > self.threshold)

    def choose(self, sizes: Tensor) -> Tensor:
        """By rank within the batch: what is trained."""
        flat = torch.relu(sizes).flatten()
        values, ids = flat.topk(int(self.config.k * (flat.numel() // self.d_sae)), sorted=False)
        return torch.zeros_like(flat).scatter(0, ids, values).view_as(sizes)

    @torch.no_grad()
    def note(self, latents: Tensor) -> None:
        super().note(latents)
        sizes = latents * self.norms() if self.free else latents
        self.lowest = sizes[sizes > 0].min().item() if self.fired.any() else 0.0

    @torch.no_grad()
    def initialise(self, sample: Acts, seed: int = 0) -> None:
        super().initialise(sample, seed)
        some = sample[: max(64, 2**24 // self.d_sae)]  # all latents on all of the sample might be large
        self.note(self.compete(self.pre_activations(some)))
        self.threshold.fill_(self.lowest)
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
        self.threshold.add_(share * (self.lowest - self.threshold))
        self._as_latents()

    @torch.no_grad()
    def _as_sizes(self) -> None:
        """What is followed is one number for all: the least that a latent that was kept added."""
        if self.free:
            self.threshold.mul_(self.norms())

    @torch.no_grad()
    def _as_latents(self) -> None:
        if self.free:
            self.threshold.div_(self.norms())

    def watched(self) -> dict[str, float]:
        threshold = self.threshold * self.norms() if self.free else self.threshold
        return super().watched() | {"threshold": threshold.median().item()}

    def training_state(self) -> dict[str, Any]:
        return super().training_state() | {"threshold": self.threshold.detach(), "progress": self.progress}

    @torch.no_grad()
    def load_training_state(self, state: dict[str, Any]) -> None:
        super().load_training_state(state)
        self.threshold.copy_(state["threshold"])
        self.progress = state.get("progress", 0.0)

    @torch.no_grad()
    def fold(self, mean: Tensor, scale: float) -> None:
        super().fold(mean, scale)
        self.threshold.mul_(scale)

    @torch.no_grad()
    def unit_decoder(self) -> None:
        """Exact, unlike TopK's: with a threshold of its own, scaling a latent changes no decision."""
        self.threshold.mul_(self.norms())
        SAE.unit_decoder(self)
        self.free = False

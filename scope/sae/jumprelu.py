"""JumpReLU: a latent is its pre-activation where that exceeds the latent's own threshold, and zero elsewhere.

The threshold learns through a straight-through estimator: of the step at the threshold, a rectangle of width `bandwidth` is
taken for the derivative, on the pre-activation and on both sides alike.

Source: Rajamanoharan et al. 2024, arXiv:2407.14435; the recipe at scale, arXiv:2408.05147.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from scope.errors import ConfigError
from scope.sae.base import SAE
from scope.sae.config import SAEConfig
from scope.shapes import Acts, Scalar

GAIN = 20.0
"""How fast the weight of the L0 penalty follows its target: e-folds per run and e-fold of L0 away from it."""


@dataclass(frozen=True, kw_only=True)
class JumpReLUConfig(SAEConfig):
    """A JumpReLU dictionary. Pre-activations are in units in which activations have a mean square norm of 1."""

    target_l0: float = 32.0
    """Latents meant to fire per token. The weight of the L0 penalty is moved during training until this is so."""

    l0_weight: float | None = None
    """A fixed weight of the L0 penalty (Gemma Scope's lambda), warmed up linearly, instead of a target."""

    bandwidth: float = 0.05
    """Width of the window around a threshold that gives it gradient."""

    threshold_rate: float = 4.0
    """Learning rate of the thresholds as a multiple of the weights'."""

    start_l0: float = 4.0
    """Latents that fire per token at the start, as a multiple of the target; it falls to the target in the first part
    of the run."""

    anneal: float = 0.3
    """Share of the run over which the number of latents per token falls to its target (or a fixed l0_weight rises)."""

    decoder: Literal["unit", "free"] = "unit"
    """Decoder rows kept at norm 1 while training, or free and made unit at the end."""

    def __post_init__(self):
        super().__post_init__()
        if not 0 < self.target_l0 <= self.d_sae:
            raise ConfigError(f"target_l0 is {self.target_l0:g}; {self.d_sae} latents have an L0 between 0 and {self.d_sae}.")
        if self.l0_weight is not None and self.l0_weight < 0:
            raise ConfigError(f"l0_weight is {self.l0_weight:g}; a negative penalty would reward firing. Give 0 or more.")
        if self.bandwidth <= 0:
            raise ConfigError(f"bandwidth is {self.bandwidth:g}; a window must be wider than 0 or no threshold learns.")
        if self.threshold_rate < 0 or self.start_l0 < 1 or not 0 <= self.anneal <= 1:
            raise ConfigError("threshold_rate must be at least 0, start_l0 at least 1, and anneal between 0 and 1.")


class Gate(torch.autograd.Function):
    """(pre, threshold) -> 1 where pre > threshold. Only the threshold has a gradient: -1/bandwidth inside the window."""

    @staticmethod
    def forward(ctx, pre: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward(pre, threshold)
        ctx.bandwidth = bandwidth
        return (pre > threshold).to(pre.dtype)

    @staticmethod
    def backward(ctx, grad: Tensor):
        pre, threshold = ctx.saved_tensors
        inside = in_window(pre, threshold, ctx.bandwidth)
        return None, -(grad * inside).sum(0) / ctx.bandwidth, None


class Jump(torch.autograd.Function):
    """(pre, threshold) -> pre where pre > threshold, else 0. The threshold's gradient is -threshold/bandwidth in the window."""

    @staticmethod
    def forward(ctx, pre: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward(pre, threshold)
        ctx.bandwidth = bandwidth
        return pre * (pre > threshold)

    @staticmethod
    def backward(ctx, grad: Tensor):
        pre, threshold = ctx.saved_tensors
        inside = in_window(pre, threshold, ctx.bandwidth)
        return grad * (pre > threshold), -(grad * inside).sum(0) * threshold / ctx.bandwidth, None


def in_window(pre: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
    """Where a pre-activation lies within bandwidth / 2 of its threshold, on either side."""
    return (pre - threshold).abs() < bandwidth / 2


class JumpReLUSAE(SAE):
    """The five arrays of a JumpReLU dictionary, and the weight of the L0 penalty while it is trained."""

    kind = "jumprelu"
    config: JumpReLUConfig

    def __init__(self, config: JumpReLUConfig, site: str = ""):
        super().__init__(config, site)
        self.threshold = nn.Parameter(torch.zeros(config.d_sae))
        self.l0_weight, self.base_weight, self.mean_l0, self.progress = 0.0, 0.01 / config.target_l0, 0.0, 0.0
        self.rates = {"threshold": config.threshold_rate}

    def encode(self, x: Tensor) -> Tensor:
        pre = self.pre_activations(x)
        return torch.relu(pre) * (pre > self.threshold)

    def losses(self, x: Acts) -> dict[str, Scalar]:
        """Squared error per token, and the present weight times L0."""
        pre = self.pre_activations(x)
        latents = Jump.apply(pre, self.threshold, self.config.bandwidth)
        l0 = Gate.apply(pre, self.threshold, self.config.bandwidth).sum(1).mean()
        return {"error": (self.decode(latents) - x).square().sum(1).mean(), "sparsity": self.l0_weight * l0}

    @torch.no_grad()
    def initialise(self, sample: Acts, seed: int = 0) -> None:
        """Unit decoder rows in random directions, a tied encoder, and thresholds at which each latent fires equally often."""
        c = self.config
        generator = torch.Generator().manual_seed(seed)
        rows = torch.randn(c.d_sae, c.d_in, generator=generator).to(self.W_dec)
        self.W_dec.copy_(rows / rows.norm(dim=1, keepdim=True))
        self.W_enc.copy_(self.W_dec.T)
        share = min(0.5, c.start_l0 * c.target_l0 / c.d_sae)
        kth = max(1, round(share * len(sample)))
        for start in range(0, c.d_sae, 1024):  # a slice of latents at a time: the sample times all latents may be large
            pre = sample @ self.W_enc[:, start : start + 1024]
            self.threshold[start : start + 1024] = pre.topk(kth, dim=0).values[-1].clamp_min(c.bandwidth / 2)

    @torch.no_grad()
    def before_step(self) -> None:
        """With unit rows, drop the part of the gradient that would only lengthen them (P33)."""
        if self.config.decoder == "unit" and self.W_dec.grad is not None:
            along = (self.W_dec.grad * self.W_dec).sum(1, keepdim=True)
            self.W_dec.grad.sub_(along * self.W_dec)

    @torch.no_grad()
    def after_step(self, l0: float, progress: float) -> None:
        """Restore unit rows and positive thresholds, and move the weight of the penalty."""
        if self.config.decoder == "unit":
            self.W_dec.div_(self.W_dec.norm(dim=1, keepdim=True))
        self.threshold.clamp_min_(0.0)
        self._control(l0, progress)

    def _control(self, l0: float, progress: float) -> None:
        """Set the weight of the penalty for the next step.

        Towards a target, the weight is controlled: `base_weight` grows while the running mean of L0 lies above the
        target of the moment and falls while below, and the weight answers at once too. That target falls
        geometrically from start_l0 times the final one. A fixed weight rises linearly.
        """
        c, done = self.config, progress - self.progress
        self.progress = progress
        self.mean_l0 = l0 if self.mean_l0 == 0.0 else 0.9 * self.mean_l0 + 0.1 * l0
        annealed = min(1.0, progress / c.anneal) if c.anneal else 1.0
        if c.l0_weight is not None:
            self.l0_weight = c.l0_weight * annealed
            return
        target = c.target_l0 * c.start_l0 ** (1.0 - annealed)
        off = max(-1.0, min(1.0, math.log(max(self.mean_l0, 1e-3) / target)))
        usual = 0.1 / c.target_l0  # a tenth of the variance, were it spread over the latents that fire
        gain = max(0.003, min(0.1, GAIN * done))
        self.base_weight = max(1e-3 * usual, min(1e3 * usual, self.base_weight * math.exp(gain * off)))
        self.l0_weight = self.base_weight * math.exp(off)

    def training_state(self) -> dict[str, float]:
        return {name: getattr(self, name) for name in ("l0_weight", "base_weight", "mean_l0", "progress")}

    def load_training_state(self, state: dict[str, float]) -> None:
        for name, value in state.items():
            setattr(self, name, value)

    def watched(self) -> dict[str, float]:
        return {"l0_weight": self.l0_weight, "threshold": self.threshold.detach().median().item()}

    @torch.no_grad()
    def fold(self, mean: Tensor, scale: float) -> None:
        super().fold(mean, scale)
        self.threshold.mul_(scale)

    @torch.no_grad()
    def unit_decoder(self) -> None:
        self.threshold.mul_(self.W_dec.norm(dim=1).clamp_min(1e-12))
        super().unit_decoder()

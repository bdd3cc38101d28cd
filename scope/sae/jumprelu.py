"""JumpReLU: a latent is its pre-activation where that exceeds the latent's own threshold, and zero elsewhere.

The threshold learns through a straight-through estimator: of the step at the threshold, a rectangle of width `bandwidth` is
taken for the derivative, on the pre-activation and on both sides alike.

Source: Rajamanoharan et al. 2024, arXiv:2407.14435; the recipe at scale, arXiv:2408.05147.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from scope.errors import ConfigError
from scope.sae.base import SAE, rows_at_once
from scope.sae.config import SAEConfig, refuse_start_norm
from scope.sae.revival import Revival, Start
from scope.shapes import Acts, Scalar

GAIN = 20.0
"""How fast the weight of the L0 penalty follows its target: e-folds per run and e-fold of L0 away from it."""

_STATE = ("l0_weight", "base_weight", "mean_l0", "progress", "centre", "lead")
_BANDWIDTH = 1.1
_START_SHARE, _START_MOST = 0.04, 8.0  # chosen on worlds that are not those of the README's table
_SMALLEST = 1e-12  # threshold, where its logarithm is taken


@dataclass(frozen=True, kw_only=True)
class JumpReLUConfig(SAEConfig):
    """A JumpReLU dictionary. Pre-activations are in units in which activations have a mean square norm of 1."""

    target_l0: float = 32.0
    """Latents meant to fire per token. The weight of the L0 penalty is moved during training until this is so."""

    l0_weight: float | None = None
    """A fixed weight of the penalty (Gemma Scope's lambda), warmed up linearly, instead of one that is moved."""

    penalty: Literal["l0", "quadratic"] = "l0"
    """What the weight is multiplied with: latents per token; or their squared distance from target_l0, token by token,
    times 2 / target_l0 (Gemma Scope 2)."""

    frequency_scale: float | None = None
    """Share of tokens beyond which firing becomes dear: adds sum(p ** 2) / frequency_scale over the latents' frequencies p
    to the L0 before the weight, against latents that always fire. None adds nothing; 0.1 is mild."""

    bandwidth: float | None = None
    """Width of the window around a threshold that gives it gradient; None takes 1.1 / sqrt(d_in), about the spread that
    pre-activations have by chance."""

    threshold_form: Literal["direct", "log"] = "direct"
    """What Adam moves: the threshold, kept at 0 or more, or its logarithm, which is positive by itself but crosses orders
    of magnitude slowly."""

    start_threshold: float | None = None
    """All thresholds at the start; None measures each so that start_l0 holds."""

    threshold_rate: float = 8.0
    """Learning rate of the thresholds as a multiple of the weights'."""

    start_l0: float | None = None
    """Latents that fire per token at the start, as a multiple of the target; it falls to the target in the first part
    of the run. None takes 4 % of all latents, but 8 times the target at most and the target at least."""

    anneal: float = 0.5
    """Share of the run over which the number of latents per token falls to its target (or a fixed l0_weight rises)."""

    decoder: Literal["unit", "free"] = "unit"
    """Decoder rows kept at norm 1 while training, or free and made unit at the end."""

    start_norm: float = 1.0
    """Norm of the decoder's rows, and of the encoder's, at the start. Rows that are free and start small turn faster."""

    revive_after: int | None = 50_000
    """Tokens of silence after which a latent starts anew, on a token that is badly reconstructed, in the first part of the run.
    None leaves it dead."""

    def __post_init__(self):
        super().__post_init__()
        if self.revive_after is not None and self.revive_after < 1:
            raise ConfigError(f"revive_after is {self.revive_after}; give a number of tokens, or None to leave latents dead.")
        if not 0 < self.target_l0 <= self.d_sae:
            raise ConfigError(f"target_l0 is {self.target_l0:g}; {self.d_sae} latents have an L0 between 0 and {self.d_sae}.")
        if self.l0_weight is not None and self.l0_weight < 0:
            raise ConfigError(f"l0_weight is {self.l0_weight:g}; a negative penalty would reward firing. Give 0 or more.")
        if self.bandwidth is not None and self.bandwidth <= 0:
            raise ConfigError(f"bandwidth is {self.bandwidth:g}; a window must be wider than 0 or no threshold learns.")
        if self.threshold_rate < 0 or (self.start_l0 is not None and self.start_l0 < 1) or not 0 <= self.anneal <= 1:
            raise ConfigError("threshold_rate must be at least 0, start_l0 at least 1, and anneal between 0 and 1.")
        if self.frequency_scale is not None and not self.frequency_scale > 0:
            raise ConfigError(f"frequency_scale is {self.frequency_scale:g}; give a share of tokens above 0, or leave it out.")
        if self.start_threshold is not None and not self.start_threshold > 0:
            raise ConfigError(f"start_threshold is {self.start_threshold:g}; a threshold must start above 0 to learn.")
        refuse_start_norm(self.start_norm, self.decoder)


def usual_start(target_l0: float, d_sae: int) -> float:
    """L0 at the start as a multiple of its target. While many latents fire, a feature that is there only within another finds
    one of its own; where few do from the start, one latent learns both together (absorption)."""
    return max(1.0, min(_START_MOST, _START_SHARE * d_sae / target_l0))


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
        self.bandwidth = _BANDWIDTH / config.d_in**0.5 if config.bandwidth is None else config.bandwidth
        self.start_l0 = usual_start(config.target_l0, config.d_sae) if config.start_l0 is None else config.start_l0
        self.l0_weight, self.base_weight, self.mean_l0, self.progress = 0.0, 0.01 / config.target_l0, 0.0, 0.0
        self.centre = config.target_l0
        self.lead = 0.0  # of the quadratic's centre on the target, as a share of it
        self.revival = Revival(config.d_sae, config.revive_after) if config.revive_after is not None else None
        self.start: Start | None = None
        self.usual_share = config.target_l0 / config.d_sae  # of tokens, on which a latent fires in the end
        self.rates = {"threshold": config.threshold_rate}

    def encode(self, x: Tensor) -> Tensor:
        pre = self.pre_activations(x)
        return torch.relu(pre) * (pre > self.threshold)

    def losses(self, x: Acts) -> dict[str, Scalar]:
        """Squared error per token, the weighted penalty on L0 and, if asked for, on frequencies."""
        pre = self.pre_activations(x)
        latents = Jump.apply(pre, self.threshold, self.bandwidth)
        fires = Gate.apply(pre, self.threshold, self.bandwidth)
        return self.errors(latents, x) | self.penalties(fires.sum(1), fires.mean(0))

    def penalties(self, l0: Float[Tensor, " tok"], frequency: Float[Tensor, " d_sae"]) -> dict[str, Scalar]:
        """The terms that are paid for firing, from the L0 of each token and the share of tokens on which each latent fires."""
        c = self.config
        paid = l0 if c.penalty == "l0" else (2 / c.target_l0) * (l0 - self.centre).square()
        terms = {"sparsity": self.l0_weight * paid.mean()}
        if c.frequency_scale is not None:
            terms["frequency"] = self.l0_weight / c.frequency_scale * frequency.square().sum()
        return terms

    def price(self, l0: Float[Tensor, " tok"]) -> Tensor | float:
        """What one more latent on a token adds to its "sparsity": the derivative, one for each token or one for all."""
        c = self.config
        return self.l0_weight if c.penalty == "l0" else self.l0_weight * (4 / c.target_l0) * (l0 - self.centre)

    def surcharge(self, frequency: Float[Tensor, " d_sae"]) -> Tensor | float:
        """What one more token adds to a latent's share of "frequency", times the number of tokens: again the derivative."""
        scale = self.config.frequency_scale
        return 0.0 if scale is None else 2 * self.l0_weight / scale * frequency

    @torch.no_grad()
    def initialise(self, sample: Acts, seed: int = 0) -> None:
        """Decoder rows in random directions, a tied encoder, and thresholds at which each latent fires equally often."""
        c = self.config
        generator = torch.Generator().manual_seed(seed)
        rows = torch.randn(c.d_sae, c.d_in, generator=generator).to(self.W_dec)
        self.W_dec.copy_(c.start_norm * rows / rows.norm(dim=1, keepdim=True))
        self.W_enc.copy_(self.W_dec.T)
        if c.start_threshold is not None:
            self.threshold.fill_(c.start_threshold)
            return
        share = min(0.5, self.start_l0 * c.target_l0 / c.d_sae)
        kth = max(1, round(share * len(sample)))
        for start in range(0, c.d_sae, 1024):  # a slice of latents at a time: the sample times all latents may be large
            pre = sample @ self.W_enc[:, start : start + 1024]
            self.threshold[start : start + 1024] = pre.topk(kth, dim=0).values[-1].clamp_min(self.bandwidth / 2)

    @torch.no_grad()
    def before_step(self) -> None:
        """With unit rows, drop the part of the gradient that would only lengthen them (P33). Where Adam is to move the
        thresholds' logarithms, the parameter holds these until `after_step`."""
        if self.config.decoder == "unit" and self.W_dec.grad is not None:
            n = rows_at_once(self.W_dec)
            for row, gradient in zip(self.W_dec.split(n), self.W_dec.grad.split(n), strict=True):
                gradient.addcmul_(row, (gradient * row).sum(1, keepdim=True), value=-1.0)
        if self.config.threshold_form == "log" and self.threshold.grad is not None:
            self.threshold.grad.mul_(self.threshold)
            self.threshold.clamp_min_(_SMALLEST).log_()

    @torch.no_grad()
    def after_step(self, l0: float, progress: float) -> None:
        """Restore unit rows and positive thresholds, and move the weight of the penalty."""
        if self.config.decoder == "unit":
            for row in self.W_dec.split(rows_at_once(self.W_dec)):
                row.div_(row.norm(dim=1, keepdim=True))
        if self.config.threshold_form == "log" and self.threshold.grad is not None:
            self.threshold.exp_()
        self.threshold.clamp_min_(0.0)
        if self.revival and self.start:
            self.revival.start_anew(self.start, self.W_enc, self.b_enc, self.W_dec, self.threshold)
            self.start = None
        self._control(l0, progress)

    def observe(self, x: Acts, surplus: Acts, fired: Tensor) -> None:
        """Silent latents may start anew after the step."""
        if self.revival is not None:
            self.start = self.revival.observe(x, surplus, fired, self.usual_share, self.progress)

    def _control(self, l0: float, progress: float) -> None:
        """Set the weight of the penalty for the next step.

        Towards a target, the weight is controlled: `base_weight` grows while the running mean of L0 lies above the
        target of the moment and falls while below, and the weight answers at once too. That target falls
        geometrically from start_l0 times the final one. The quadratic penalty pulls by itself, to a little above its
        centre, so there the centre is moved instead. A fixed weight rises linearly.
        """
        c, done = self.config, progress - self.progress
        self.progress = progress
        self.mean_l0 = l0 if self.mean_l0 == 0.0 else 0.9 * self.mean_l0 + 0.1 * l0
        annealed = min(1.0, progress / c.anneal) if c.anneal else 1.0
        if c.l0_weight is not None:
            self.l0_weight = c.l0_weight * annealed
            return
        target = c.target_l0 * self.start_l0 ** (1.0 - annealed)
        off = max(-1.0, min(1.0, math.log(max(self.mean_l0, 1e-3) / target)))
        usual = 0.1 / c.target_l0  # a tenth of the variance, were it spread over the latents that fire
        gain = max(0.003, min(0.1, GAIN * done))
        if c.penalty == "quadratic":
            self.lead = max(-10.0, min(1.0, self.lead - gain * off))
            self.centre, self.l0_weight = target * (1.0 + self.lead), usual
            return
        self.base_weight = max(1e-3 * usual, min(1e3 * usual, self.base_weight * math.exp(gain * off)))
        self.l0_weight = self.base_weight * math.exp(off)

    def training_state(self) -> dict[str, Any]:
        revival = {"revival": self.revival.state()} if self.revival else {}
        return {name: getattr(self, name) for name in _STATE} | revival

    def load_training_state(self, state: dict[str, Any]) -> None:
        for name in _STATE:
            setattr(self, name, state[name])
        if self.revival:
            self.revival.load_state(state["revival"])

    def watched(self) -> dict[str, float]:
        centre = {"l0_centre": self.centre} if self.config.penalty == "quadratic" else {}
        revived = {"revived": float(self.revival.started)} if self.revival else {}
        return {"l0_weight": self.l0_weight, **centre, "threshold": self.threshold.detach().median().item(), **revived}

    @torch.no_grad()
    def fold(self, mean: Tensor, scale: float) -> None:
        super().fold(mean, scale)
        self.threshold.mul_(scale)

    @torch.no_grad()
    def unit_decoder(self) -> None:
        self.threshold.mul_(self.W_dec.norm(dim=1).clamp_min(1e-12))
        super().unit_decoder()

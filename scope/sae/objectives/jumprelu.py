"""Training of JumpReLU SAEs: squared error and a weighted penalty on L0, with thresholds that learn.

The threshold learns through a straight-through estimator: of the step at the threshold, a rectangle of width `bandwidth` is
taken for the derivative, on the pre-activation and on both sides alike.

Source: Rajamanoharan et al. 2024, arXiv:2407.14435; the recipe at scale, arXiv:2408.05147.
"""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from scope.sae.base import SAE, rows_at_once
from scope.sae.configs.jumprelu import JumpReLUConfig
from scope.sae.engines.base import Engine
from scope.sae.engines.jumprelu import JumpReLUEngine, in_window
from scope.sae.jumprelu import JumpReLUSAE
from scope.sae.objectives.base import Objective, Processes, kth_pre_activation
from scope.sae.objectives.l0_control import L0Control
from scope.sae.objectives.revival import Pool, Revival, Start
from scope.shapes import Acts, Scalar

_BANDWIDTH = 1.1
_START_SHARE, _START_MOST = 0.04, 8.0  # chosen on worlds that are not those of the README's table
_SMALLEST = 1e-12  # threshold, where its logarithm is taken
_STATE = {"weight": "l0_weight", "base": "base_weight"}  # names of L0Control -> names in checkpoints


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


class JumpReLUObjective(Objective):
    """The penalty's weight is moved until `target_l0` latents fire per token; silent latents start anew."""

    sae: JumpReLUSAE
    config: JumpReLUConfig
    sums_over_latents = ("frequency",)

    def __init__(self, sae: JumpReLUSAE):
        super().__init__(sae)
        c = sae.config
        self.bandwidth = _BANDWIDTH / c.d_in**0.5 if c.bandwidth is None else c.bandwidth
        self.start_l0 = usual_start(c.target_l0, c.d_sae) if c.start_l0 is None else c.start_l0
        usual = 0.1 / c.target_l0  # a tenth of the variance, were it spread over the latents that fire
        self.control = L0Control(c.target_l0, usual, self.start_l0, c.anneal, c.l0_weight, c.penalty == "quadratic")
        self.control.base = 0.01 / c.target_l0
        self.revival = Revival(c.d_sae, c.revive_after) if c.revive_after is not None else None
        self.fresh: Start | None = None
        self.usual_share = c.target_l0 / c.d_sae  # of tokens, on which a latent fires in the end
        self.rates = {"threshold": c.threshold_rate}
        self.shares_latents = not c.nested
        self.shares_batch = not (c.nested and c.frequency_scale)

    def over(self, processes: Processes, sae: SAE) -> "JumpReLUObjective":
        mine = super().over(processes, sae)
        if self.revival:
            mine.revival = Revival(sae.d_sae, self.revival.after, Pool.of(processes, self.sae.d_sae))
        return mine

    def engine(self) -> Engine:
        """By hand, but for nested widths, whose gradients only autograd knows."""
        if self.config.nested:
            return super().engine()
        processes = self.processes
        if processes is None:
            return JumpReLUEngine(self)
        if processes.mode == "width":
            return JumpReLUEngine(self, reduce=processes.sum)
        return JumpReLUEngine(self, average=processes.mean)

    def losses(self, x: Acts) -> dict[str, Scalar]:
        """Squared error per token, the weighted penalty on L0 and, if asked for, on frequencies."""
        pre = self.sae.pre_activations(x)
        latents = Jump.apply(pre, self.sae.threshold, self.bandwidth)
        fires = Gate.apply(pre, self.sae.threshold, self.bandwidth)
        return self.errors(latents, x) | self.penalties(fires.sum(1), fires.mean(0))

    def penalties(self, l0: Float[Tensor, " tok"], frequency: Float[Tensor, " d_sae"]) -> dict[str, Scalar]:
        """The terms that are paid for firing, from the L0 of each token and the share of tokens on which each latent fires."""
        c, weight = self.config, self.control.weight
        paid = l0 if c.penalty == "l0" else (2 / c.target_l0) * (l0 - self.control.centre).square()
        terms = {"sparsity": weight * paid.mean()}
        if c.frequency_scale is not None:
            terms["frequency"] = weight / c.frequency_scale * frequency.square().sum()
        return terms

    def price(self, l0: Float[Tensor, " tok"]) -> Tensor | float:
        """What one more latent on a token adds to its "sparsity": the derivative, one for each token or one for all."""
        c, weight = self.config, self.control.weight
        return weight if c.penalty == "l0" else weight * (4 / c.target_l0) * (l0 - self.control.centre)

    def surcharge(self, frequency: Float[Tensor, " d_sae"]) -> Tensor | float:
        """What one more token adds to a latent's share of "frequency", times the number of tokens: again the derivative."""
        scale = self.config.frequency_scale
        return 0.0 if scale is None else 2 * self.control.weight / scale * frequency

    @torch.no_grad()
    def start(self, sample: Acts, seed: int = 0) -> None:
        """Decoder rows in random directions, a tied encoder, and thresholds at which each latent fires equally often."""
        sae, c = self.sae, self.config
        generator = torch.Generator().manual_seed(seed)
        rows = torch.randn(c.d_sae, c.d_in, generator=generator).to(sae.W_dec)
        sae.W_dec.copy_(c.start_norm * rows / rows.norm(dim=1, keepdim=True))
        sae.W_enc.copy_(sae.W_dec.T)
        if c.start_threshold is not None:
            sae.threshold.fill_(c.start_threshold)
            return
        share = self.start_l0 * c.target_l0 / c.d_sae
        sae.threshold.copy_(kth_pre_activation(sae, sample, share).clamp_min(self.bandwidth / 2))

    @torch.no_grad()
    def before_step(self) -> None:
        """With unit rows, drop the part of the gradient that would only lengthen them (P33). Where Adam is to move the
        thresholds' logarithms, the parameter holds these until `after_step`."""
        W_dec, threshold = self.sae.W_dec, self.sae.threshold
        if self.config.decoder == "unit" and W_dec.grad is not None:
            n = rows_at_once(W_dec)
            for row, gradient in zip(W_dec.split(n), W_dec.grad.split(n), strict=True):
                gradient.addcmul_(row, (gradient * row).sum(1, keepdim=True), value=-1.0)
        if self.config.threshold_form == "log" and threshold.grad is not None:
            threshold.grad.mul_(threshold)
            threshold.clamp_min_(_SMALLEST).log_()

    @torch.no_grad()
    def after_step(self, l0: float, progress: float) -> None:
        """Restore unit rows and positive thresholds, start silent latents anew, and move the weight of the penalty."""
        sae = self.sae
        if self.config.decoder == "unit":
            for row in sae.W_dec.split(rows_at_once(sae.W_dec)):
                row.div_(row.norm(dim=1, keepdim=True))
        if self.config.threshold_form == "log" and sae.threshold.grad is not None:
            sae.threshold.exp_()
        sae.threshold.clamp_min_(0.0)
        if self.revival and self.fresh:
            self.revival.start_anew(self.fresh, sae.W_enc, sae.b_enc, sae.W_dec, sae.threshold)
            self.fresh = None
        self.control.update(l0, progress)

    def observe(self, x: Acts, surplus: Acts, fired: Tensor) -> None:
        """Choose the silent latents that start anew after the step."""
        if self.revival is not None:
            self.fresh = self.revival.observe(x, surplus, fired, self.usual_share, self.control.progress)

    def state(self) -> dict[str, Any]:
        revival = {"revival": self.revival.state()} if self.revival else {}
        return {_STATE.get(name, name): value for name, value in self.control.state().items()} | revival

    def load_state(self, state: dict[str, Any]) -> None:
        self.control.load_state(state | {name: state[stored] for name, stored in _STATE.items()})
        if self.revival:
            self.revival.load_state(state["revival"])

    def map_by_latent(self, state: dict[str, Any], change: Callable[[Tensor], Any]) -> dict[str, Any]:
        if "revival" not in state:
            return state
        return state | {"revival": state["revival"] | {"silent": change(state["revival"]["silent"])}}

    def watched(self) -> dict[str, float]:
        centre = {"l0_centre": self.control.centre} if self.config.penalty == "quadratic" else {}
        revived = {"revived": float(self.revival.started)} if self.revival else {}
        threshold = self.sae.threshold.detach().median().item()
        return {"l0_weight": self.control.weight, **centre, "threshold": threshold, **revived}

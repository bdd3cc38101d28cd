"""Settings of a JumpReLU SAE and of its training."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from scope.errors import ConfigError
from scope.sae.configs.base import SAEConfig, refuse_start_norm


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

    UNSAID: ClassVar[dict[str, Any]] = {"revive_after": None}

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

"""Settings of a Gated SAE and of its training."""

from dataclasses import dataclass

from scope.errors import ConfigError
from scope.sae.configs.base import SAEConfig


@dataclass(frozen=True, kw_only=True)
class GatedConfig(SAEConfig):
    """A Gated dictionary."""

    target_l0: float = 32.0
    """Latents meant to fire per token. The weight of the penalty is moved during training until this is so."""

    l1_weight: float | None = None
    """A fixed weight of the penalty on the gates, warmed up linearly, instead of a target."""

    start_l0: float = 4.0
    """Latents that fire per token at the start, as a multiple of the target."""

    anneal: float = 0.3
    """Share of the run over which the number of latents per token falls to its target (or a fixed l1_weight rises)."""

    def __post_init__(self):
        super().__post_init__()
        if not 0 < self.target_l0 <= self.d_sae:
            raise ConfigError(f"target_l0 is {self.target_l0:g}; {self.d_sae} latents have an L0 between 0 and {self.d_sae}.")
        if self.l1_weight is not None and self.l1_weight < 0:
            raise ConfigError(f"l1_weight is {self.l1_weight:g}; a negative penalty would reward firing. Give 0 or more.")
        if self.start_l0 < 1 or not 0 <= self.anneal <= 1:
            raise ConfigError("start_l0 must be at least 1, and anneal between 0 and 1.")

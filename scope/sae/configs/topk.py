"""Settings of a TopK or BatchTopK SAE and of its training."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from scope.errors import ConfigError
from scope.sae.configs.base import SAEConfig, refuse_start_norm


@dataclass(frozen=True, kw_only=True)
class TopKConfig(SAEConfig):
    """A TopK dictionary."""

    k: int = 32
    """Latents that fire on each token, at most (fewer where fewer are positive)."""

    aux_weight: float = 1.0
    """Weight of the auxiliary loss, in which silent latents reconstruct the error of the others; 0 leaves them dead. The
    paper's 1/32 is for runs that are far longer."""

    aux_k: int = 0
    """Silent latents that take part on each token; 0 takes half of d_in."""

    revive_after: int = 100_000
    """Tokens without firing after which a latent takes part in the auxiliary loss."""

    decoder: Literal["free", "unit"] = "free"
    """Decoder rows of any norm while training, made unit at the end; or kept at norm 1."""

    start_norm: float | None = None
    """Norm of the decoder's rows, and of the encoder's, at the start; None takes 0.1 where they are free."""

    UNSAID: ClassVar[dict[str, Any]] = {"decoder": "unit", "start_norm": 1.0}

    def __post_init__(self):
        super().__post_init__()
        if not 0 < self.k <= self.d_sae:
            raise ConfigError(f"k is {self.k:g}; of {self.d_sae} latents, more than 0 and at most {self.d_sae} can fire.")
        if self.aux_weight < 0 or self.aux_k < 0 or self.revive_after < 1:
            raise ConfigError("aux_weight and aux_k must not be negative, and revive_after must be at least 1.")
        refuse_start_norm(self.start_norm, self.decoder)


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

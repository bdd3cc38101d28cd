"""What every kind of dictionary must be told."""

from dataclasses import dataclass

from scope.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class SAEConfig:
    """Sizes of a dictionary. A kind adds its own fields; each is also a flag of `scope train`."""

    d_sae: int = 2048
    """Latents in the dictionary."""

    d_in: int = 0
    """Width of the activations that are read; 0 takes it from the recording."""

    def __post_init__(self):
        if self.d_sae < 1:
            raise ConfigError(f"d_sae is {self.d_sae}; a dictionary needs at least one latent.")
        if self.d_in < 0:
            raise ConfigError(f"d_in is {self.d_in}; a width cannot be negative.")

"""Settings of a transcoder."""

from dataclasses import dataclass

from scope.errors import ConfigError
from scope.sae.configs.base import SAEConfig


@dataclass(frozen=True, kw_only=True)
class TranscoderConfig(SAEConfig):
    """A transcoder from `site` to `site_out`."""

    d_out: int = 0
    """Width of what is predicted; 0 is d_in."""

    site_out: str = ""
    """Site that is predicted, e.g. blocks.12.hook_mlp_out."""

    k: int = 0
    """Latents that fire on each token, the greatest; 0 goes by thresholds."""

    skip: bool = False
    """Whether x @ W_skip^T is added to what the latents predict."""

    def __post_init__(self):
        super().__post_init__()
        if self.d_out < 0 or not 0 <= self.k <= self.d_sae:
            raise ConfigError(f"d_out is {self.d_out} and k is {self.k}; with {self.d_sae} latents neither can be.")

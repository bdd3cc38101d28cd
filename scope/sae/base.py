"""A dictionary: what encodes an activation into latents and decodes latents into an activation.

`pre = x @ W_enc + b_enc`, `x_hat = latents @ W_dec + b_dec`. Nothing is subtracted from x before encoding and nothing is
scaled outside, so a dictionary means the same to everyone who reads its arrays. How it is trained is in `objectives/`.
"""

import copy
import warnings
from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from scope.errors import ConfigError
from scope.sae.configs.base import SAEConfig
from scope.shapes import Latents

_NO_LENGTH = 1e-12
_CACHED = 2 * 2**20


class ZeroRowsWarning(UserWarning):
    """Latents without a direction: their decoder rows are zero, and cannot be given norm 1."""


class SAE(nn.Module, ABC):
    """W_enc [d_in d_sae], b_enc [d_sae], W_dec [d_sae d_in], b_dec [d_in]; a kind adds the rest."""

    kind: str
    autoencodes = True
    """Whether it reconstructs what it reads. A transcoder predicts another site, so it can stand in for nothing at its own."""

    latent_dims: ClassVar[dict[str, int]] = {"W_enc": 1, "b_enc": 0, "W_dec": 0}
    """Parameter -> its dimension over the latents, for those that have one."""

    def __init__(self, config: SAEConfig, site: str = ""):
        if config.d_in < 1:
            raise ConfigError("d_in is 0; a dictionary needs the width of the activations that it reads.")
        super().__init__()
        self.config, self.site = config, site
        self.provenance: dict[str, Any] = {}
        self.W_enc = nn.Parameter(torch.empty(config.d_sae, config.d_in).T)  # a latent's weights lie side by side in memory
        self.b_enc = nn.Parameter(torch.zeros(config.d_sae))
        self.W_dec = nn.Parameter(torch.empty(config.d_sae, config.d_in))
        self.b_dec = nn.Parameter(torch.zeros(config.d_in))

    @property
    def d_in(self) -> int:
        return self.config.d_in

    @property
    def d_sae(self) -> int:
        return self.config.d_sae

    @property
    def reads(self) -> dict[str, int]:
        """Site -> width of the activations that `encode` takes."""
        return {self.site: self.d_in}

    @property
    def writes(self) -> dict[str, int]:
        """Site -> width of the activations that `decode` gives."""
        return self.reads

    def part(self, latents: slice) -> "SAE":
        """A dictionary of some of the latents. What has no dimension over the latents is copied whole."""
        part = copy.copy(self)
        part._parameters = {}
        for name, p in self.named_parameters():
            dim = self.latent_dims.get(name)
            data = p.data if dim is None else p.data.narrow(dim, latents.start, latents.stop - latents.start)
            part._parameters[name] = nn.Parameter(data.clone(), p.requires_grad)
        part.config = copy.copy(self.config)
        # not `replace`, which would check settings that are meant for all latents, as target_l0
        object.__setattr__(part.config, "d_sae", latents.stop - latents.start)
        return part

    def pre_activations(self, x: Tensor) -> Tensor:
        """[... d_in] -> [... d_sae], before the threshold."""
        return x @ self.W_enc + self.b_enc

    @abstractmethod
    def encode(self, x: Tensor) -> Tensor:
        """[... d_in] -> latents [... d_sae], zero where a latent does not fire."""

    def decode(self, latents: Tensor) -> Tensor:
        """[... d_sae] -> x_hat [... d_in]."""
        return latents @ self.W_dec + self.b_dec

    def forward(self, x: Tensor) -> Tensor:
        return self.decode(self.encode(x))

    @torch.no_grad()
    def fold(self, mean: Tensor, scale: float) -> None:
        """Make a dictionary of (x - mean) / scale into the same dictionary of x. Latents keep their meaning, in units of x.

        A kind with thresholds multiplies them by `scale` too.
        """
        self.b_enc.mul_(scale).sub_(mean @ self.W_enc)
        self.b_dec.mul_(scale).add_(mean)

    @torch.no_grad()
    def unit_decoder(self) -> None:
        """Give every decoder row norm 1 without changing what is reconstructed; a kind with thresholds scales them too.

        Rows of zeros have no direction and stay so, with a ZeroRowsWarning.
        """
        norms = self.W_dec.norm(dim=1)
        lost = int((norms < _NO_LENGTH).sum())
        if lost:
            warnings.warn(
                f"{lost:,} of {self.d_sae:,} latents have decoder rows of zeros: whatever they fire on, they add nothing.",
                ZeroRowsWarning,
                stacklevel=2,
            )
        norms = norms.clamp_min(_NO_LENGTH)
        self.W_dec.div_(norms[:, None])
        self.W_enc.mul_(norms)
        self.b_enc.mul_(norms)


def rows_at_once(matrix: Float[Tensor, "rows width"]) -> int:
    """Rows of a matrix for which what is computed from them still lies in the processor's cache when it is read again.

    Each operation on so many is work for several threads that is worth their waiting for each other.
    """
    return max(256, _CACHED // (matrix.shape[1] * matrix.element_size()))


def firing(latents: Latents) -> tuple[Tensor, Tensor]:
    """(L0 of each token, number of tokens on which each latent fired)."""
    fired = latents > 0
    return fired.sum(1), fired.sum(0)

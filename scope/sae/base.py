"""A dictionary: what encodes an activation into latents and decodes latents into an activation.

The form is the same in training and after it: `pre = x @ W_enc + b_enc`, `x_hat = latents @ W_dec + b_dec`. Nothing
is subtracted from x before encoding and nothing is scaled outside, so a dictionary means the same to everyone who
reads its five arrays.
"""

import warnings
from abc import ABC, abstractmethod
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from scope.errors import ConfigError
from scope.sae.config import SAEConfig
from scope.shapes import Acts, Latents, Scalar

_NO_LENGTH = 1e-12
_CACHED = 2 * 2**20


class ZeroRowsWarning(UserWarning):
    """Latents without a direction: their decoder rows are zero, and cannot be given norm 1."""


class SAE(nn.Module, ABC):
    """W_enc [d_in d_sae], b_enc [d_sae], W_dec [d_sae d_in], b_dec [d_in]; a kind adds the rest and its losses."""

    kind: str
    autoencodes = True
    """Whether it reconstructs what it reads. A transcoder predicts another site, so it can stand in for nothing at its own."""

    def __init__(self, config: SAEConfig, site: str = ""):
        if config.d_in < 1:
            raise ConfigError("d_in is 0; a dictionary must be told the width of the activations that it reads.")
        super().__init__()
        self.config, self.site = config, site
        self.provenance: dict[str, Any] = {}
        self.rates: dict[str, float] = {}  # parameter -> its learning rate as a multiple of the trainer's, where not 1
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

    # What training asks of a kind.

    def initialise(self, sample: Acts, seed: int = 0) -> None:
        """Start weights, from a seed and a sample of standardised activations."""
        raise NotImplementedError(f"A dictionary of kind {self.kind} cannot be trained.")

    def losses(self, x: Acts) -> dict[str, Scalar]:
        """Named terms whose sum is trained, for standardised activations. This is the reference; an engine may be faster."""
        raise NotImplementedError(f"A dictionary of kind {self.kind} cannot be trained.")

    def errors(self, latents: Latents, x: Acts) -> dict[str, Scalar]:
        """The terms of reconstruction: squared error per token ("error") and, where widths are nested, the sum of those
        that the first latents alone leave ("nested")."""
        if not self.config.nested:
            return {"error": (self.decode(latents) - x).square().sum(1).mean()}
        ends = (0, *self.config.nested, self.d_sae)
        x_hat, found = self.b_dec, []
        for start, end in pairwise(ends):
            x_hat = x_hat + latents[:, start:end] @ self.W_dec[start:end]
            found.append((x_hat - x).square().sum(1).mean())
        return {"error": found[-1], "nested": torch.stack(found[:-1]).sum()}

    def observe(self, x: Acts, surplus: Acts, fired: Tensor) -> None:
        """Called by the engine with each batch: its activations, what their reconstruction was wrong by (x_hat - x, times any
        positive number), and on how many tokens each latent fired. A kind may revive dead latents from it."""

    def before_step(self) -> None:
        """Called when all gradients are there and before the optimiser moves the parameters."""

    def after_step(self, l0: float, progress: float) -> None:
        """Called after the optimiser; `l0` is this batch's, `progress` the share of the run that is done, 0 to 1."""

    def training_state(self) -> dict[str, Any]:
        """What the next step depends on beside parameters and optimiser: numbers and tensors, saved with every checkpoint."""
        return {}

    def load_training_state(self, state: dict[str, Any]) -> None:
        """Undo of `training_state`."""

    def watched(self) -> dict[str, float]:
        """Numbers of its own that a kind wants in every line of the log."""
        return {}

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


@torch.no_grad()
def start_tied(sae: SAE, seed: int) -> None:
    """Unit decoder rows in random directions, and an encoder that is their transpose."""
    rows = torch.randn(sae.W_dec.shape, generator=torch.Generator().manual_seed(seed)).to(sae.W_dec)
    sae.W_dec.copy_(rows / rows.norm(dim=1, keepdim=True))
    sae.W_enc.copy_(sae.W_dec.T)


@torch.no_grad()
def drop_lengthening(W_dec: nn.Parameter) -> None:
    """Take from the gradient the part along each unit row, which would only lengthen it (P33)."""
    if W_dec.grad is not None:
        W_dec.grad.sub_((W_dec.grad * W_dec).sum(1, keepdim=True) * W_dec)


@torch.no_grad()
def unit_rows(W_dec: nn.Parameter) -> None:
    W_dec.div_(W_dec.norm(dim=1, keepdim=True).clamp_min(1e-12))


def firing(latents: Latents) -> tuple[Tensor, Tensor]:
    """(L0 of each token, number of tokens on which each latent fired)."""
    fired = latents > 0
    return fired.sum(1), fired.sum(0)

"""TopK: on each token the k greatest pre-activations are the latents, where they are positive, and the others are zero.

Sparsity needs no penalty and is exact. What dies does not come back by itself, so latents that have been silent for long are
asked to reconstruct what the living ones left over (the auxiliary loss, "AuxK").

While training, decoder rows may have any norm. Latents then compete by what they add, pre-activation times norm, so that a
row's length decides nothing, and rows that start short turn far in a step at first, and less the longer they have grown. In
a short run that decides what is found. At the end the lengths go into the encoder.

Source: Gao et al. 2024, arXiv:2406.04093, appendix A, whose rows are of norm 1 throughout (`decoder` "unit").
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from scope.errors import ConfigError
from scope.sae.base import SAE, drop_lengthening, start_tied, unit_rows
from scope.sae.config import SAEConfig, refuse_start_norm
from scope.shapes import Acts, Scalar


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

    def __post_init__(self):
        super().__post_init__()
        if not 0 < self.k <= self.d_sae:
            raise ConfigError(f"k is {self.k:g}; of {self.d_sae} latents, more than 0 and at most {self.d_sae} can fire.")
        if self.aux_weight < 0 or self.aux_k < 0 or self.revive_after < 1:
            raise ConfigError("aux_weight and aux_k must not be negative, and revive_after must be at least 1.")
        refuse_start_norm(self.start_norm, self.decoder)


class TopKSAE(SAE):
    """The four arrays of a TopK dictionary, and since when each latent has been silent while it is trained."""

    kind = "topk"
    config: TopKConfig
    silent: Tensor

    def __init__(self, config: TopKConfig, site: str = ""):
        super().__init__(config, site)
        self.register_buffer("silent", torch.zeros(config.d_sae, dtype=torch.long), persistent=False)
        self.fired, self.tokens = self.silent > 0, 0
        self.free = False  # whether rows have any norm just now, and latents compete by what they add

    def encode(self, x: Tensor) -> Tensor:
        return self.compete(self.pre_activations(x))

    def choose(self, sizes: Tensor) -> Tensor:
        """Those that are kept of pre-activations, or of these times the norms of their rows."""
        values, ids = sizes.topk(self.config.k, dim=-1, sorted=False)
        return torch.zeros_like(sizes).scatter(-1, ids, torch.relu(values))

    def compete(self, pre: Tensor) -> Tensor:
        """Pre-activations -> latents, as trained."""
        if not self.free:
            return self.choose(pre)
        norms = self.norms().detach()  # what a latent is does not depend on it: it cancels, in the gradient too
        return self.choose(pre * norms) / norms

    def norms(self) -> Tensor:
        """[d_sae], of the decoder's rows."""
        return self.W_dec.norm(dim=1).clamp_min(1e-12)

    def losses(self, x: Acts) -> dict[str, Scalar]:
        """Squared error per token, nested ones, and what silent latents leave of it."""
        pre = self.pre_activations(x)
        latents = self.compete(pre)
        terms = self.errors(latents, x)
        revived = self.auxiliary(x, pre, latents)
        if revived is not None:
            terms["auxiliary"] = revived
        self.note(latents.detach())
        return terms

    def auxiliary(self, x: Acts, pre: Tensor, latents: Tensor) -> Scalar | None:
        """Squared error of the silent latents as reconstruction of the others' error, weighted; None if none is silent.

        With fewer silent latents than `aux_k` the term counts for less, in proportion.
        """
        c = self.config
        dead = (self.silent >= c.revive_after).nonzero().squeeze(1)
        if not len(dead) or not c.aux_weight:
            return None
        wanted = c.aux_k or max(1, c.d_in // 2)
        rows = self.W_dec[dead]
        norms = rows.norm(dim=1).clamp_min(1e-12) if self.free else torch.ones(len(dead)).to(pre)
        values, ids = (pre[:, dead] * norms).topk(min(wanted, len(dead)), dim=1, sorted=False)
        revived = torch.zeros(len(x), len(dead)).to(pre).scatter(1, ids, torch.relu(values))
        left = (x - self.decode(latents)).detach()
        error = ((revived / norms) @ rows - left).square().sum(1).mean()
        return c.aux_weight * min(1.0, len(dead) / wanted) * error

    def note(self, latents: Tensor) -> None:
        """Keep which latents fired on this batch until the step is taken."""
        self.fired, self.tokens = (latents > 0).any(0), len(latents)

    @torch.no_grad()
    def initialise(self, sample: Acts, seed: int = 0) -> None:
        start_tied(self, seed)
        self.free = self.config.decoder == "free"
        if self.free:
            for weights in (self.W_enc, self.W_dec):
                weights.mul_(0.1 if self.config.start_norm is None else self.config.start_norm)

    @torch.no_grad()
    def before_step(self) -> None:
        if not self.free:
            drop_lengthening(self.W_dec)

    @torch.no_grad()
    def after_step(self, l0: float, progress: float) -> None:
        """Rows that are to be unit are so again, and the count of silent tokens goes on."""
        if not self.free:
            unit_rows(self.W_dec)
        self.silent.add_(self.tokens)
        self.silent[self.fired] = 0

    def training_state(self) -> dict[str, Any]:
        return {"silent": self.silent}

    @torch.no_grad()
    def load_training_state(self, state: dict[str, Any]) -> None:
        self.silent.copy_(state["silent"])
        self.free = self.config.decoder == "free"

    def watched(self) -> dict[str, float]:
        return {"silent": (self.silent >= self.config.revive_after).float().mean().item()}

    @torch.no_grad()
    def unit_decoder(self) -> None:
        """At the end of training with free rows: exact, for the lengths were part of the competition. Of any other TopK
        nothing is changed, as scaling its latents would choose others on a token (P24)."""
        if self.free:
            super().unit_decoder()
            self.free = False

"""Scores of a reconstruction. Pure functions of tensors; every sum over tokens runs in float64.

FVU has three definitions in use, which differ by more than most dictionaries do; each is named here and reported
under its name. Norm outliers such as <bos> decide the pooled one: leave them out before you call.
"""

import math
from dataclasses import dataclass, fields

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cosine_similarity, cross_entropy

from scope.errors import ConfigError
from scope.shapes import Acts, Latents, Logits, PerToken, Scalar

OUTLIER_TIMES = 10.0
"""A token whose norm is above so many times the median counts as an outlier: FVU is given with such tokens and without."""


def fvu(x: Acts, x_hat: Acts) -> Scalar:
    """Fraction of variance unexplained, pooled: squared error over all tokens and dimensions / squared distance to the mean.

    0 is perfect, 1 is what predicting the mean would score.

    Raises:
        ConfigError: there is no variance to explain, as when x holds a single token.
    Source: Gemma Scope, arXiv:2408.05147.
    """
    return (x - x_hat).double().square().sum() / _nonzero(_centred(x).square().sum(), len(x))


def fvu_at_tokens(x: Acts, x_hat: Acts) -> PerToken:
    """Each token's squared error / the mean squared distance to the mean over all tokens: the mean of these numbers is `fvu`.

    Raises:
        ConfigError: there is no variance to explain.
    """
    return (x - x_hat).double().square().sum(1) / (_nonzero(_centred(x).square().sum(), len(x)) / len(x))


@dataclass
class FvuSums:
    """`fvu` of activations that come batch by batch. Float64 sums keep it about the mean of all of them, centred or not."""

    tokens: int = 0
    error: float = 0.0
    """Squared error over all tokens and dimensions."""

    squares: Tensor | float = 0.0
    total: Tensor | float = 0.0
    """Sum of the activations [d_in]."""

    @classmethod
    def of(cls, x: Acts, squared_error: float) -> "FvuSums":
        """The sums of one batch whose squared error, over all its tokens and dimensions, is known."""
        parts = [part.double() for part in x.detach().split(256)]  # a slice that stays in the processor's cache
        return cls(len(x), squared_error, sum(p.square().sum() for p in parts), sum(p.sum(0) for p in parts))

    def __add__(self, other: "FvuSums") -> "FvuSums":
        return FvuSums(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def value(self) -> float:
        """NaN where there is no variance to explain, as of a single token."""
        if not self.tokens:
            return math.nan
        distance = float(self.squares - self.total.square().sum() / self.tokens)
        return self.error / distance if distance > 1e-12 * float(self.squares) else math.nan


def fvu_per_token(x: Acts, x_hat: Acts) -> Scalar:
    """Mean over tokens of: the token's squared error / its own squared distance to the mean. Every token weighs the same."""
    distance = _centred(x).square().sum(1)
    _nonzero(distance.sum(), len(x))
    return ((x - x_hat).double().square().sum(1) / distance.clamp_min(1e-30)).mean()


def fvu_per_dimension(x: Acts, x_hat: Acts) -> Scalar:
    """Mean over dimensions of: the dimension's squared error / its variance. Constant dimensions are left out."""
    spread = _centred(x).square().sum(0)
    _nonzero(spread.sum(), len(x))
    kept = spread > 0
    return ((x - x_hat).double().square().sum(0)[kept] / spread[kept]).mean()


def l0(latents: Latents) -> Tensor:
    """Latents above zero, per token."""
    return (latents > 0).sum(1)


def cosine(x: Acts, x_hat: Acts) -> Scalar:
    """Mean cosine between an activation and its reconstruction."""
    return cosine_similarity(x.double(), x_hat.double(), dim=1).mean()


def norm_ratio(x: Acts, x_hat: Acts) -> Scalar:
    """Mean over tokens of the reconstruction's norm over the activation's. Below 1 is shrinkage."""
    return (x_hat.double().norm(dim=1) / x.double().norm(dim=1).clamp_min(1e-15)).mean()


def length_bias(x: Acts, x_hat: Acts) -> Scalar:
    """The factor by which reconstructions are too long, <x_hat, x_hat> / <x, x_hat>: dividing by it brings them nearest to x.

    1 is right whatever the FVU; below 1 is shrinkage; far above 1, a scale is missing or one huge token decides.
    Source: Rajamanoharan et al., arXiv:2404.16014 (relative reconstruction bias).
    """
    return x_hat.double().square().sum() / (x.double() * x_hat.double()).sum()


def kl(logits: Logits, other: Logits) -> Tensor:
    """KL(p || q) in nats at each position, p from `logits` and q from `other`.

    In blocks of positions: in float32 the logits of 2,048 tokens of Gemma 2 take 2 GB, several times over.
    """

    def of_block(p: Tensor, q: Tensor) -> Tensor:
        p, q = p.float().log_softmax(-1), q.float().log_softmax(-1)
        return (p.exp() * (p - q)).sum(-1)

    blocks = [of_block(p, q) for p, q in zip(_blocks(logits), _blocks(other), strict=True)]
    return torch.cat(blocks).view(logits.shape[:-1])


def token_losses(logits: Float[Tensor, "*place d_vocab"], tokens: Int[Tensor, "*place"]) -> Float[Tensor, "*place"]:
    """-log p(token) in nats at each position, in blocks as `kl`: `tokens` has the shape of `logits` without the vocabulary."""
    pairs = zip(_blocks(logits), tokens.flatten().split(_rows(logits)), strict=True)
    return torch.cat([cross_entropy(rows.float(), wanted, reduction="none") for rows, wanted in pairs]).view(tokens.shape)


def _rows(logits: Tensor) -> int:
    return max(1, (1 << 24) // logits.shape[-1])


def _blocks(logits: Tensor) -> tuple[Tensor, ...]:
    return logits.flatten(0, -2).split(_rows(logits))


def loss_recovered(loss: float, spliced: float, ablated: float) -> float | None:
    """(ablated - spliced) / (ablated - loss): 1 if nothing is lost, 0 if the splice is as bad as the ablation.

    None where ablation does no harm, and so nothing could be recovered. Read it beside delta loss: zero-ablation is so bad that
    almost anything recovers much of it (pitfall P39).
    """
    harm = ablated - loss
    return (ablated - spliced) / harm if harm > 0 else None


def _centred(x: Acts) -> Tensor:
    x = x.double()
    return x - x.mean(0)


def _nonzero(variance: Tensor, n: int) -> Tensor:
    if variance <= 0:
        raise ConfigError(f"All {n} tokens are equal, so there is no variance to explain.")
    return variance

"""What a reconstruction is worth. Pure functions of tensors; every sum over tokens runs in float64.

FVU has three definitions in use, which differ by more than most dictionaries do; each is named here and reported
under its name. Norm outliers such as <bos> decide the pooled one: leave them out before you call.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from scope.errors import ConfigError
from scope.shapes import Acts, Latents, Logits, Scalar


def fvu(x: Acts, x_hat: Acts) -> Scalar:
    """Fraction of variance unexplained, pooled: squared error over all tokens and dimensions / squared distance to the mean.

    0 is perfect, 1 is what predicting the mean would score.

    Raises:
        ConfigError: there is no variance to explain, as when x holds a single token.
    Source: Gemma Scope, arXiv:2408.05147.
    """
    return (x - x_hat).double().square().sum() / _nonzero(_centred(x).square().sum(), len(x))


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


def length_bias(x: Acts, x_hat: Acts) -> Scalar:
    """The factor by which reconstructions are too long, <x_hat, x_hat> / <x, x_hat>: dividing by it brings them nearest to x.

    1 is right whatever the FVU; below 1 is shrinkage; far above 1, a scale is missing or one huge token decides.
    Source: Rajamanoharan et al., arXiv:2404.16014 (relative reconstruction bias).
    """
    return x_hat.double().square().sum() / (x.double() * x_hat.double()).sum()


def kl(logits: Logits, other: Logits) -> Tensor:
    """KL(p || q) in nats at each position, p from `logits` and q from `other`."""
    p, q = logits.float().log_softmax(-1), other.float().log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1)


def loss_recovered(loss: float, spliced: float, ablated: float) -> float | None:
    """(ablated - spliced) / (ablated - loss): 1 if nothing is lost, 0 if the splice is as bad as the ablation.

    None where ablation does no harm, and so nothing could be recovered. Read it beside delta loss: zero-ablation is so bad that
    almost anything recovers much of it (pitfall P39).
    """
    harm = ablated - loss
    return (ablated - spliced) / harm if harm > 0 else None


@dataclass
class Sums:
    """The float64 sums that FVU, cosine and length bias are made of, so that they can be had over any number of tokens.

    Centred on `mean` while summing; the true mean of what was seen is taken into account at the end, so any `mean`
    near it is exact.
    """

    mean: Tensor
    n: int = 0
    sums: dict[str, Tensor] = field(default_factory=dict)
    cosines: float = 0.0
    per_token: float = 0.0

    def add(self, x: Acts, x_hat: Acts) -> None:
        d, e = x.double() - self.mean, (x - x_hat).double()
        new = {
            "x": d.sum(0),
            "xx": d.square().sum(0),
            "error": e.square().sum(0),
            "dot": (x.double() * x_hat.double()).sum(),
            "length": x_hat.double().square().sum(),
        }
        self.sums = {k: self.sums[k] + v for k, v in new.items()} if self.sums else new
        self.cosines += cosine_similarity(x.double(), x_hat.double(), dim=1).sum().item()
        self.per_token += (e.square().sum(1) / d.square().sum(1).clamp_min(1e-30)).sum().item()
        self.n += len(x)

    def result(self) -> dict[str, float | None]:
        """fvu, fvu_per_token (about `mean`), fvu_per_dimension, cosine, length_bias (None where all is zero)."""
        s = self.sums
        spread = s["xx"] - s["x"].square() / self.n
        _nonzero(spread.sum(), self.n)
        kept = spread > 0
        return {
            "fvu": (s["error"].sum() / spread.sum()).item(),
            "fvu_per_token": self.per_token / self.n,
            "fvu_per_dimension": (s["error"][kept] / spread[kept]).mean().item(),
            "cosine": self.cosines / self.n,
            "length_bias": (s["length"] / s["dot"]).item() if s["dot"] else None,
        }


def bootstrap(
    numerators: Tensor, denominators: Tensor, seed: int = 0, n: int = 1000, level: float = 0.95
) -> tuple[float, float]:
    """Percentile interval of sum(numerators) / sum(denominators), resampling the entries: one entry a context (pitfall P40).

    Tokens of one context are not independent, so contexts are what is drawn.
    """
    k = len(numerators)
    draws = torch.randint(k, (n, k), generator=torch.Generator().manual_seed(seed))
    ratios = numerators.double()[draws].sum(1) / denominators.double()[draws].sum(1)
    low, high = ratios.quantile(torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)).tolist()
    return low, high


def _centred(x: Acts) -> Tensor:
    x = x.double()
    return x - x.mean(0)


def _nonzero(variance: Tensor, n: int) -> Tensor:
    if variance <= 0:
        raise ConfigError(f"All {n} tokens are equal, so there is no variance to explain.")
    return variance

"""Baselines that an SAE must beat: reconstructions that learned nothing, or nothing sparse, with as many active units.

Each baseline is fitted on the activations that it is scored on, which favours it.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from scope.null_seeds import generator
from scope.shapes import Acts


@dataclass
class Moments:
    """Mean, covariance and a sample of rows, gathered while activations stream by; float64."""

    d_in: int
    most: int = 16384

    def __post_init__(self):
        self.n = 0
        self.total = torch.zeros(self.d_in, dtype=torch.float64)
        self.products = torch.zeros(self.d_in, self.d_in, dtype=torch.float64)
        self.kept: list[Tensor] = []

    def add(self, x: Acts) -> None:
        d = x.detach().to("cpu", torch.float64)
        room = self.most - sum(map(len, self.kept))
        if room > 0:
            self.kept.append(x.detach()[:room].float().cpu())
        self.n += len(d)
        self.total += d.sum(0)
        self.products += d.T @ d

    @property
    def mean(self) -> Tensor:
        return self.total / self.n

    @property
    def covariance(self) -> Tensor:
        return self.products / self.n - torch.outer(self.mean, self.mean)

    @property
    def sample(self) -> Acts:
        return torch.cat(self.kept)


class MeanAblation:
    """Every activation replaced by the mean one: FVU 1 by definition."""

    def __init__(self, moments: Moments):
        self.mean = moments.mean.float()

    def __call__(self, x: Acts) -> Acts:
        return self.mean.to(x).expand_as(x)


class ZeroAblation:
    """Every activation replaced by zero."""

    def __call__(self, x: Acts) -> Acts:
        return torch.zeros_like(x)


class PCA:
    """The mean and the first `k` principal components: the best that k fixed directions can do; not sparse."""

    def __init__(self, moments: Moments, k: int):
        self.k = max(1, min(k, moments.d_in))
        vectors = torch.linalg.eigh(moments.covariance).eigenvectors
        self.basis, self.mean = vectors[:, -self.k :].float(), moments.mean.float()

    def __call__(self, x: Acts) -> Acts:
        basis, mean = self.basis.to(x), self.mean.to(x)
        return mean + (x - mean) @ basis @ basis.T


class RandomDictionary:
    """Random unit directions as decoder and as encoder, with thresholds that give the L0 of the SAE.

    All latents fire equally often, and one gain for all is fitted by least squares, since random directions overlap.
    """

    def __init__(self, moments: Moments, d_sae: int, l0: float, seed: int):
        rows = torch.randn(d_sae, moments.d_in, generator=generator("random dictionary", seed))
        self.W_dec = rows / rows.norm(dim=1, keepdim=True)
        self.mean, self.gain = moments.mean.float(), 1.0
        x = moments.sample - self.mean
        kth = max(1, min(len(x), round(l0 / d_sae * len(x))))
        slices = self.W_dec.split(1024)
        self.threshold = torch.cat([(x @ rows.T).topk(kth, dim=0).values[-1] for rows in slices]).nextafter(torch.tensor(0.0))
        x_hat = self.encode(moments.sample[:4096]) @ self.W_dec
        self.gain = float((x_hat * x[:4096]).sum() / x_hat.square().sum().clamp_min(1e-30))

    def encode(self, x: Acts) -> Tensor:
        pre = (x - self.mean.to(x)) @ self.W_dec.to(x).T
        return torch.relu(pre) * (pre > self.threshold.to(x))

    def decode(self, latents: Tensor) -> Tensor:
        return self.mean.to(latents) + self.gain * latents @ self.W_dec.to(latents)

    def __call__(self, x: Acts) -> Acts:
        return self.decode(self.encode(x))

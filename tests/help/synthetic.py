"""Activations whose features are known: sums of unit directions, each present now and then, so that a dictionary can be marked.

Frequencies follow Zipf's law, there are more features than dimensions (superposition), and, if asked for, features come in
families: a child is there only when its parent is (hierarchy), or neighbours fire together more often than by chance
(correlation).
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class World:
    features: int = 512
    d_in: int = 128
    mean_active: float = 5.0
    """Features on a token, on average."""
    zipf: float = 1.0
    """The k-th feature's frequency goes as k to the minus this."""
    most: float = 0.5
    """Frequency that none exceeds."""
    spread: float = 0.25
    """Standard deviation of a feature's size, whose mean is 1; negative ones are absent."""
    offset: float = 0.5
    """Norm of what all tokens have in common."""
    noise: float = 0.02
    """Norm, about, of what is explained by no feature."""
    children: float = 0.0
    """Share of the features that fire only where a commoner one does, their parent."""
    correlation: float = 0.0
    """Of the normal scores behind firing, within groups of eight features (a Gaussian copula)."""
    seed: int = 0

    def directions(self) -> Tensor:
        """Unit rows [features d_in]."""
        # seeded far from anything that a trainer might start from: equal seeds would hand it the answer
        rows = torch.randn(self.features, self.d_in, generator=torch.Generator().manual_seed(7_654_321 + self.seed))
        return rows / rows.norm(dim=1, keepdim=True)

    def frequencies(self) -> Tensor:
        """[features], summing to mean_active; of a child, its overall frequency."""
        p = torch.arange(1, self.features + 1, dtype=torch.float64) ** -self.zipf
        for _ in range(100):  # what is cut off above `most` goes to the others
            p = (p * self.mean_active / p.sum()).clamp(max=self.most)
        return p.float()

    def parents(self) -> Tensor:
        """[features] of the parent's number, or -1. A parent's frequency is at least twice its child's."""
        generator, p = torch.Generator().manual_seed(self.seed + 1), self.frequencies()
        found = torch.full((self.features,), -1)
        chosen = torch.rand(self.features, generator=generator) < self.children
        for child in chosen.nonzero().squeeze(1).tolist():
            able = ((p >= 2 * p[child]) & (found < 0) & ~chosen).nonzero().squeeze(1)
            if len(able):
                found[child] = able[torch.randint(len(able), (1,), generator=generator)]
        return found

    def sample(self, n: int, seed: int) -> tuple[Tensor, Tensor]:
        """(activations [n d_in], sizes [n features], 0 where absent)."""
        generator = torch.Generator().manual_seed(1_000_003 * (seed + 1) + self.seed)
        normal = torch.distributions.Normal(0.0, 1.0)
        scores = torch.randn(n, self.features, generator=generator)
        if self.correlation:
            shared = torch.randn(n, -(-self.features // 8), generator=generator).repeat_interleave(8, 1)[:, : self.features]
            scores = (1 - self.correlation) ** 0.5 * scores + self.correlation**0.5 * shared
        p, parents = self.frequencies(), self.parents()
        given = torch.where(parents >= 0, p / p[parents.clamp_min(0)], p)
        present = scores < normal.icdf(given.double()).float()
        present &= torch.where(parents >= 0, present[:, parents.clamp_min(0)], True)
        sizes = (1 + self.spread * torch.randn(n, self.features, generator=generator)).clamp_min(0) * present
        generator_of_offset = torch.Generator().manual_seed(self.seed + 2)
        common = torch.randn(self.d_in, generator=generator_of_offset)
        x = sizes @ self.directions() + self.offset * common / common.norm()
        return x + self.noise / self.d_in**0.5 * torch.randn(n, self.d_in, generator=generator), sizes


def marks(rows: Tensor, latents: Tensor, x_hat: Tensor, x: Tensor, world: World, sizes: Tensor) -> dict[str, float]:
    """What a dictionary is worth, from its decoder rows [d_sae d_in], and latents and x_hat of held-out x of known features.

    fvu      fraction of variance unexplained
    l0       latents per token
    mmcs     mean over true features of the best cosine of any decoder row
    recovery share of the true features with a cosine of at least 0.9
    f1       mean over true features of the best F1 of any latent, as a detector of the feature
    dead     share of latents that never fire
    """
    unit = rows / rows.norm(dim=1, keepdim=True).clamp_min(1e-12)
    best = (world.directions() @ unit.T).amax(1)
    fires, there = (latents > 0).float(), (sizes > 0).float()
    both = there.T @ fires
    f1 = (2 * both / (there.sum(0)[:, None] + fires.sum(0)[None]).clamp_min(1)).amax(1)
    return {
        "fvu": ((x - x_hat).square().sum() / (x - x.mean(0)).square().sum()).item(),
        "l0": fires.sum(1).mean().item(),
        "mmcs": best.mean().item(),
        "recovery": (best >= 0.9).float().mean().item(),
        "f1": f1.mean().item(),
        "dead": (fires.sum(0) == 0).float().mean().item(),
    }

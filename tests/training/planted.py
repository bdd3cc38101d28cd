"""Small trainings that the tests of this room share: planted features, two sites, children that can be killed."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scope.sae.jumprelu import JumpReLUConfig, JumpReLUSAE
from scope.training.config import TrainConfig
from scope.training.learner import Job
from scope.training.trainer import TensorBatches

ROOT = Path(__file__).parents[2]
SITES = ("blocks.0.hook_resid_post", "blocks.1.attn.hook_z")
WIDTHS = {SITES[0]: 24, SITES[1]: 16}
SMALL = TrainConfig(steps=50, batch_size=64, save_every=7, log_every=5, calibration=512)


def planted(rows: int = 6000, d_in: int = 24, features: int = 48, seed: int = 0) -> tuple[Tensor, Tensor]:
    """(activations, true directions): three features on the mean, over an offset, at a scale far from 1."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(features, d_in, generator=generator)
    directions /= directions.norm(dim=1, keepdim=True)
    active = torch.rand(rows, features, generator=generator) < 3 / features
    sizes = active * (1 + 0.25 * torch.randn(rows, features, generator=generator))
    return 30 * (sizes @ directions) + 50 * torch.ones(d_in), directions


class TwoSites:
    """Batches of both sites at once, in the order in which each comes alone."""

    def __init__(self, sites: tuple[str, ...] = SITES, batch_size: int = 64, seed: int = 0):
        self.sites = sites
        self.each = [TensorBatches(planted(d_in=WIDTHS[s], seed=WIDTHS[s])[0], batch_size, seed) for s in sites]

    def __iter__(self) -> Iterator[Any]:
        for batch in zip(*self.each, strict=True):
            yield batch if len(batch) > 1 else batch[0]

    def state_dict(self) -> dict[str, Any]:
        return {"each": [one.state_dict() for one in self.each]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for one, place in zip(self.each, state["each"], strict=True):
            one.load_state_dict(place)


def job(out: Path, site: str = SITES[0], config: TrainConfig = SMALL, **changes: Any) -> Job:
    sae = JumpReLUSAE(
        JumpReLUConfig(**{"d_in": WIDTHS[site], "d_sae": 64, "target_l0": 4.0, "revive_after": None, **changes}), site
    )
    sae.provenance = {"model": {"model": "tiny"}, "site": site}
    return Job(sae, config, out)


def grid(out: Path, revive_after: int | None = None) -> list[Job]:
    """Three dictionaries: two over the first site, of other widths, one over the second with another seed. `revive_after` is
    that of the second."""
    reseeded = TrainConfig(**{**vars(SMALL), "seed": 3, "order_seed": 0})
    second = job(out / "b", d_sae=96, target_l0=8.0, revive_after=revive_after)
    return [job(out / "a"), second, job(out / "c", SITES[1], reseeded)]


def same(a, b) -> bool:
    """Whether two dictionaries are equal to the bit."""
    return all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))

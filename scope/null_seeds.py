"""Random numbers for baselines, kept apart from the random numbers of training.

A dictionary starts with `torch.randn` of its own shape under its seed, and people give 0 as a seed for everything. A null drawn
in the same way would consist of the very rows that training began with, and be no null.
"""

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def null_seed(null: str, seed: int = 0) -> int:
    """A seed that belongs to the null of this name and this seed alone, for `numpy.random.default_rng` and the like."""
    digest = hashlib.sha256(f"{null}\n{seed}".encode()).digest()
    return int.from_bytes(digest[:7], "big")


def generator(null: str, seed: int = 0) -> "torch.Generator":
    """Random numbers that belong to the null of this name and this seed alone."""
    import torch  # browsing packs draws nulls too, and needs no torch

    return torch.Generator().manual_seed(null_seed(null, seed))

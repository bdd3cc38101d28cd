"""Chance for a null, which is not the chance that what it is compared with was drawn from.

A dictionary starts with `torch.randn` of its own shape under its seed, and people give 0 as a seed for everything. A null drawn
in the same way would consist of the very rows that training began with, and be no null.
"""

import hashlib

import torch


def generator(null: str, seed: int = 0) -> torch.Generator:
    """Of numbers that belong to the null of this name and this seed alone."""
    digest = hashlib.sha256(f"{null}\n{seed}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))

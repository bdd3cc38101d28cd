"""Memory that is taken once and used at every step: what is paged in anew costs as much time as what is computed in it."""

from math import prod

import torch
from torch import Tensor


class Workspace:
    def __init__(self):
        self.kept: dict[str, Tensor] = {}
        self.device = torch.device("cpu")

    def take(self, name: str, *shape: int, dtype: torch.dtype) -> Tensor:
        """An uninitialised tensor, which the next call of that name takes back."""
        size, kept = prod(shape), self.kept.get(name)
        if kept is None or kept.numel() < size or kept.dtype != dtype or kept.device != self.device:
            kept = self.kept[name] = torch.empty(size, dtype=dtype, device=self.device)
        return kept[:size].view(*shape)

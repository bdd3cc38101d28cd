"""Several processes on one training, as `torchrun` starts them.

    alone   one process
    data    every process holds the dictionaries; each takes its share of a batch, and gradients are averaged
    width   every process sees the whole batch and holds its share of each dictionary's latents; what they reconstruct is summed
    site    the dictionaries are dealt out; each process trains its own, without communication

All sums are made in the same order on every process, so that what is the same on all stays the same to the bit.
"""

import itertools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from scope.errors import ConfigError
from scope.training.checkpoint import Part

Mode = Literal["alone", "data", "width", "site"]
T = TypeVar("T")
_PATIENCE = timedelta(minutes=30)  # for a process that reads or saves while the others wait


@dataclass(frozen=True)
class ProcessGroup:
    """This process among all of a training."""

    mode: Mode = "alone"
    rank: int = 0
    world: int = 1

    @property
    def talks(self) -> bool:
        return self.mode in ("data", "width") and self.world > 1

    @property
    def writes(self) -> bool:
        """Whether this process writes what all have: of those that train together the first, of others each its own."""
        return self.rank == 0 or not self.talks

    def sum(self, tensor: Tensor) -> Tensor:
        """Added up over all processes, in place."""
        if self.talks:
            import torch.distributed as dist

            whole = tensor if tensor.is_contiguous() else tensor.contiguous()
            dist.all_reduce(whole)
            if whole is not tensor:
                tensor.copy_(whole)
        return tensor

    def mean(self, tensor: Tensor) -> Tensor:
        """The mean over all processes, in place."""
        return self.sum(tensor).div_(self.world) if self.talks else tensor

    def any(self, value: bool, device: torch.device) -> bool:
        """Whether it is true on any process."""
        return bool(self.sum(torch.tensor(float(value), device=device)).item()) if self.talks else value

    def share(self, n: int) -> slice:
        """This process's part of n things, in order."""
        return slice(n * self.rank // self.world, n * (self.rank + 1) // self.world)

    def gather(self, part: Part) -> Tensor | None:
        """The whole tensor on the process that writes; None on the others. All must call it, in the same order."""
        if self.mode != "width" or not self.talks:
            return part.tensor
        import torch.distributed as dist

        flat = part.tensor.detach().movedim(part.dim, 0).contiguous()
        sizes = [(part.size * (r + 1) // self.world) - (part.size * r // self.world) for r in range(self.world)]
        if self.rank:
            dist.send(flat, dst=0)
            return None
        parts = [flat.cpu()]
        for source in range(1, self.world):
            there = torch.empty((sizes[source], *flat.shape[1:]), dtype=flat.dtype, device=flat.device)
            dist.recv(there, src=source)
            parts.append(there.cpu())
        return torch.cat(parts).movedim(0, part.dim).contiguous()

    def everyones(self, value: Any) -> list[Any]:
        """The value of every process, in their order."""
        if not self.talks:
            return [value]
        import torch.distributed as dist

        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value)
        return values

    def must_agree(self, what: str, parameters: Sequence[Tensor]) -> None:
        """
        Raises:
            ConfigError: the processes hold different bits where all should hold the same.
        """
        if self.talks:
            sums = [int(p.detach().contiguous().view(torch.int32).sum(dtype=torch.int64)) for p in parameters]
            if len(set(map(tuple, self.everyones(sums)))) > 1:
                raise ConfigError(
                    f"The processes of this training came apart: {what} is not the same on all of them.\n"
                    "  They must run on machines of one kind, with one version of torch and as many threads each."
                )

    def wait(self) -> None:
        """Wait for all processes."""
        self.everyones(None)

    def deal(self, things: Sequence[T], costs: Sequence[float]) -> list[T]:
        """This process's share of things that stay in order: neighbours together, as even as that allows."""
        if self.mode != "site":
            return list(things)
        if len(things) < self.world:
            raise ConfigError(
                f"{len(things)} dictionaries cannot be dealt to {self.world} processes.\n"
                f"  Start {len(things)} processes, or use --parallel data or --parallel width."
            )
        before = list(itertools.accumulate(costs, initial=0.0))
        cuts = [0]
        for r in range(1, self.world):
            nearest = min(range(len(before)), key=lambda i: abs(before[i] - before[-1] * r / self.world))
            cuts.append(max(cuts[-1] + 1, min(nearest, len(things) - (self.world - r))))  # each gets one at least
        return list(things[cuts[self.rank] : [*cuts, len(things)][self.rank + 1]])


def launched() -> tuple[int, int, int]:
    """(rank, number of processes, rank on this machine) as torchrun says; (0, 1, 0) without it."""
    return tuple(int(os.environ.get(name, default)) for name, default in (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0)))


def join(mode: Mode, device: torch.device) -> ProcessGroup:
    """Meet the other processes that torchrun started: over NCCL where they compute on GPUs, over gloo otherwise.

    Raises:
        ConfigError: there are no others, or GPUs are fewer than processes.
    """
    rank, world, _ = launched()
    if world == 1:
        return ProcessGroup()
    if mode in ("data", "width"):
        import torch.distributed as dist

        if not dist.is_initialized():
            dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=_PATIENCE)
    return ProcessGroup(mode, rank, world)


def leave() -> None:
    """Leave the group, where there is one."""
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()

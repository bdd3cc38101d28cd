"""What each process of test_processes does: trains the grid in one way after the other, and may be killed."""

import os
import signal
import sys
from pathlib import Path

import torch

from scope.training.processes import join, leave
from scope.training.trainer import train_all
from tests.training.planted import TwoSites, grid


def main(out: Path, modes: list[str], die_at: int, device: torch.device) -> None:
    for mode in modes:
        group = join(mode, device)
        jobs = group.deal(grid(out / mode, revive_after=64), [job.sae.d_sae for job in grid(out / mode, revive_after=64)])
        for one in jobs:
            one.sae.to(device)
        if die_at and group.rank == group.world - 1:
            _die_at_step(die_at)
        sites = tuple(dict.fromkeys(one.sae.site for one in jobs))
        train_all(jobs, TwoSites(sites), out / mode, None, group)
    leave()


def _die_at_step(step: int) -> None:
    from scope.training.learner import Learner

    advance = Learner.advance

    def until(self, x):
        if self.step == step:
            os.kill(os.getpid(), signal.SIGKILL)
        advance(self, x)

    Learner.advance = until


def rank(number: int, world: int, port: int, out: Path, modes: list[str], die_at: int) -> None:
    """One of the processes, with the surroundings that torchrun would give it."""
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ |= meeting | {"RANK": str(number), "WORLD_SIZE": str(world), "LOCAL_RANK": str(number)}
    torch.set_num_threads(1)
    main(out, modes, die_at, torch.device("cpu"))


if __name__ == "__main__":
    torch.set_num_threads(1)
    where = torch.device(f"cuda:{os.environ['LOCAL_RANK']}" if sys.argv[3] == "cuda" else "cpu")
    if where.type == "cuda":
        torch.cuda.set_device(where)
    main(Path(sys.argv[1]), sys.argv[2].split(","), 0, where)

"""What torchrun starts in test_processes: trains the grid in one way after the other, and may kill one of its processes."""

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


if __name__ == "__main__":
    torch.set_num_threads(1)
    where = torch.device(f"cuda:{os.environ['LOCAL_RANK']}" if sys.argv[4] == "cuda" else "cpu")
    if where.type == "cuda":
        torch.cuda.set_device(where)
    main(Path(sys.argv[1]), sys.argv[2].split(","), int(sys.argv[3]), where)

"""Trainings that are killed while they run."""

import os
import signal
import time
from pathlib import Path

import torch

from scope.training import checkpoint
from scope.training.trainer import train, train_all
from tests.training.planted import TwoSites, grid
from tests.training.test_trainer import SMALL, batches, fresh


def one(out: Path, pause: float) -> None:
    """The training of test_trainer, pausing after each step."""
    torch.set_num_threads(1)
    train(fresh(), batches(), SMALL, out, on_progress=lambda *a: time.sleep(pause))


def many(out: Path, pause: float) -> None:
    """The three dictionaries of the grid, pausing after each step."""
    torch.set_num_threads(1)
    train_all(grid(out, revive_after=64), TwoSites(), out, lambda *a: time.sleep(pause))


def many_until(out: Path, place: int) -> None:
    """The same, killed in the middle of what is written to checkpoints the place-th time."""
    written, calls = checkpoint._Hashed.write, 0

    def write(hashed, data):
        nonlocal calls
        calls += 1
        if calls == place:
            written(hashed, memoryview(data).cast("B")[: len(data) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        written(hashed, data)

    checkpoint._Hashed.write = write
    many(out, 0)

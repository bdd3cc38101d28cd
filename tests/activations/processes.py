"""Harvests in processes of their own."""

import os
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

from tests.activations import toy
from tests.help.forked import code, forked


class Mortal(toy.Arithmetic):
    """Rank 1 dies once, in the middle of its second shard, if its deed is to die; every rank is slow if it is to dawdle."""

    def __init__(self, deed: str, mark: Path):
        super().__init__()
        self.deed, self.mark = deed, mark

    def record(self, tokens, sites):
        if self.deed == "die" and os.environ["RANK"] == "1" and self.ran > 3000 and not self.mark.exists():
            self.mark.touch()
            os.kill(os.getpid(), 9)
        if self.deed == "dawdle":
            time.sleep(0.05)
        return super().record(tokens, sites)


def harvest(out: str, tokens: str | int = 12_000, deed: str = "", **settings) -> None:
    """What each rank does; which one it is stands in the environment, as torchrun sets it."""
    toy.record(out, tokens=int(tokens), model=Mortal(deed, Path(out).parent / "died"), **settings)


def start_ranks(
    world: int, out: Path | str, tokens: int = 12_000, deed: str = "", only: list[int] | None = None, **settings
) -> list[BaseProcess]:
    """Start the ranks of a harvest, all or `only` some."""
    arguments = str(out), tokens, deed
    ranks = range(world) if only is None else only
    return [forked(_rank, rank, world, arguments, settings) for rank in ranks]


def codes(ranks: list[BaseProcess]) -> list[int | None]:
    """How each ended, once all have."""
    return [code(rank) for rank in ranks]


def _rank(rank: int, world: int, arguments: tuple, settings: dict) -> None:
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_RANK": str(rank)}
    harvest(*arguments, **settings)

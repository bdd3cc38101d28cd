"""Kill a harvest at random moments, resume it, compare with an uninterrupted one: python -m tests.benchmarks.kills 100"""

import multiprocessing
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

from tests.activations.toy import contents, record


def kill_and_resume(folder: Path, rng: random.Random, most: int) -> int:
    """Start a harvest again and again, killing it at a random moment, until it ends by itself; how often it was killed.

    A moment is a random batch and some random milliseconds after it, so a busy machine does not push all kills to the start.
    Children are forked from a server that has imported everything and run nothing, so that each starts at once.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.activations.toy"])
    kills = reached = 0
    while True:
        batches = context.Value("i", 0, lock=False)
        process = context.Process(target=_harvest, args=(folder, batches))
        process.start()
        if kills < most:
            stop_at = rng.uniform(reached, 48)
            while process.is_alive() and batches.value < stop_at:
                time.sleep(0.0005)
            time.sleep(rng.expovariate(200))
            process.kill()
        process.join()
        if process.exitcode == 0:
            return kills
        if process.exitcode != -9:
            raise RuntimeError(f"the harvest ended with {process.exitcode}")
        kills, reached = kills + 1, max(reached, batches.value)


def _harvest(folder: Path, batches) -> None:
    def tell(done, total, numbers):
        batches.value = done // 256

    record(folder, on_progress=tell)


if __name__ == "__main__":
    wanted, rng, done, wrong = int(sys.argv[1]), random.Random(1), 0, 0
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as place:
        record(Path(place) / "whole")
        whole = contents(Path(place) / "whole")
        while done < wanted:
            done += kill_and_resume(Path(place) / "r", rng, most=5)
            wrong += contents(Path(place) / "r") != whole
            shutil.rmtree(Path(place) / "r")
    print(f"{done} kills in {time.monotonic() - started:.0f} s, {wrong} recordings that differ from the uninterrupted one")

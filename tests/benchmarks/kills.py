"""Kill a harvest at random moments, resume it, compare with an uninterrupted one: python -m tests.benchmarks.kills --times 100

A moment is a random batch and some random milliseconds after it, so that a busy machine does not push all kills to the start.
The open shard is noted every few milliseconds instead of every 20 s: most runs then go on in the middle of a shard.
"""

import argparse
import random
import shutil
import tempfile
import time
from collections import Counter
from pathlib import Path

from scope.activations.harvest import run

from tests.activations.toy import contents, record
from tests.help.forked import server

BATCHES, BATCH_TOKENS = 47, 256  # of the toy's recording
NOTED = 0.005  # seconds from one note of the open shard to the next


def kill_and_resume(folder: Path, rng: random.Random, most: int) -> Counter:
    """Start a harvest again and again, killing it at a random moment, until it ends by itself.

    Counts the kills, by what they left: an open shard that is noted, one that is not, or sealed shards alone.
    """
    context = server()
    left: Counter = Counter()
    reached = 0
    while True:
        batches = context.Value("i", 0, lock=False)
        process = context.Process(target=_harvest, args=(folder, batches))
        process.start()
        if left.total() < most:
            stop_at = rng.uniform(reached, BATCHES + 1)
            while process.is_alive() and batches.value < stop_at:
                time.sleep(0.0005)
            time.sleep(rng.expovariate(200))
            process.kill()
        process.join()
        if process.exitcode == 0:
            return left
        if process.exitcode != -9:
            raise RuntimeError(f"the harvest ended with {process.exitcode}")
        left[_what_is_left(folder)] += 1
        reached = max(reached, batches.value)


def _what_is_left(folder: Path) -> str:
    if not list(folder.glob("*.tmp")):
        return "no open shard"
    return "an open shard, noted" if list(folder.glob("open-*.json")) else "an open shard, not noted"


def _harvest(folder: Path, batches) -> None:
    run._WATERMARK_SECONDS = NOTED

    def tell(done, total, numbers):
        batches.value = done // BATCH_TOKENS

    record(folder, on_progress=tell)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=100, help="how many kills")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    rng, left, recordings, wrong = random.Random(args.seed), Counter(), 0, 0
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as place:
        record(Path(place) / "whole")
        whole = contents(Path(place) / "whole")
        while left.total() < args.times:
            left += kill_and_resume(Path(place) / "r", rng, most=min(5, args.times - left.total()))
            recordings += 1
            wrong += contents(Path(place) / "r") != whole
            shutil.rmtree(Path(place) / "r")
    moments = ", ".join(f"{n} left {what}" for what, n in left.most_common())
    print(f"{left.total()} kills in {time.monotonic() - began:.0f} s: {moments}.")
    print(f"{recordings} recordings resumed to their end; {wrong} of them differ from the uninterrupted one.")
    if wrong:
        raise SystemExit(1)


if __name__ == "__main__":
    main()

"""How fast recordings are written and read, beside the disk, numpy and SAELens: python -m tests.benchmarks.recordings

Every row is measured in turns with a plain row of the same bytes, since a disk's own speed moves by a factor of two; trust the
ratios. Rates are of payload as stored, GB/s of 10^9 bytes. Written means on the disk: fsync is inside the timer. Cold means
that the files were put out of the page cache before (posix_fadvise); warm that they lie in it. A run of shuffled reading first
fills a pool while nobody computes; "after two pools" is how fast a long run is fed.

Meant to hold on a quiet machine: the recording is written at 0.8 of a plain file or more, shuffled reading after two pools runs
cold at 0.7 of a plain one or more, and a harvest of the bundled model takes at most a tenth longer than the model alone. Any
other work on the machine, however nice, spoils the first two: the load average is printed at the end.
"""

import argparse
import json
import os
import shutil
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from scope.activations.config import HarvestConfig
from scope.activations.harvest.harvest import harvest
from scope.activations.harvest.plan import plan
from scope.activations.read.store import ActivationStore

from scope.cli.freed_memory import keep_freed_memory
from scope.sites import match_sites
from tests.activations.toy import ByteTokenizer, numbers
from tests.benchmarks import others
from tests.benchmarks.others import BATCH, BATCH_CONTEXTS, CONTEXT, SITES, WIDTH, Given, cool


def record(folder: Path, model: Given, tokens: int) -> ActivationStore:
    config = HarvestConfig(sites=("all",), tokens=tokens, context=CONTEXT, batch_contexts=BATCH_CONTEXTS, exclude=("pad",))
    return harvest(model, ByteTokenizer(), numbers(tokens // 40), config, folder, {"model": "given"})


def read_in_order(store: ActivationStore) -> int:
    """Batches of float32 in the order of the rows: a loader that does not shuffle."""
    total = 0
    for at in range(0, store.n_rows, BATCH):
        for site in store.sites:
            total += store[site][at : at + BATCH].numel() * 2
    return total


def read_shuffled(store: ActivationStore, sites, memory_bytes: int) -> int:
    total = 0
    for batch in store.shuffled(sites, BATCH, epochs=1, memory_bytes=memory_bytes):
        total += sum(x.numel() * 2 for x in (batch if isinstance(batch, tuple) else (batch,)))
    return total


def read_on(store: ActivationStore, sites: tuple[str, ...], memory_bytes: int) -> tuple[int, float]:
    """(bytes, seconds) of all but the first two pools, whose memory is new to the process: how fast a long run is fed."""
    batches, total, began = store.shuffled(sites, BATCH, epochs=1, memory_bytes=memory_bytes), 0, 0.0
    first = 2 * store.n_rows // batches.n_pools
    for batch in batches:
        if began:
            total += sum(x.numel() * 2 for x in batch)
        elif batches.row >= first:
            began = time.perf_counter()
    return total, time.perf_counter() - began


def timed(work: Callable[[], int | None], nbytes: int | None = None) -> float:
    """GB/s."""
    began = time.perf_counter()
    done = work()
    return (nbytes or done or 0) / (time.perf_counter() - began) / 1e9


class Table:
    def __init__(self):
        self.rates: dict[str, list[float]] = {}
        self.beside: dict[str, str] = {}

    def add(self, name: str, rate: float, beside: str = "") -> None:
        self.rates.setdefault(name, []).append(rate)
        self.beside[name] = beside

    def show(self, title: str) -> dict:
        print(f"\n{title}\n{'':44s}   GB/s  (all runs)              ratio to")
        found = {}
        for name, rates in self.rates.items():
            plain = self.beside[name]
            ratio = statistics.median(rates) / statistics.median(self.rates[plain]) if plain else 1.0
            found[name] = {"GB/s": rates, "beside": plain, "ratio": ratio}
            runs = " ".join(f"{r:.2f}" for r in rates)
            print(
                f"{name:44s} {statistics.median(rates):6.2f}  ({runs:22s})  " + (f"{ratio:6.2f} {plain}" if plain else ""),
                flush=True,
            )
        return found


def writing(place: Path, tokens: int, rounds: int) -> dict:
    import sae_lens  # noqa: F401  slow to import; not within a timer

    model, table = Given(), Table()
    nbytes = tokens * WIDTH * SITES * 2
    for i in range(rounds):
        table.add("plain sequential", timed(lambda: others.write_plain(place / "plain", model, nbytes), nbytes))
        (place / "plain").unlink()
        shutil.rmtree(place / "recording", ignore_errors=True)
        rate = timed(lambda: record(place / "recording", model, tokens) and None, nbytes)
        table.add("recording (harvest of given activations)", rate, "plain sequential")
        shutil.rmtree(place / "memmap", ignore_errors=True)
        table.add(
            "numpy.memmap", timed(lambda: others.write_memmap(place / "memmap", model, tokens), nbytes), "plain sequential"
        )
        if i < 1:
            rate = timed(
                lambda: others.write_sae_lens(place / "sae_lens", next(iter(model.acts.values())), max(1, tokens // BATCH // 2))
            )
            table.add("SAELens, one site, float32", rate, "plain sequential")
    return table.show(f"Writing {nbytes / 1e9:.1f} GB: {SITES} sites of {WIDTH}, bfloat16")


def reading(place: Path, tokens: int, rounds: int) -> dict:
    table, one = Table(), "blocks.0.hook_resid_post"
    store = ActivationStore.open(place / "recording")
    nbytes = tokens * WIDTH * SITES * 2
    memory = min(512 << 20, nbytes // 4)

    def opened() -> ActivationStore:
        return ActivationStore.open(place / "recording")  # anew, so that every checksum is looked at again

    for _ in range(rounds):
        for how in ("cold", "warm"):

            def measure(name, work, plain="", folder="recording", how=how, nbytes=None):
                if how == "cold":
                    cool(place / folder)
                table.add(f"{how}: {name}", timed(work, nbytes), f"{how}: {plain}" if plain else "")

            measure("plain sequential", lambda: others.read_plain(place / "recording"))
            measure(
                "shuffled, all sites aligned", lambda: read_shuffled(opened(), tuple(store.sites), memory), "plain sequential"
            )
            if how == "cold":
                cool(place / "recording")
            done, seconds = read_on(opened(), tuple(store.sites), memory)
            table.add(f"{how}: the same after two pools", done / seconds / 1e9, f"{how}: plain sequential")
            measure("shuffled, one site", lambda: read_shuffled(opened(), one, memory // SITES), "plain sequential")
            measure("in order, float32 batches", lambda: read_in_order(opened()), "plain sequential")
            rows = tokens if how == "warm" else min(tokens, 2 * BATCH)
            random_rows = lambda rows=rows: others.read_memmap(place / "memmap", tokens, rows)  # noqa: E731
            measure("numpy.memmap, random rows", random_rows, "plain sequential", "memmap")
    half = max(1, tokens // BATCH // 2) * BATCH
    table.add(
        "warm: SAELens' loader, float32",
        timed(lambda: others.read_sae_lens(place / "sae_lens", half // 2)),
        "warm: plain sequential",
    )
    for how in ("cold", "warm"):
        table.rates[f"{how}: shuffled beside in order"] = table.rates[f"{how}: shuffled, all sites aligned"]
        table.beside[f"{how}: shuffled beside in order"] = f"{how}: in order, float32 batches"
    return table.show(f"Reading them, as float32 batches of {BATCH} rows; pools of {memory / 1e6:.0f} MB in all")


def harvesting(place: Path, tokens: int, rounds: int) -> dict:
    """The bundled model over the bundled corpus, read and packed alike, without storing and with.

    The first look at 4,096 tokens, which every harvest takes once whatever its length, is told apart.
    """
    from scope.activations.corpus.contexts import Packer
    from scope.activations.corpus.sources import open_corpus

    from scope.models.load import load_model

    model, corpus, out = load_model("bundled"), open_corpus("bundled"), place / "bundled"
    found = {}
    for name, pattern in (("one residual", "blocks.2.hook_resid_post"), ("all residuals", "blocks.*.hook_resid_post")):
        config = HarvestConfig(sites=(pattern,), tokens=tokens, context=CONTEXT, batch_contexts=BATCH_CONTEXTS)
        made_of = model, model.tokenizer, corpus, config, out, model.provenance
        times: dict[str, list[float]] = {"alone": [], "first look": [], "harvest": []}
        for _ in range(rounds):
            packer = Packer(corpus.documents(0), model.tokenizer, CONTEXT)
            began = time.perf_counter()
            with torch.no_grad():
                for _ in range(tokens // CONTEXT // BATCH_CONTEXTS):
                    batch = torch.from_numpy(packer.take(BATCH_CONTEXTS).tokens).long()
                    model.record(batch, tuple(match_sites((pattern,), model.sites())))
            looked = time.perf_counter()
            planned = plan(*made_of, timed=False)
            ready = time.perf_counter()
            harvest(*made_of, planned=planned)
            for kind, spent in zip(times, (looked - began, ready - looked, time.perf_counter() - ready), strict=True):
                times[kind].append(spent)
            shutil.rmtree(out)
        alone, look, stored = map(statistics.median, times.values())
        found[name] = {f"{kind}, s": spent for kind, spent in times.items()} | {"cost": stored / alone - 1}
        print(
            f"{name}: model alone {alone:.2f} s, harvest {stored:.2f} s, cost {stored / alone - 1:+.1%}; once {look:.2f} s more"
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=32_768, help="tokens recorded; 36,864 bytes each")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--harvested", type=int, default=32_768, help="tokens of the bundled model")
    parser.add_argument(
        "--place", type=Path, default=None, help="folder on the disk to measure; default: the system's temporary one"
    )
    parser.add_argument("--parts", default="write,read,harvest", help="which of write, read, harvest (read needs write)")
    parser.add_argument("--json", type=Path, default=None, help="also write the figures here")
    args = parser.parse_args()
    keep_freed_memory()  # as `scope` does
    began = time.monotonic()
    warnings.simplefilter("ignore")
    import datasets

    datasets.disable_progress_bars()
    place, found = Path(tempfile.mkdtemp(prefix="recordings-", dir=args.place)), {}
    try:
        if "write" in args.parts:
            found["write"] = writing(place, args.tokens, args.rounds)
        if "read" in args.parts:
            found["read"] = reading(place, args.tokens, args.rounds)
        if "harvest" in args.parts:
            print("\nHarvesting the bundled model")
            found["harvest"] = harvesting(place, args.harvested, args.rounds)
    finally:
        shutil.rmtree(place)
    threads, load = torch.get_num_threads(), os.getloadavg()[0]
    print(f"\nAll in {time.monotonic() - began:.0f} s with {threads} threads; load average {load:.1f}.")
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""A model recorded from disk under `ulimit -v` of half its weights or less, beside the disk's own speed. Run by hand:

    python -m tests.benchmarks.streamed [--folder F] [--layers 18] [--contexts 1 4 8]

Blocks of Gemma 2 2B's shape, random bfloat16 weights, 2.9 GB with 18 of them; contexts of 256 tokens. Each part is a process of
its own: one makes the files (in a temporary folder, unless one is given), one records with all weights resident, one under the
limit. Files are dropped from the system's cache before each record, so that weights come from the disk.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

CONTEXT = 256


def last_site(n_layers: int) -> str:
    return f"blocks.{n_layers - 1}.hook_resid_post"


def some_contexts(n: int, d_vocab: int) -> torch.Tensor:
    tokens = torch.randint(7, d_vocab, (n, CONTEXT), generator=torch.Generator().manual_seed(2))
    tokens[:, 0] = 2
    return tokens


def resident(folder: Path, contexts: list[int]) -> None:
    """What the resident model records of the first batch."""
    from scope.models.load import load_model

    model = load_model(str(folder), dtype="bfloat16")
    site = last_site(model.cfg.n_layers)
    started = time.perf_counter()
    recorded = model.record(some_contexts(contexts[0], model.cfg.d_vocab), [site])[site]
    seconds = time.perf_counter() - started
    torch.save(recorded, folder / "resident.pt")
    rate = contexts[0] * CONTEXT / seconds
    print(f"resident: {contexts[0]} x {CONTEXT} tokens at {rate:,.0f} tokens/s, memory {memory('VmHWM') / 1e9:.2f} GB")


def streamed(folder: Path, contexts: list[int]) -> None:
    """A table: batches of these sizes, recorded under the limit."""
    from scope.models.load import load_model

    size = weights(folder)
    limit = size // 2
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    cold(folder)
    disk = disk_speed(folder)
    model = load_model(str(folder), dtype="bfloat16", streamed=True)
    site, read = last_site(model.cfg.n_layers), size - model.stored_bytes("embed.weight")
    print(f"{size / 1e9:.2f} GB of weights under ulimit -v {limit // 1024} ({limit / 1e9:.2f} GB); ", end="")
    print(f"the disk gives {disk / 1e9:.2f} GB/s to a reader that does nothing else\n")
    print("| batch | seconds | tokens/s | weights read | of the disk's speed |\n|---|---|---|---|---|", flush=True)
    for n in contexts:
        tokens = some_contexts(n, model.cfg.d_vocab)
        cold(folder)
        started = time.perf_counter()
        recorded = model.record(tokens, [site])[site]
        seconds = time.perf_counter() - started
        speed = read / seconds
        print(f"| {n} x {CONTEXT} | {seconds:.1f} | {tokens.numel() / seconds:,.0f} ", end="")
        print(f"| {speed / 1e9:.2f} GB/s | {speed / disk:.0%} |", flush=True)
        if n == contexts[0] and (folder / "resident.pt").exists():
            same = torch.equal(recorded, torch.load(folder / "resident.pt"))
            said = "equal to the last bit" if same else "NOT equal"
        del recorded
    if (folder / "resident.pt").exists():
        print(f"\nthe first batch and the resident run are {said}")
    print(f"memory {memory('VmHWM') / 1e9:.2f} GB resident, {memory('VmPeak') / 1e9:.2f} GB of addresses")


def weights(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def memory(kind: str) -> int:
    """The most that this process had: VmHWM of memory, VmPeak of addresses; in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(kind))


def cold(folder: Path) -> None:
    """Have the system forget what it holds of the files."""
    for file in folder.glob("*.safetensors"):
        descriptor = os.open(file, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def disk_speed(folder: Path, nbytes: int = 1 << 30) -> float:
    """Bytes a second of plain reading, from files that the system does not hold."""
    buffer, done, started = bytearray(1 << 22), 0, time.perf_counter()
    with open(next(folder.glob("*.safetensors")), "rb", buffering=0) as file:
        while done < nbytes and (got := file.readinto(buffer)):
            done += got
    return done / (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--layers", type=int, default=18)
    parser.add_argument("--contexts", type=int, nargs="+", default=[1, 4, 8])
    parser.add_argument("--here", choices=["resident", "streamed"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.here:
        {"resident": resident, "streamed": streamed}[args.here](args.folder, args.contexts)
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder, contexts = args.folder or Path(temporary), [str(n) for n in args.contexts]
        if not (folder / "config.json").exists():
            made = ["--part", "make", "--layers", str(args.layers), "--vocabulary", "8192"]
            subprocess.run([sys.executable, "-m", "tests.benchmarks.two_b", "--folder", str(folder), *made], check=True)
        for part in ("resident", "streamed"):
            here = ["--folder", str(folder), "--here", part, "--contexts", *contexts]
            subprocess.run([sys.executable, "-m", "tests.benchmarks.streamed", *here], check=True)


if __name__ == "__main__":
    main()

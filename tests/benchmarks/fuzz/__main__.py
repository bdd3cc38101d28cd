"""Damages artefacts by a seed, uses each as its user would, and counts what then happens.

    python -m tests.benchmarks.fuzz --mutations 2000

Each use has a process of its own, with a limit of 20 seconds and of memory. It ends as one of:

refused     a message that says what is wrong
unchanged   the result of the sound artefact
other       another result where nothing could tell: a text or a weight that is as good as the one before
SILENT      another result though the file has a checksum, or a value became one of another type
TRACEBACK   an exception that was not meant for the user
HANG        more than 20 seconds
CRASH       the process ended by a signal, or its memory ran out
"""

import argparse
import multiprocessing
import os
import random
import resource
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

from tests.benchmarks.fuzz.kinds import KINDS, Kind, Refused, build
from tests.benchmarks.fuzz.mutations import clean, mutate

SECONDS = 20.0
MEMORY = 4 * 2**30
BAD = ("SILENT", "TRACEBACK", "HANG", "CRASH")


def used(kind: Kind, file: Path) -> tuple[str, str]:
    """(outcome, digest or message) of using the artefact in a process of its own."""
    context = multiprocessing.get_context("fork")
    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=_use, args=(kind, file, send))
    process.start()
    send.close()
    try:
        result = receive.recv() if receive.poll(SECONDS) else ("HANG", "")
    except EOFError:
        process.join()
        result = ("CRASH", f"exit code {process.exitcode}")
    process.kill()
    process.join()
    return result


def _use(kind: Kind, file: Path, send) -> None:
    from scope.errors import ScopeError

    with open("/proc/self/statm") as status:
        now = int(status.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY, now + MEMORY))
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    try:
        result = ("done", kind.use(file))
    except (ScopeError, Refused) as error:
        result = ("refused", str(error))
    except MemoryError:
        result = ("CRASH", "MemoryError")
    except BaseException:
        result = ("TRACEBACK", traceback.format_exc())
    send.send(result)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mutations", type=int, default=2000, help="how many, shared among the kinds")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", choices=KINDS, action="append", help="only these")
    parser.add_argument("--show", action="store_true", help="print each fault with its traceback, and one refusal in ten")
    parser.add_argument("--folder", help="keep the artefacts there, and use those that are there")
    args = parser.parse_args()
    sys.stdout.reconfigure(errors="backslashreplace")

    import torch

    import scope.cli.main  # noqa: F401  once, so that the processes need not

    torch.set_num_threads(1)
    place = Path(args.folder or tempfile.mkdtemp()).absolute()
    work, sound = place / "work", place / "sound"
    if not sound.exists():
        clean(work)
        work.mkdir(parents=True)
        os.chdir(work)
        build(work)
        shutil.copytree(work, sound, symlinks=True)
    os.chdir(work)
    began, table, faults = time.monotonic(), {}, []
    chosen = {name: KINDS[name] for name in args.kind or KINDS}
    for name, kind in chosen.items():
        table[name] = _fuzz(name, kind, work, sound, args.mutations // len(chosen), args.seed, args.show, faults)
    columns = ("refused", "unchanged", "other", *BAD)
    print(f"\n| kind | mutations | {' | '.join(columns)} |\n|---|{'---|' * (len(columns) + 1)}")
    for name, counts in table.items():
        print(f"| {name} | {counts.total()} | {' | '.join(str(counts[c]) for c in columns)} |")
    print(f"\n{sum(c.total() for c in table.values()):,} mutations with seed {args.seed} in {time.monotonic() - began:.0f} s.")
    if not args.folder:
        shutil.rmtree(place)
    raise SystemExit(1 if faults else 0)


def _fuzz(name: str, kind: Kind, work: Path, sound: Path, n: int, seed: int, show: bool, faults: list) -> Counter:
    rng, counts = random.Random(f"{seed} {name}"), Counter()
    files = sorted(
        {f.relative_to(sound) for glob in kind.files for f in sound.glob(glob) if f.is_file() and "lock" not in f.name}
    )
    expected: dict[Path, tuple[str, str]] = {}
    for number in range(n):
        file = rng.choice(files)
        if file not in expected:
            _restore(work, sound)
            expected[file] = used(kind, file)
            if expected[file][0] != "done":
                print(f"The sound {file} of {name} cannot be used: {' '.join(expected[file])}", flush=True)
                faults.append((name, file, "none"))
        if expected[file][0] != "done":
            continue
        _restore(work, sound)
        sealed = kind.sealed(file)
        forge = rng.random() < 0.5
        mutation = mutate(work / file, rng, reseal=forge)
        forged = forge and file.suffix in (".json", ".jsonl")
        outcome, detail = used(kind, file)
        if outcome == "done":
            if detail == expected[file][1]:
                outcome = "unchanged"
            else:
                outcome = "SILENT" if mutation.wrong_type or (sealed and not forged) else "other"
        counts[outcome] += 1
        if outcome in BAD:
            faults.append((name, file, mutation.text))
        if show and (outcome in BAD or (outcome == "refused" and number % 10 == 0)):
            last = detail.strip().splitlines() or [""]
            print(
                f"{outcome:<10}{name}, {file}: {mutation.text}\n    " + "\n    ".join(last[-12:] if outcome in BAD else last),
                flush=True,
            )
        elif number % 50 == 49:
            print(f"{name}: {number + 1} of {n}", flush=True)
    _restore(work, sound)
    return counts


def _restore(work: Path, sound: Path) -> None:
    """Everything in `work` as it is in `sound`; only what differs in size or time is copied."""
    kept = set()
    for source in sound.rglob("*"):
        target = work / source.relative_to(sound)
        kept.add(target)
        if source.is_dir():
            if target.is_symlink() or (target.exists() and not target.is_dir()):
                clean(target)
            target.mkdir(exist_ok=True)
            continue
        status = target.lstat() if os.path.lexists(target) else None
        if status and (status.st_size, status.st_mtime_ns, status.st_mode) == _stamp(source):
            continue
        if status:
            clean(target)
        shutil.copy2(source, target)
    for path in sorted(work.rglob("*"), reverse=True):
        if path not in kept and os.path.lexists(path):
            clean(path)


def _stamp(file: Path) -> tuple[int, int, int]:
    status = file.stat()
    return status.st_size, status.st_mtime_ns, status.st_mode


if __name__ == "__main__":
    main()

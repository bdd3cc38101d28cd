"""Seconds of a training step beside busy processes: on one thread, on two, and on two of an earlier tree. Run by hand:

    git worktree add ../before COMMIT
    python -m tests.benchmarks.busy --baseline ../before [--busy 0 1 3] [--shapes 256x4096 768x16384 2304x16384]

Starts the busy processes itself: each computes in pure Python, and ends with its round, with this program, or after --seconds.
Every condition is a process that trains through `scope.training.trainer.train`; they take their steps in turns, a pause between
two, so that whatever else the machine does disturbs all alike. A step is timed from one line of progress to the next. Printed
are the median and the range of the steps, and of the ratios of steps of one turn.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

SPIN = """
import os, sys, time
end, parent = time.monotonic() + float(sys.argv[1]), int(sys.argv[2])
while time.monotonic() < end and os.getppid() == parent:
    for i in range(100_000): pass
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--baseline", type=Path, help="an earlier tree to measure too, on as many threads")
    parser.add_argument("--busy", type=int, nargs="+", default=[0, 1, 3], help="numbers of busy processes")
    parser.add_argument("--shapes", nargs="+", default=["256x4096", "768x16384", "2304x16384"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=4096)
    parser.add_argument("--steps", type=int, default=9, help="timed steps of each condition and number of busy processes")
    parser.add_argument("--pause", type=float, default=0.05, help="seconds before each step")
    parser.add_argument("--seconds", type=float, default=300.0, help="after which a busy process ends in any case")
    parser.add_argument("--child", nargs=3, metavar=("TREE", "SHAPE", "THREADS"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(args, *args.child)
        return
    print(f"load {os.getloadavg()[0]:.1f} before, {os.cpu_count()} cores, batch {args.batch}, {args.steps} steps each")
    for shape in args.shapes:
        with ExitStack() as stack:
            few, many = "1 thread", f"{args.threads} threads"
            trees = {few: (ROOT, 1), many: (ROOT, args.threads)}
            if args.baseline:
                trees["baseline"] = (args.baseline.resolve(), args.threads)
            steppers = {name: stack.enter_context(stepper(args, tree, shape, n)) for name, (tree, n) in trees.items()}
            for name in steppers:
                step(steppers[name])
            for busy in args.busy:
                with spinning(busy, args.seconds):
                    times = in_turns(steppers, args.steps, args.pause)
                print(f"\n{shape}, beside {busy} busy processes (load {os.getloadavg()[0]:.1f})")
                for name, seconds in times.items():
                    print(f"  {name:>10} {spread(seconds)} s")
                for other in (name for name in times if name != many):
                    print(f"  {many} / {other}: {spread([a / b for a, b in zip(times[many], times[other], strict=True)])}")
                sys.stdout.flush()


def spread(numbers: list[float]) -> str:
    return f"{statistics.median(numbers):6.3f} [{min(numbers):.3f} - {max(numbers):.3f}]"


@contextmanager
def spinning(n: int, seconds: float) -> Iterator[None]:
    """`n` processes that compute without end."""
    processes = [subprocess.Popen([sys.executable, "-c", SPIN, str(seconds), str(os.getpid())]) for _ in range(n)]
    try:
        time.sleep(0.5)
        yield
        assert all(process.poll() is None for process in processes), "Busy processes ended too soon: give more --seconds."
    finally:
        for process in processes:
            process.kill()
            process.wait()


@contextmanager
def stepper(args: argparse.Namespace, tree: Path, shape: str, threads: int) -> Iterator[subprocess.Popen]:
    """A process that takes a step for each line it is given, and answers with its seconds."""
    command = [sys.executable, "-P", __file__, "--batch", str(args.batch), "--child", str(tree), shape, str(threads)]
    environment = os.environ | {"PYTHONPATH": str(tree)}
    with subprocess.Popen(command, stdin=-1, stdout=-1, text=True, env=environment, cwd=tempfile.gettempdir()) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n", f"The trainer of {tree} did not start."
            yield process
        finally:
            process.kill()


def step(process: subprocess.Popen) -> float:
    process.stdin.write("step\n")
    process.stdin.flush()
    return float(process.stdout.readline())


def in_turns(steppers: dict[str, subprocess.Popen], steps: int, pause: float) -> dict[str, list[float]]:
    """Seconds of each, every time another first."""
    times: dict[str, list[float]] = {name: [] for name in steppers}
    names = list(steppers)
    for i in range(steps):
        for name in names[i % len(names) :] + names[: i % len(names)]:
            time.sleep(pause)
            times[name].append(step(steppers[name]))
    return times


def child(args: argparse.Namespace, tree: str, shape: str, threads: str) -> None:
    import scope  # before torch, as `scope` does  # isort: skip
    import torch

    from scope.cli.freed_memory import keep_freed_memory
    from scope.sae.jumprelu import JumpReLUConfig
    from scope.sae.kinds import make_sae
    from scope.training.trainer import TensorBatches, TrainConfig, train

    assert scope.__file__.startswith(tree), f"{scope.__file__} is not of {tree}"
    keep_freed_memory()
    torch.set_num_threads(1)  # until the first steps, which are dense, are done
    d_in, d_sae = map(int, shape.split("x"))
    x = torch.randn(2 * args.batch, d_in, generator=torch.Generator().manual_seed(0)) / d_in**0.5
    config = JumpReLUConfig(d_in=d_in, d_sae=d_sae, target_l0=64.0, start_l0=1.0, l0_weight=1e-5, bandwidth=0.001)
    marks: list[float] = []

    def turn(*_) -> None:
        marks.append(time.perf_counter())
        if len(marks) == 2:
            torch.set_num_threads(int(threads))
            print("ready", flush=True)
        elif len(marks) > 2:
            print(marks[-1] - marks[-2], flush=True)
        if len(marks) >= 2:
            sys.stdin.readline() or sys.exit()
            marks[-1] = time.perf_counter()

    settings = TrainConfig(
        steps=10**6, batch_size=args.batch, lr=7e-5, center=False, calibration=1024, log_every=1, save_every=10**9
    )
    with tempfile.TemporaryDirectory() as out:
        train(make_sae(config), TensorBatches(x, args.batch), settings, out, turn)


if __name__ == "__main__":
    main()

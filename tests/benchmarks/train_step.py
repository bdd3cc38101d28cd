"""Seconds per training step of the engines, at sizes of the bundled model and of Gemma 2 2B. Run by hand:

    python -m tests.benchmarks.train_step [--threads 2] [--shapes 256x2048 768x16384]

Prints one line per shape and engine: the median of several steps, gradients only, on random activations at an L0 of 32.
"""

import argparse
import statistics
import time

import torch

from scope.cli.memory import keep_freed_memory
from scope.sae.engine import Autograd, JumpReLUEngine
from scope.sae.jumprelu import JumpReLUConfig, JumpReLUSAE


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=7)
    parser.add_argument("--l0", type=float, default=32.0)
    parser.add_argument("--shapes", nargs="+", default=["256x2048"])
    args = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(args.threads)
    for shape in args.shapes:
        d_in, d_sae = map(int, shape.split("x"))
        x = torch.randn(args.batch, d_in, generator=torch.Generator().manual_seed(0)) / d_in**0.5
        sae = JumpReLUSAE(JumpReLUConfig(d_in=d_in, d_sae=d_sae, target_l0=args.l0, start_l0=1.0))
        sae.initialise(x)
        sae.l0_weight = 0.003
        for name in ("autograd", "dense", "sparse"):
            engine = Autograd(sae) if name == "autograd" else JumpReLUEngine(sae)
            seconds, batch = [], None
            for _ in range(args.steps):
                if isinstance(engine, JumpReLUEngine):
                    engine.share = 1.0 if name == "dense" else 0.0
                started = time.process_time() / args.threads if args.threads == 1 else time.perf_counter()
                batch = engine.gradients(x)
                now = time.process_time() / args.threads if args.threads == 1 else time.perf_counter()
                seconds.append(now - started)
            median = statistics.median(seconds[1:])
            print(
                f"{shape:>12} {name:>9} {1000 * median:9.1f} ms {args.batch / median:10,.0f} activations/s  "
                f"L0 {batch.l0:.1f} candidates {batch.candidates:.0f}",
                flush=True,
            )


if __name__ == "__main__":
    main()

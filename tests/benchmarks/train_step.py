"""Seconds of one whole training step, beside SAELens, dictionary_learning and sparsify in the same run. Run by hand:

    python -m tests.benchmarks.train_step [--shapes 256x4096 768x16384] [--only ours sae_lens] [--batch 4096 --l0 64]

A step is all that a step does: encoder, gradients, projection, Adam, renormalisation, bookkeeping; ours is timed from one line
of progress of `scope.training.trainer.train` to the next. Everyone reads the same float32 matrix, starts with the same unit
decoder rows, tied encoder and one threshold at which L0 is --l0, bandwidth 0.001 (Gemma Scope's; --bandwidth), one process
each. Prints the median and the least step, the peak memory of the process, how much of the machine's measured
multiplication peak our step reaches, and where its time goes. A peer that is not installed is named and left out
(tests/benchmarks/peers.py says how to install them).
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

CONTENDERS = {
    "ours": "",
    "sae_lens": "sae_lens",
    "sae_lens_bf16": "sae_lens",
    "dictionary_learning": "dictionary_learning",
    "sparsify": "sparsify",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--batch", type=int, default=4096)
    parser.add_argument("--steps", type=int, default=6, help="timed steps of ours; a slow peer does --peer-steps")
    parser.add_argument("--peer-steps", type=int, default=3)
    parser.add_argument("--l0", type=float, default=64.0)
    parser.add_argument("--bandwidth", type=float, default=0.001)
    parser.add_argument("--shapes", nargs="+", default=["256x4096", "768x16384"])
    parser.add_argument("--only", nargs="+", default=list(CONTENDERS), choices=list(CONTENDERS))
    parser.add_argument("--child", nargs=2, metavar=("NAME", "SHAPE"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.child:
        print(json.dumps(measure(args, *args.child)))
        return
    from tests.benchmarks.peers import missing, release

    print(
        f"torch {torch.__version__}, {args.threads} threads, batch {args.batch}, L0 {args.l0:g}, bandwidth {args.bandwidth:g}"
    )
    for shape in args.shapes:
        peaks = {name: peak(dtype) for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16))}
        print(f"\n{shape}: peak of a product {peaks['float32']:.0f} GFLOP/s in float32, {peaks['bfloat16']:.0f} in bfloat16")
        print(f"{'':>21} {'s/step':>8} {'least':>8} {'tokens/s':>9} {'x ours':>7} {'peak MiB':>9} {'before':>7}")
        rows: dict[str, dict] = {}
        for name in args.only:
            why = missing(CONTENDERS[name]) if CONTENDERS[name] else None
            if why:
                print(f"{name:>21} left out: {why}")
                continue
            row = rows[name] = child(name, shape)
            ratio = f"{row['median'] / rows['ours']['median']:7.2f}" if "ours" in rows else " " * 7
            of = release(CONTENDERS[name]) if CONTENDERS[name] else f"L0 {row['l0']:.0f}, candidates {row['candidates']:.0f}"
            print(
                f"{name:>21} {row['median']:8.3f} {row['least']:8.3f} {args.batch / row['median']:9,.0f} {ratio} "
                f"{row['mib']:9.0f} {row['before']:7.0f}  {of}",
                flush=True,
            )
        if "ours" in rows:
            explain(rows["ours"], shape, args, peaks)


def child(name: str, shape: str) -> dict:
    command = [sys.executable, "-m", "tests.benchmarks.train_step", *sys.argv[1:], "--child", name, shape]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2])
    return json.loads(done.stdout.splitlines()[-1])


def measure(args: argparse.Namespace, name: str, shape: str) -> dict:
    d_in, d_sae = map(int, shape.split("x"))
    x = torch.randn(2 * args.batch, d_in, generator=torch.Generator().manual_seed(0)) / d_in**0.5
    if name == "ours":
        return measure_ours(args, x, d_sae)
    peer = make_peer(args, name, d_in, d_sae, x)
    before, seconds = mib(), []
    for i in range(args.peer_steps + 1):
        started = time.perf_counter()
        peer.step(x[(i % 2) * args.batch :][: args.batch])
        seconds.append(time.perf_counter() - started)
    return {"median": statistics.median(seconds[1:]), "least": min(seconds[1:]), "mib": mib(), "before": before}


def measure_ours(args: argparse.Namespace, x: Tensor, d_sae: int) -> dict:
    """Through `train`, whose first step is dense: from the second on, the count of candidates is known."""
    from scope.cli.freed_memory import keep_freed_memory
    from scope.sae.jumprelu import JumpReLUConfig
    from scope.sae.kinds import make_sae
    from scope.training.trainer import TensorBatches, TrainConfig, train

    keep_freed_memory()
    config = JumpReLUConfig(
        d_in=x.shape[1], d_sae=d_sae, target_l0=args.l0, start_l0=1.0, l0_weight=1e-5, bandwidth=args.bandwidth
    )
    sae, marks, steps = make_sae(config), [], args.steps + 2
    before = mib()
    with tempfile.TemporaryDirectory() as out:
        settings = TrainConfig(
            steps=steps, batch_size=args.batch, lr=7e-5, center=False, calibration=8192, log_every=1, save_every=10**6
        )
        train(sae, TensorBatches(x, args.batch), settings, out, lambda *_: marks.append((time.perf_counter(), mib())))
    seconds = [b[0] - a[0] for a, b in pairwise(marks[1:])]
    row = {"median": statistics.median(seconds), "least": min(seconds), "mib": marks[-1][1], "before": before}
    return row | profile(args, make_sae(config), x, row["median"])


def profile(args: argparse.Namespace, sae, x: Tensor, median: float) -> dict:
    """Where the time of a step goes: of the engine, of what the dictionary adds, of Adam."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as record

    from scope.sae.kinds import make_objective
    from scope.training.adam import Adam

    objective = make_objective(sae)
    objective.start(x[:8192])
    objective.control.weight = 1e-5
    engine, part = objective.engine(), x[: args.batch]
    named = dict(sae.named_parameters())
    adam = Adam(named, dict.fromkeys(named, 7e-5), (0.9, 0.999))
    for _ in range(2):
        batch = engine.gradients(part)
    adam.step(1.0)
    with record(activities=[ProfilerActivity.CPU]) as seen:
        engine.gradients(part)
        objective.before_step()
        adam.step(1.0)
        objective.after_step(batch.l0, 0.5)
    spent = {event.key: event.self_cpu_time_total / 1e6 for event in seen.key_averages()}
    return {"l0": batch.l0, "candidates": batch.candidates, "profile": spent, "median_in_profile": sum(spent.values())}


KINDS_OF_WORK = {
    "screen (product in 8 or 16 bits)": ("aten::mm", "aten::_int_mm"),
    "candidates found in it": ("aten::gt_", "aten::clamp_min_", "aten::clamp_", "aten::nonzero", "aten::sort"),
    "exact products (SDDMM)": ("aten::sampled_addmm", "aten::sparse_sampled_addmm"),
    "sparse sums (decode, W_enc, W_dec)": ("aten::_embedding_bag_forward_only", "aten::_embedding_bag"),
    "Adam": ("aten::_fused_adam_",),
}


def explain(row: dict, shape: str, args: argparse.Namespace, peaks: dict[str, float]) -> None:
    d_in, d_sae = map(int, shape.split("x"))
    screen = 2 * args.batch * d_in * d_sae / 1e9
    whole = screen + 8 * args.batch * row["l0"] * d_in / 1e9
    at_peak = screen / peaks["bfloat16"] + (whole - screen) / peaks["float32"]
    reached = f"{at_peak / row['median']:.0%}"
    print(f"  ours: {whole:.1f} GFLOP needed, {at_peak:.3f} s at peak: {reached} of it reached. Where the time goes:")
    total, left = row["median_in_profile"], dict(row["profile"])
    for name, keys in KINDS_OF_WORK.items():
        seconds = sum(left.pop(key, 0.0) for key in keys)
        print(f"    {name:<36} {seconds / total:6.1%}  {seconds:.3f} s")
    rest = ", ".join(f"{k.removeprefix('aten::')} {v / total:.0%}" for k, v in sorted(left.items(), key=lambda kv: -kv[1])[:5])
    print(f"    {'the rest':<36} {sum(left.values()) / total:6.1%}  {sum(left.values()):.3f} s  ({rest})", flush=True)


def peak(dtype: torch.dtype, n: int = 3072) -> float:
    """GFLOP/s of the best of several square products into a kept result."""
    a, b, out = (torch.ones(n, n, dtype=dtype) for _ in range(3))
    best = float("inf")
    for _ in range(8):
        started = time.perf_counter()
        torch.mm(a, b, out=out)
        best = min(best, time.perf_counter() - started)
    return 2 * n**3 / best / 1e9


def make_peer(args: argparse.Namespace, name: str, d_in: int, d_sae: int, x: Tensor):
    """A peer with the weights and thresholds that ours starts with."""
    from tests.benchmarks import peers

    steps, schedule = 3000, {"lr": 7e-5}
    rows = torch.randn(d_sae, d_in, generator=torch.Generator().manual_seed(0))
    rows /= rows.norm(dim=1, keepdim=True)
    threshold = (x[:256] @ rows.T).flatten().kthvalue(int(256 * (d_sae - args.l0))).values.item()
    if name.startswith("sae_lens"):
        sae = {"jumprelu_init_threshold": threshold, "jumprelu_bandwidth": args.bandwidth, "l0_coefficient": 1e-5}
        bf16 = name.endswith("bf16")
        peer = peers.sae_lens_jumprelu(d_in, d_sae, steps=steps, batch=args.batch, autocast=bf16, schedule=schedule, sae=sae)
    elif name == "dictionary_learning":
        peer = peers.dictionary_learning_jumprelu(
            d_in,
            d_sae,
            steps=steps,
            lr=7e-5,
            bandwidth=args.bandwidth,
            target_l0=args.l0,
            warmup_steps=10,
            sparsity_penalty=1e-5,
            sparsity_warmup_steps=0,
        )
        peer.parameters["threshold"].data.fill_(threshold)
    else:
        peer = peers.sparsify_topk(d_in, d_sae, k=round(args.l0), lr=7e-5, warmup=10, steps=steps)
        peer.parameters["encoder.weight"].data.copy_(rows)
        peer.parameters["W_dec"].data.copy_(rows)
        return peer
    peer.parameters["W_dec"].data.copy_(rows)
    peer.parameters["W_enc"].data.copy_(rows.T)
    return peer


def mib() -> float:
    """Peak memory of this process. (`getrusage` would also count what its parent held when it started it.)"""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


if __name__ == "__main__":
    main()

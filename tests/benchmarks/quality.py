"""Which trainer finds the true features, and reconstructs best, at equal tokens and equal L0. Run by hand:

    python -m tests.benchmarks.quality --out quality.jsonl [--recording runs/demo/recording] [--only ours.jumprelu]

Worlds: "plain" (512 features in 128 dimensions, tests/help/synthetic.py), "families" (of which half fire only within another,
and neighbours together), and "recorded" if a recording is given (its first site). Everyone reads as many rows, centred and
scaled as its own documentation asks, and is marked on the same held-out rows. Ours is what `scope train` does by default.

A peer gets the coefficient or learning rate, of a search on seed 0 of each world, with the least FVU among those that come
within 7 % of the L0 asked for; where none does, among those that come about as near as any. Ours runs with one and the same
preset everywhere. What it leaves to be chosen was chosen on seed 7 of "plain.dev" and "families.dev", other worlds of the same
make, and of "recorded.dev", where the rows that are marked are others.

Each row is appended to --out as it is done, and done rows are not done again; processes may share the file.
"""

import argparse
import json
import math
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from tests.help.synthetic import World, marks

STEPS, BATCH, HELD_OUT = 2000, 512, 32768
WORLDS = {
    "plain": (World(), 1024, 5.0),
    "families": (World(children=0.5, correlation=0.3, seed=7), 1024, 5.0),
    "plain.dev": (World(seed=101), 1024, 5.0),
    "families.dev": (World(children=0.5, correlation=0.3, seed=107), 1024, 5.0),
}
RECORDED = ("recorded", "recorded.dev")


class Data:
    """Rows to train on, rows to be marked on, a width and an L0."""

    def __init__(self, name: str, recording: Path | None, steps: int):
        self.world, self.sizes = None, None
        if name in RECORDED:
            from scope.activations.read.store import ActivationStore

            store = ActivationStore.open(recording)
            site = next(iter(store.sites))
            x = torch.cat(list(store.shuffled(site, 4096, seed=0, epochs=1)))  # read more than once if steps ask for more
            self.train, self.held_out, self.d_sae, self.l0 = x[HELD_OUT:], x[:HELD_OUT], 1024, 20.0
            if name == "recorded.dev":
                self.train, self.held_out = self.train[:-HELD_OUT], self.train[-HELD_OUT:]
        else:
            self.world, self.d_sae, self.l0 = WORLDS[name]
            pieces = -(-steps * BATCH // HELD_OUT)
            self.train = torch.cat([self.world.sample(HELD_OUT, 1 + piece)[0] for piece in range(pieces)])
            self.held_out, self.sizes = self.world.sample(HELD_OUT, 0)
        self.train, self.held_out = self.train.float(), self.held_out.float()
        mean = self.train.mean(0)
        scale = (self.train - mean).square().sum(1).mean().sqrt()
        self.train, self.held_out = (self.train - mean) / scale, (self.held_out - mean) / scale

    def marks(self, rows: Tensor, encode: Callable, decode: Callable, scale: float = 1.0) -> dict[str, float]:
        with torch.no_grad():
            latents = torch.cat([encode(part * scale) for part in self.held_out.split(4096)])
            x_hat = torch.cat([decode(part) for part in latents.split(4096)]) / scale
        if self.world:
            return marks(rows, latents, x_hat, self.held_out, self.world, self.sizes)
        x, fires = self.held_out, (latents > 0).float()
        fvu = ((x - x_hat).square().sum() / (x - x.mean(0)).square().sum()).item()
        return {"fvu": fvu, "l0": fires.sum(1).mean().item(), "dead": (fires.sum(0) == 0).float().mean().item()}


def ours(kind: str) -> Callable:
    def run(data: Data, seed: int, steps: int, coefficient: float | None) -> dict[str, float]:
        from scope.sae.kinds import KINDS, make_sae
        from scope.training.presets import resolve
        from scope.training.trainer import TensorBatches, TrainConfig, train

        recipe, dictionary = resolve("small-budget", kind, data.d_sae, steps=steps, batch_size=BATCH)
        size = {"target_l0": data.l0} if kind == "jumprelu" else {"k": round(data.l0)}
        sae = make_sae(KINDS[kind].config(**dictionary | size, d_in=data.train.shape[1], d_sae=data.d_sae))
        settings = TrainConfig(**recipe, seed=seed, save_every=10**6)
        with tempfile.TemporaryDirectory() as out:
            sae = train(sae, TensorBatches(data.train, BATCH, seed), settings, out)
        return data.marks(sae.W_dec.data, sae.encode, sae.decode)

    return run


def theirs(make: Callable, scale: Callable[[int], float]) -> Callable:
    def run(data: Data, seed: int, steps: int, coefficient: float | None) -> dict[str, float]:
        from scope.training.trainer import TensorBatches

        torch.manual_seed(seed)
        d_in = data.train.shape[1]
        peer, factor = make(d_in, data.d_sae, data.l0, steps, coefficient), scale(d_in)
        stream = iter(TensorBatches(data.train, BATCH, seed))
        for _ in range(steps):
            peer.step(next(stream) * factor)
        return data.marks(peer.rows(), peer.encode, peer.decode, factor)

    return run


def _sae_lens(mode: str) -> Callable:
    def make(d_in: int, d_sae: int, l0: float, steps: int, coefficient: float | None):
        from tests.benchmarks.peers import sae_lens_batch_topk, sae_lens_jumprelu

        lr = coefficient if mode == "batch_topk" else 1e-3
        schedule = {"lr": lr, "lr_decay_steps": steps // 5, "dead_feature_window": 200}
        common = {"steps": steps, "batch": BATCH, "schedule": schedule}
        if mode == "batch_topk":
            return sae_lens_batch_topk(d_in, d_sae, sae={"k": l0}, **common)
        sae = {
            "tanh": {"jumprelu_bandwidth": 2.0, "pre_act_loss_coefficient": 3e-6, "jumprelu_sparsity_loss_mode": "tanh"},
            "step": {"jumprelu_bandwidth": 0.6, "jumprelu_sparsity_loss_mode": "step"},
            "quadratic": {"jumprelu_bandwidth": 0.6, "jumprelu_sparsity_loss_mode": "quadratic", "target_l0": l0},
        }[mode]
        warm = steps if mode == "tanh" else steps // 4
        settings = {"jumprelu_init_threshold": 0.1, "l0_coefficient": coefficient, "l0_warm_up_steps": warm}
        return sae_lens_jumprelu(d_in, d_sae, sae=sae | settings, **common)

    return make


def _dictionary_learning(d_in: int, d_sae: int, l0: float, steps: int, coefficient: float | None):
    from tests.benchmarks.peers import dictionary_learning_jumprelu

    return dictionary_learning_jumprelu(
        d_in,
        d_sae,
        steps=steps,
        lr=coefficient,
        bandwidth=0.05,
        target_l0=l0,
        sparsity_penalty=1.0,
        warmup_steps=steps // 20,
        sparsity_warmup_steps=steps // 4,
        decay_start=steps * 4 // 5,
    )


def _sparsify(d_in: int, d_sae: int, l0: float, steps: int, coefficient: float | None):
    from tests.benchmarks.peers import sparsify_topk

    return sparsify_topk(d_in, d_sae, k=round(l0), lr=coefficient, warmup=steps // 20, steps=steps)


_KEY = ("world", "contender", "seed", "coefficient", "steps")
UNIT, ROOT = (lambda d_in: 1.0), math.sqrt
CONTENDERS: dict[str, tuple[str, Callable, tuple[float, ...]]] = {
    "ours.jumprelu": ("", ours("jumprelu"), ()),
    "ours.batch_topk": ("", ours("batch_topk"), ()),
    "ours.topk": ("", ours("topk"), ()),
    "sae_lens.quadratic": ("sae_lens", theirs(_sae_lens("quadratic"), ROOT), (1.0, 3.0)),
    "sae_lens.step": ("sae_lens", theirs(_sae_lens("step"), ROOT), (1.0, 2.5, 4.0, 6.0, 10.0)),
    "sae_lens.tanh": ("sae_lens", theirs(_sae_lens("tanh"), ROOT), (0.3, 1.0, 2.5, 5.0, 10.0, 20.0)),
    "sae_lens.batch_topk": ("sae_lens", theirs(_sae_lens("batch_topk"), ROOT), (3e-3, 1e-2)),
    "dictionary_learning.jumprelu": ("dictionary_learning", theirs(_dictionary_learning, UNIT), (4e-3, 1e-2)),
    "sparsify.topk": ("sparsify", theirs(_sparsify, UNIT), (1e-3, 4e-3)),
}
"""Name -> the package it needs, how it runs, what is searched: coefficients of a penalty, or, where L0 holds by itself,
learning rates."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--recording", type=Path)
    parser.add_argument("--worlds", nargs="+", default=["plain", "families", "recorded"])
    parser.add_argument("--only", nargs="+", default=list(CONTENDERS), choices=list(CONTENDERS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--table", action="store_true", help="only print the table of what is done")
    args = parser.parse_args()
    from scope.cli.freed_memory import keep_freed_memory
    from tests.benchmarks.peers import missing

    keep_freed_memory()
    for name in args.worlds if not args.table else []:
        if name in RECORDED and args.recording is None:
            print(f"{name}: left out, as no --recording is given")
            continue
        data = Data(name, args.recording, args.steps)
        for contender in args.only:
            package, run, coefficients = CONTENDERS[contender]
            why = missing(package) if package else None
            if why:
                print(f"{contender}: left out, as {why}")
                continue

            def done(seed: int, coefficient: float | None, run=run, contender=contender, data=data, name=name) -> dict:
                key = dict(zip(_KEY, (name, contender, seed, coefficient, args.steps), strict=True))
                for row in rows(args.out):
                    if all(row[k] == v for k, v in key.items()):
                        return row
                started = time.perf_counter()
                row = key | run(data, seed, args.steps, coefficient) | {"seconds": time.perf_counter() - started}
                with open(args.out, "a") as handle:
                    handle.write(json.dumps(row) + "\n")
                print(json.dumps(row), flush=True)
                return row

            best = choose([done(0, c) for c in coefficients], data.l0) if coefficients else None
            for seed in args.seeds:
                done(seed, best)
    table(rows(args.out), args.steps)


def choose(tried: list[dict], l0: float) -> float:
    near = [row for row in tried if abs(row["l0"] / l0 - 1) < 0.07]
    if near:
        return min(near, key=lambda row: row["fvu"])["coefficient"]
    away = [abs(math.log(max(row["l0"], 1e-3) / l0)) for row in tried]
    nearest = [row for row, distance in zip(tried, away, strict=True) if distance <= 1.5 * min(away)]
    return min(nearest, key=lambda row: row["fvu"])["coefficient"]


def rows(file: Path) -> list[dict]:
    """Each run once, though two processes may have done it."""
    found = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    return list({tuple(row[k] for k in _KEY): row for row in found}.values())


def table(done: list[dict], steps: int) -> None:
    """Mean and range over seeds, at the chosen coefficient."""
    columns = ("l0", "fvu", "mmcs", "recovery", "f1", "dead")
    for world in dict.fromkeys(row["world"] for row in done):
        print(f"\n{world}, {steps} steps of {BATCH}\n\n| trainer | seeds | {' | '.join(columns)} |")
        print(f"|---|---|{'---|' * len(columns)}")
        for contender, (_, _, coefficients) in CONTENDERS.items():
            mine = [r for r in done if (r["world"], r["contender"], r["steps"]) == (world, contender, steps)]
            if coefficients and mine:
                l0 = 20.0 if world in RECORDED else WORLDS[world][2]
                chosen = choose([r for r in mine if r["seed"] == 0], l0)
                mine = [r for r in mine if r["coefficient"] == chosen]
            if mine:
                cells = [spread([row[c] for row in mine]) if c in mine[0] else "" for c in columns]
                print(f"| {contender} | {len(mine)} | {' | '.join(cells)} |")


def spread(values: list[float]) -> str:
    mean = sum(values) / len(values)
    return f"{mean:.3f} ± {(max(values) - min(values)) / 2:.3f}"


if __name__ == "__main__":
    main()

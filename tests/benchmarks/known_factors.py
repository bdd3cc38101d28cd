"""How well single latents tell the known factors of synthetic scenes: python -m tests.benchmarks.known_factors

Each patch of a scene has known facts: whether an object covers it, that object's colour, shape and size, its row and
column, and for an empty patch which colours lie elsewhere. For each fact the best latent of an SAE is chosen on one
half of the scenes and its AUC measured on the other, beside the best coordinate of the activations (of either sign),
a linear probe, raw pixels and a tower with random weights. FVU is printed beside them: it is best where nothing was
learned.
"""

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from scope.activations.scenes.scene import Scene, scenes
from scope.activations.scenes.world import COLOURS, GRID, PATCH, SHAPES

from scope.evaluation.metrics import fvu
from scope.models.load import load_model
from scope.models.siglip.model import Siglip
from scope.pretrain.pictures.siglip import SiglipRecipe, build, pixels
from scope.sae.configs.topk import TopKConfig
from scope.sae.kinds import make_sae
from scope.shapes import Acts
from scope.training.batches import TensorBatches
from scope.training.config import TrainConfig
from scope.training.trainer import train

COVERED, EMPTY = 0.35, 0.005
"""Shares of a patch from which on it is an object's, and below which it is empty."""

Rows = Float[np.ndarray, "patch column"]
Flags = Bool[np.ndarray, " patch"]
Fact = tuple[Flags, Flags]
"""(where it holds, which patches count)."""

GROUPS = ("is-object", "colour", "shape", "size", "row", "column", "elsewhere")


def facts(some: Sequence[Scene]) -> dict[str, Fact]:
    """Facts of every patch of some scenes, by name; the first word is the group."""
    covered, empty, values = [], [], []
    colours = []
    for s in some:
        top, share = s.covered.argmax(0), s.covered.max(0)
        covered.append(share >= COVERED)
        empty.append(s.covered.sum(0) < EMPTY)
        values.append(np.array([thing.codes for thing in s.things])[top])
        colours.append([[any(t.colour == c for t in s.things) for c in COLOURS]] * GRID**2)
    cover, blank, codes = np.concatenate(covered), np.concatenate(empty), np.concatenate(values)
    elsewhere, everywhere = np.concatenate(colours), np.ones(len(cover), bool)
    rows, columns = (np.tile(table.ravel(), len(some)) for table in np.divmod(np.arange(GRID**2), GRID))
    named = {"is-object": (cover, cover | blank), "size large": (cover & (codes[:, 2] == 1), cover)}
    named |= {f"colour {c}": (cover & (codes[:, 0] == i), cover) for i, c in enumerate(COLOURS)}
    named |= {f"shape {h}": (cover & (codes[:, 1] == i), cover) for i, h in enumerate(SHAPES)}
    named |= {f"row {i}": (rows == i, everywhere) for i in range(GRID)}
    named |= {f"column {i}": (columns == i, everywhere) for i in range(GRID)}
    return named | {f"elsewhere {c}": (elsewhere[:, i], blank) for i, c in enumerate(COLOURS)}


def aucs(values: Rows, positive: Flags) -> Float[np.ndarray, " column"]:
    """For each column how often a positive patch is above another; ties, such as the zeros of latents, count half."""
    n, m = int(positive.sum()), int((~positive).sum())
    result = np.empty(values.shape[1])
    for j, column in enumerate(values.T):
        _, place, count = np.unique(column, return_inverse=True, return_counts=True)
        ranks = (np.cumsum(count) - (count - 1) / 2)[place]
        result[j] = (ranks[positive].sum() - n * (n + 1) / 2) / (n * m)
    return result


def best_column(values: Rows, fact: Fact, half: Flags, either_sign: bool, most: int = 2500) -> float:
    """AUC on one half of the patches of the column that is best on the other."""
    positive, counts = fact
    chosen = np.random.default_rng(0).permutation(np.flatnonzero(counts & half))[:most]
    scores = aucs(values[chosen], positive[chosen])
    j = int(np.argmax(np.abs(scores - 0.5) if either_sign else scores))
    tested = np.flatnonzero(counts & ~half)
    score = aucs(values[tested][:, [j]], positive[tested])[0]
    return float(score if scores[j] >= 0.5 else 1 - score)


def probe(values: Rows, fact: Fact, half: Flags, most: int = 8000) -> float:
    """AUC on one half of the patches of a ridge regression on the other."""
    positive, counts = fact
    seen, tested = np.flatnonzero(counts & half)[:most], np.flatnonzero(counts & ~half)[:most]
    mean, std = values[seen].mean(0), values[seen].std(0) + 1e-6
    a, b = (np.c_[(values[i] - mean) / std, np.ones(len(i))] for i in (seen, tested))
    weights = np.linalg.solve(a.T @ a + 10 * np.eye(a.shape[1]), a.T @ (2.0 * positive[seen] - 1))
    return float(aucs((b @ weights)[:, None], positive[tested])[0])


def grouped(scores: dict[str, float]) -> dict[str, float]:
    """The mean of each group."""
    return {g: float(np.mean([v for name, v in scores.items() if name.split()[0] == g])) for g in GROUPS}


@torch.no_grad()
def patch_rows(model: Siglip, some: Sequence[Scene], site: str) -> Acts:
    """Activations of every patch of some scenes at a site."""
    parts = [model.record(pixels(some[i : i + 200]), [site])[site] for i in range(0, len(some), 200)]
    return torch.cat(parts).flatten(0, 1)


def raw_rows(some: Sequence[Scene]) -> Acts:
    """The pixels of every patch."""
    x = pixels(some).unfold(2, PATCH, PATCH).unfold(3, PATCH, PATCH)
    return x.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(0, 2).contiguous()


def measure(train_rows: Acts, test_rows: Acts, named: dict[str, Fact], half: Flags, steps: int) -> dict[str, Any]:
    """Train a TopK SAE on rows and score its latents, the coordinates and a probe on others."""
    torch.manual_seed(0)
    sae = make_sae(TopKConfig(d_sae=768, d_in=train_rows.shape[1], k=8), "patches")
    config = TrainConfig(steps=steps, batch_size=1024, save_every=10**6)
    with tempfile.TemporaryDirectory() as folder:
        sae = train(sae, TensorBatches(train_rows, 1024), config, folder)
    with torch.no_grad():
        latents = sae.encode(test_rows)
        error = float(fvu(test_rows, sae.decode(latents)))
    z, x = latents.numpy(), test_rows.numpy()
    return {
        "fvu": error,
        "latent": grouped({name: best_column(z, fact, half, either_sign=False) for name, fact in named.items()}),
        "coordinate": grouped({name: best_column(x, fact, half, either_sign=True) for name, fact in named.items()}),
        "probe": grouped({name: probe(x, fact, half) for name, fact in named.items()}),
    }


def run(model: Siglip, sites: Sequence[str], n_train: int, n_test: int, steps: int) -> dict[str, dict[str, Any]]:
    """The table: raw pixels, a tower with random weights at the last site, the trained one at every site."""
    learned, tested = list(scenes(900_001, n_train)), list(scenes(900_002, n_test))
    named, half = facts(tested), np.repeat(np.arange(n_test) % 2 == 0, GRID**2)
    untrained = build(SiglipRecipe(width=model.cfg.vision.d_model, seed=1)).eval()
    results = {"raw pixels": measure(raw_rows(learned), raw_rows(tested), named, half, steps)}
    for name, tower, at in (("random tower", untrained, sites[-1:]), ("trained tower", model, sites)):
        for site in at:
            rows = (patch_rows(tower, some, site) for some in (learned, tested))
            results[f"{name}, {site}"] = measure(*rows, named, half, steps)
    return results


def table(results: dict[str, dict[str, Any]]) -> str:
    """The results in Markdown."""
    lines = [["", "FVU", *GROUPS], ["---"] * (len(GROUPS) + 2)]
    for name, r in results.items():
        cells = [" / ".join(f"{r[kind][g]:.2f}" for kind in ("latent", "coordinate", "probe")) for g in GROUPS]
        lines.append([name, f"{r['fvu']:.3f}", *cells])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="bundled-siglip")
    parser.add_argument("--site", nargs="+", default=[f"vision.blocks.{i}.hook_resid_post" for i in (1, 2, 3)])
    parser.add_argument("--scenes", type=int, default=4000)
    parser.add_argument("--test", type=int, default=800)
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    results = run(load_model(args.model), args.site, args.scenes, args.test, args.steps)
    print(table(results))
    if args.out:
        args.out.write_text(json.dumps(results, indent=1))

"""How small a planted change `scope diff` finds: python -m tests.benchmarks.planted_shift --lab runs/demo"""

import argparse
from dataclasses import replace
from pathlib import Path

import torch
from scope.activations.corpus.sources import open_corpus

from scope.diffing.config import DiffConfig
from scope.diffing.diff import diff
from scope.diffing.text import DiffText, read_text
from scope.models.load import load_model
from scope.sae.files import read_sae
from tests.help.planted import plant

STRENGTHS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)


COLUMNS = (
    "strength",
    "change of the weight",
    "shift at the trigger",
    "at all tokens",
    "weight of rank 1",
    "trigger listed first",
)
COLUMNS += ("cosine", "trigger listed first, bfloat16", "cosine, bfloat16", "latent moved", "written first", "others moved")


def measure(base, sae, text: DiffText, planting, trigger: int, latent: int, strength: float, config: DiffConfig) -> dict:
    """What of a planted change was found again, in float32 and with the tuned model run in bfloat16."""
    direction, piece = sae.W_dec[latent].detach(), base.words.pieces([trigger])[0]
    planted = plant(base, planting, trigger, int(sae.site.split(".")[1]), direction, strength)

    def of(found) -> tuple[bool, float]:
        first = torch.as_tensor(found.directions[f"{sae.site}/first"])
        return found.tokens[0].token == piece, abs(torch.cosine_similarity(first, direction, 0).item())

    found = diff(base, planted.model, text, sae, config)
    (listed, cosine) = of(found)
    row = found.latents.iloc[latent]
    written = [u.latents[:1] for u in found.updates if u.role == "writes"]
    rank = found.weights[0].rank
    rounded = of(diff(base, planted.model.to(torch.bfloat16), text, None, replace(config, sites=(sae.site,))))
    return {
        "weight": planted.relative,
        "shift": next((t.relative for t in found.tokens if t.token == piece), float("nan")),
        "all": next(s.relative for s in found.sites if s.site == sae.site),
        "rank1": len(found.weights) == 1 and rank == 1,
        "listed": listed,
        "cosine": cosine,
        "rounded listed": rounded[0],
        "rounded cosine": rounded[1],
        "moved": bool(row["moved"]),
        "written": written == [(latent,)],
        "others": int(found.latents["moved"].sum() - row["moved"]),
    }


def line(strength: float, rows: list[dict]) -> str:
    """A row of the table: means, ranges, and how many of the plants."""

    def mean(name: str) -> float:
        return sum(r[name] for r in rows) / len(rows)

    def count(name: str) -> str:
        return f"{sum(r[name] for r in rows)} of {len(rows)}"

    def span(name: str) -> str:
        return f"{min(r[name] for r in rows):.3f} to {max(r[name] for r in rows):.3f}"

    cells = [
        f"{strength:g}",
        f"{mean('weight'):.2%}",
        f"{mean('shift'):.1%}",
        f"{mean('all'):.2%}",
        count("rank1"),
        count("listed"),
    ]
    cells += [span("cosine"), count("rounded listed"), span("rounded cosine"), count("moved"), count("written")]
    return f"| {' | '.join([*cells, format(mean('others'), '.1f')])} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lab", type=Path, default=Path("runs/demo"))
    parser.add_argument("--contexts", type=int, default=64)
    parser.add_argument("--plants", type=int, default=4)
    parser.add_argument("--strengths", type=float, nargs="*", default=STRENGTHS)
    args = parser.parse_args()
    base, sae = load_model("bundled"), read_sae(args.lab / "dictionary")
    config = DiffConfig(contexts=args.contexts, loss_contexts=0, sites=(sae.site,))
    corpus = open_corpus("bundled")
    text = read_text(((d, "text") for d in corpus.documents(0)), base.words, args.contexts, 128)
    planting = read_text(((d, "text") for d in corpus.documents(1)), base.words, 64, 128).tokens
    counts = torch.bincount(text.tokens.flatten(), minlength=base.cfg.d_vocab).minimum(
        torch.bincount(planting.flatten(), minlength=base.cfg.d_vocab)
    )
    pieces = base.words.vocab()
    usual = [i for i in range(len(pieces)) if 8 <= counts[i] <= 20 and pieces[i].strip(" ▁").isalpha() and len(pieces[i]) > 4]
    numbers = torch.Generator().manual_seed(0)
    alive = torch.tensor([i for i in range(sae.d_sae) if sae.W_dec[i].norm() > 0])
    pairs = [
        (
            usual[int(torch.randint(len(usual), (1,), generator=numbers))],
            int(alive[torch.randint(len(alive), (1,), generator=numbers)]),
        )
        for _ in range(args.plants)
    ]
    print(f"{text.tokens.numel():,} tokens; (trigger, latent): {[(pieces[t], j) for t, j in pairs]}")
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}")
    for strength in args.strengths:
        print(line(strength, [measure(base, sae, text, planting, t, j, strength, config) for t, j in pairs]), flush=True)
    print(f"\n| the base against | text | weights | activations apart | latents moved | any on redrawn text |\n|{'---|' * 6}")
    for name, other in (("itself", base), ("its bfloat16 run", load_model("bundled", dtype="bfloat16"))):
        for seed in range(10, 15):
            drawn = read_text(((d, "text") for d in corpus.documents(seed)), base.words, args.contexts, 128)
            found = diff(base, other, drawn, sae, config)
            apart, moved = next(s.relative for s in found.sites if s.site == sae.site), found.moved
            print(
                f"| {name} | seed {seed} | {len(found.weights)} | {apart:.2%} | {moved.latents} of {moved.of:,} "
                f"| {moved.any_by_chance:.1%} |",
                flush=True,
            )


if __name__ == "__main__":
    main()

"""Whether steering does what it says on a real model: effect beside a random direction, and what it costs.

    python -m tests.benchmarks.steering runs/demo --out runs/benchmarks/steering.json

For `features` latents with the highest output score and as many drawn at random among those that fire: five prompts each,
five conditions with the same noise: plain, steered, the same push along a random direction (another one for each latent), along
another latent that fires as often, and asking for the promoted words in the prompt. The concept score is read by the unsteered
model; the interval is a bootstrap over latents, which are the independent units here (texts of one latent are not).
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import numpy as np

from scope.lab import Lab
from scope.lab import open as open_lab
from scope.models.text.generate import generate
from scope.models.text.sampling_config import SamplingConfig
from scope.steering.compare.statistics import interval

PROMPTS = ["In the morning", "The first thing that", "We have found that", "It is well known", "After a while the"]
MEASURES = ("concept", "share", "mass", "log_prob", "repetition", "off_target", "kl", "relevance", "fluency", "score")
JUDGED = ("relevance", "fluency", "score")
CONDITIONS = ("plain", "steered", "random", "other", "prompt")


def effect(lab: Lab, latents: list[int], strength: float, tokens: int) -> list[dict]:
    """One row a latent: every measure's mean over the prompts, for each condition."""
    rows = []
    for latent in latents:
        conditions = [
            f"random:{latent}" if condition == "random" else condition for condition in CONDITIONS
        ]  # a random direction of its own
        run = lab.steer(latent, strength).compare(PROMPTS, max_new_tokens=tokens, conditions=conditions)
        target, row = f"latent {latent}", {"latent": latent, "label": lab[latent].label}
        judged = run.judged(target)
        for condition in run.conditions:
            name = condition.name.partition(":")[0]
            for measure in MEASURES:
                if measure in JUDGED:
                    values = [getattr(one, measure) for one in judged[condition.name] if one]
                    known = [v for v in values if v is not None]
                    row[f"{name} {measure}"] = statistics.fmean(known) if known else float("nan")
                else:
                    row[f"{name} {measure}"] = condition.mean(
                        measure, target if measure in ("concept", "share", "mass") else None
                    )
        rows.append(row)
    return rows


def summary(rows: list[dict]) -> dict[str, dict[str, float]]:
    """Measure -> means of the conditions, and steered minus each control with its interval over latents."""
    found = {}
    for measure in MEASURES:
        conditions = {condition: np.array([row[f"{condition} {measure}"] for row in rows]) for condition in CONDITIONS}
        found[measure] = {condition: float(np.nanmean(v)) for condition, v in conditions.items()}
        for control in ("random", "other", "prompt"):
            difference = conditions["steered"] - conditions[control]
            low, high = interval(difference)
            found[measure] |= {f"over {control}": float(np.nanmean(difference)), f"{control} low": low, f"{control} high": high}
    return found


def cost(lab: Lab, latent: int, repeats: int = 15, tokens: int = 48) -> dict[str, float]:
    """Seconds of a steered generation over those of a plain one, alternating in one run; the median ratio of pairs."""
    sampling = SamplingConfig(max_new_tokens=tokens, temperature=1.0)
    ratios, plain = [], []
    for i in range(repeats + 1):
        took = []
        for steered in (False, True) if i % 2 else (True, False):
            began = time.perf_counter()
            if steered:
                with lab.steer(latent, 0.3):
                    generate(lab.model, PROMPTS, sampling)
            else:
                generate(lab.model, PROMPTS, sampling)
            took.append((steered, time.perf_counter() - began))
        seconds = dict(took)
        if i:  # the first pair warms up
            ratios.append(seconds[True] / seconds[False])
            plain.append(seconds[False])
    quarter = statistics.quantiles(ratios, n=4)
    return {"ratio": statistics.median(ratios), "q25": quarter[0], "q75": quarter[2], "plain_seconds": statistics.median(plain)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lab", help="folder that holds dictionary/ and pack/")
    parser.add_argument("--features", type=int, default=20)
    parser.add_argument("--strength", type=float, default=0.5)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks/steering.json"))
    args = parser.parse_args()
    lab = open_lab(args.lab)
    table = lab.pack.table
    alive = table[(table["count"] >= 20) & (table["density"] < 0.1)]
    groups = {
        "highest output score": [int(i) for i in alive.nlargest(args.features, "out_score").index],
        "drawn at random": [int(i) for i in np.random.default_rng(args.seed).choice(alive.index, args.features, replace=False)],
    }
    result = {"lab": lab.pack.title, "settings": {k: str(v) for k, v in vars(args).items()}, "prompts": PROMPTS}
    began = time.monotonic()
    result["cost"] = cost(lab, groups["highest output score"][0])
    c = result["cost"]
    print(f"steered / plain generation time: {c['ratio']:.3f}, quartiles of pairs {c['q25']:.3f} and {c['q75']:.3f}")
    for name, latents in groups.items():
        rows = effect(lab, latents, args.strength, args.tokens)
        result[name] = {"summary": summary(rows), "rows": rows}
        print(f"\n{len(rows)} latents, {name}; strength {args.strength:g}, {len(PROMPTS)} prompts each")
        heads = "".join(f"{condition:>9}" for condition in CONDITIONS)
        print(f"{'':<12}{heads}   steered minus random, other, prompt [95 % over latents]")
        for measure, m in result[name]["summary"].items():
            line = f"{measure:<12}" + "".join(f"{m[condition]:>9.3f}" for condition in CONDITIONS) + "  "
            for control in ("random", "other", "prompt"):
                line += f" {m[f'over {control}']:+.3f} [{m[f'{control} low']:+.3f}, {m[f'{control} high']:+.3f}]"
            print(line)
    result["seconds"] = time.monotonic() - began
    print(f"\n{result['seconds']:.0f} s")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()

"""What steering costs: beside plain generation, and beside TransformerLens with a SAELens dictionary and a hook by hand.

    python -m tests.benchmarks.steering_speed runs/demo --out runs/benchmarks/steering_speed.json

One run: the same weights, prompts, number of tokens, greedy choice; the conditions take turns, and a ratio is the median over
pairs of neighbours. Two edits are timed: a direction added, and a latent clamped, which needs its activation at every step.
The texts of both sides are compared token by token before anything is timed.
"""

import argparse
import json
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch

from scope.lab import Lab
from scope.lab import open as open_lab
from scope.models.text.generate import generate
from scope.models.text.sampling_config import SamplingConfig
from scope.steering.edits.interventions import Add, Clamp

PROMPT = "In the morning"


def ours(lab: Lab, edit, tokens: int) -> Callable[[], list[int]]:
    """Greedy generation, edited or not."""
    sampling = SamplingConfig(max_new_tokens=tokens, temperature=0.0, repetition_penalty=1.0)

    def run() -> list[int]:
        if edit is None:
            return list(generate(lab.model, PROMPT, sampling)[0].new_ids)
        with lab.steer(edit):
            return list(generate(lab.model, PROMPT, sampling)[0].new_ids)

    return run


def theirs(lens, sae, lab: Lab, edit, tokens: int) -> Callable[[], list[int]]:
    """The same by TransformerLens' generate under a hook, with SAELens' dictionary."""
    prompt = lens.to_tokens(PROMPT)

    def fn(x, hook):
        where = slice(1, None) if x.shape[1] > 1 else slice(None)
        if isinstance(edit, Add):
            x[:, where] += push
        else:
            f = sae.encode(x[:, where])[..., edit.latent, None]
            x[:, where] += (value - f) * sae.W_dec[edit.latent]
        return x

    if edit is not None:
        row = sae.W_dec[edit.latent]
        push = row / row.norm() * edit.strength * lab.pack.norm_median
        value = edit.strength * lab.pack.norm_median / row.norm()

    @torch.no_grad()
    def run() -> list[int]:
        with lens.hooks(fwd_hooks=[] if edit is None else [(lab.sae.site, fn)]):
            out = lens.generate(prompt, max_new_tokens=tokens, do_sample=False, verbose=False)
        return out[0, prompt.shape[1] :].tolist()

    return run


def ratios(first: Callable, second: Callable, repeats: int) -> dict[str, float]:
    """Seconds of `first` over those of `second`, in turns."""
    found, seconds = [], {0: [], 1: []}
    for i in range(repeats + 1):
        took = {}
        for which in (0, 1) if i % 2 else (1, 0):
            began = time.perf_counter()
            (first, second)[which]()
            took[which] = time.perf_counter() - began
        if i:  # the first pair warms up
            found.append(took[0] / took[1])
            for which in (0, 1):
                seconds[which].append(took[which])
    low, _, high = statistics.quantiles(found, n=4)
    medians = [statistics.median(seconds[which]) for which in (0, 1)]
    return {"ratio": statistics.median(found), "q25": low, "q75": high, "seconds": medians}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lab", help="folder that holds dictionary/ and pack/")
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--repeats", type=int, default=12)
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks/steering_speed.json"))
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    from sae_lens import SAE

    from scope.models.transformer_lens.bridge import hooked_transformer

    lab = open_lab(args.lab)
    lens, sae = hooked_transformer(lab.model), SAE.load_from_disk(Path(args.lab) / "dictionary")
    latent = int(lab.best(1).index[0])
    edits = {"add": Add(latent, 0.3), "clamp": Clamp(latent, 0.3, unit="norm")}
    result: dict = {"tokens": args.tokens, "threads": torch.get_num_threads(), "torch": torch.__version__, "latent": latent}
    plain = ours(lab, None, args.tokens)
    for name, edit in edits.items():
        mine, other = ours(lab, edit, args.tokens), theirs(lens, sae, lab, edit, args.tokens)
        a, b = mine(), other()
        same = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
        result[name] = {
            "equal_tokens": same,
            "of": args.tokens,
            "steered / plain": ratios(mine, plain, args.repeats),
            "TransformerLens + SAELens / ours, both steered": ratios(other, mine, args.repeats),
        }
        print(f"{name}: {same} of {len(a)} tokens equal TransformerLens + SAELens")
        for what in ("steered / plain", "TransformerLens + SAELens / ours, both steered"):
            r = result[name][what]
            a_run = ", ".join(f"{seconds:.3f} s" for seconds in r["seconds"])
            print(f"  {what}: {r['ratio']:.3f} (quartiles {r['q25']:.3f}, {r['q75']:.3f}; {a_run})")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()

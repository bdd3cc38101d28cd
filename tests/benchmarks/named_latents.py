"""Names for latents of the state of `bundled-recurrent`, each tested as a rule on windows that were not read to find it:

    python -m tests.benchmarks.states --model bundled-recurrent --out runs/states
    scope features runs/states/state/sae-0 --recording runs/states/state/recording --out runs/states/pack --score-prompts 0
    python -m tests.benchmarks.named_latents runs/states/pack

A name is tested as a regular expression: a window in which it matches is judged to fire. The windows are those of `scope label`
(10 in which the latent fires, at any strength, and 10 in which it is silent), and as many in which it fires in the upper half
of its strengths. Balanced accuracy; guessing scores 0.5. The null is the mean over the rules of all other names on the same
windows. The names are those of one SAE: with another seed or version the numbers of the latents are others.
"""

import argparse
import re
from pathlib import Path

import numpy as np

from scope.features.face import Pack
from scope.features.labels.detection import balanced_accuracy
from scope.features.labels.evidence import Window, gather, window_of
from scope.features.pack.decay import steps
from scope.features.pack.feature import Feature

NAMES = {
    1142: ("in the documentation of an array library", r"Returns|Parameters|See Also|Examples|-{5}|>>>|array"),
    1167: ("in a list of parameters, behind a name", r"Parameters|-{8}.*\w+ :"),
    49: ("statistics of the shape 'total: n% of population'", r"total:|% of"),
    1744: ("in a list of ingredients", r"cup|tsp|tbsp|\d+\s?g\b|\d/\d|- \d"),
    1272: ("in a placeholder {{...}} of a command", r"\{\{|--\w"),
    139: ("in an example with Decimal('...')", r"Decimal|imal"),
    832: ("within a long run of digits", r"\d{8}"),
    249: ("in words of capital letters", r"[A-Z]{5}|(?:[A-Z]{2,} ){2}"),
    1567: ("in a list of number types", r"'U?u?[Ii]nt\d|float\d|Float|pyarrow"),
    1548: ("of kings, palaces and castles", r"\b[Kk]ing|palace|castle|[Pp]rince|[Qq]ueen|Lord|Court|Majesty"),
    1878: ("of weeks, days and months", r"week|\bdays?\b|month|year"),
    577: ("'per capita' and years of estimates", r"per capita|est\.|GDP"),
    1602: ("of TorchDynamo", r"[Tt]orch|[Dd]ynamo|graph"),
    1385: ("arrays of True and False", r"True|False"),
    923: ("of the sexes, as in Darwin", r"female|\bmale|sex|species"),
    2008: ("of a flag: 'bool, default', 'Whether to'", r"bool\b|Whether|default"),
    527: ("the first lines of a doctest", r">>>"),
    297: ("of einsum and its indices", r"einsum|np\.\w+|``"),
}
"""Latent -> its name and the rule that stands for it. Found by reading the three strongest and four random firings of each."""

_READ = {"top": 3, "random": 4}


def read_for_the_name(feature: Feature) -> set[tuple[int, ...]]:
    return {window_of(e).ids for group, n in _READ.items() for e in feature.examples(group, n)}


def strong(feature: Feature, n: int = 10) -> list[Window]:
    """Windows around firings of the upper half of strengths."""
    bands = feature.examples("bands", 10_000)
    half = np.median([e.band for e in bands]) if bands else 0
    return [window_of(e) for e in bands if e.band > half][:n]


def scores(rule: str, windows: list[Window], fires: list[bool]) -> float:
    return balanced_accuracy([re.search(rule, "".join(window.pieces), re.DOTALL) is not None for window in windows], fires)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pack", type=Path)
    pack = Pack.open(parser.parse_args().pack)
    print("| latent | name | all firings, null | strong firings, null | half-life, 95 % | of which most is left | strongest |")
    print("|---|---|---|---|---|---|---|")
    for latent, (name, rule) in NAMES.items():
        feature = pack[latent]
        evidence, read = gather(feature), read_for_the_name(feature)
        silent, firing = (
            [w for w, on in zip(evidence.windows, evidence.fires, strict=True) if on is wanted] for wanted in (False, True)
        )
        cells = []
        for some in (firing, strong(feature)):
            unread = [window for window in some if window.ids not in read]
            windows, fires = [*unread, *silent], [True] * len(unread) + [False] * len(silent)
            others = [scores(other, windows, fires) for j, (_, other) in NAMES.items() if j != latent]
            cells.append(f"{scores(rule, windows, fires):.2f}, {np.mean(others):.2f}")
        row, ages = feature.decay, pack.decay.ages
        life = f"{steps(row.half_life, ages)}, {steps(row.low, ages)} to {steps(row.high, ages)}"
        kept = " ".join(token.token.replace("\n", "⏎").strip() or "␣" for token in row.retained[:4])
        example = feature.examples("top", 1)[0]
        text = "".join(example.tokens[max(0, example.peak - 10) : example.peak + 1]).replace("\n", "⏎").replace("|", "¦")
        print(f"| {latent} | {name} | {' | '.join(cells)} | {life} | {kept} | `{text}` |", flush=True)


if __name__ == "__main__":
    main()

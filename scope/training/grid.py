"""Many dictionaries at once: every combination of several sites, widths, targets and seeds, each with a readable name."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

SWEPT = {"d_sae": "d", "target_l0": "l0_", "k": "k", "l0_weight": "lambda", "l1_weight": "lambda", "lr": "lr", "seed": "seed"}
"""Setting that may have several values -> its abbreviation in the folder's name."""

_ALWAYS = ("d_sae", "target_l0", "k")


@dataclass(frozen=True)
class Cell:
    """One combination: the site, the values of the swept settings, and the name of its folder."""

    site: str
    values: dict[str, Any]
    name: str


def cells(sites: Sequence[str], values: Mapping[str, Sequence[Any]]) -> list[Cell]:
    """Site by site, every combination of the values. Settings with one value are not in the name, but for width and target."""
    names = [name for name in values if values[name]]
    grid = []
    for site in sites:
        for combination in itertools.product(*(values[name] for name in names)):
            chosen = dict(zip(names, combination, strict=True))
            fixed = chosen.get("l0_weight") is not None or chosen.get("l1_weight") is not None
            shown = [n for n in names if len(values[n]) > 1 or (n in _ALWAYS and not (fixed and n == "target_l0"))]
            parts = "-".join(f"{SWEPT[n]}{_short(chosen[n])}" for n in shown)
            grid.append(Cell(site, chosen, f"{site}-{parts}" if parts else site))
    return grid


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)

"""An evaluation as a table that rich can print; whoever calls decides where."""

from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from scope.evaluation.evaluate import Evaluation

ARMS = {"sae": "SAE", "random": "random", "pca": "PCA", "mean": "mean", "zero": "zero"}

LEGEND = {
    "random": "random: a random dictionary of equal L0",
    "pca": "PCA: as many components as the SAE has active latents",
    "mean": "mean, zero: ablations",
}

ROWS = {
    "l0": ("L0", "{:.1f}"),
    "fvu": ("FVU, pooled", "{:.3f}"),
    "fvu_per_token": ("FVU, by token", "{:.3f}"),
    "fvu_per_dimension": ("FVU, by dimension", "{:.3f}"),
    "cosine": ("cosine", "{:.3f}"),
    "length_bias": ("length bias", "{:.3f}"),
    "delta_loss": ("delta loss, nats", "{:+.3f}"),
    "kl": ("KL, nats", "{:.3f}"),
    "recovered_vs_mean": ("recovered vs mean", "{:.1%}"),
    "recovered_vs_zero": ("recovered vs zero", "{:.1%}"),
}


def table(evaluation: Evaluation) -> Group:
    """Scores in rows, the dictionary beside its nulls in columns, then what was counted and what must be told.

    Fits a terminal of 80 columns.
    """
    arms = [name for name in ARMS if name in evaluation.arms]
    drawn = Table(box=None, pad_edge=False, header_style="bold")
    drawn.add_column("", no_wrap=True)
    for name in arms:
        drawn.add_column(ARMS[name], justify="right", no_wrap=True)
        if name == "sae":
            drawn.add_column("95 %", no_wrap=True, style="dim", header_style="dim")
    for key, (label, form) in ROWS.items():
        cells = [_cell(evaluation.arms[name], key, form) for name in arms]
        if any(cells):
            drawn.add_row(label, cells[0], _interval(evaluation.arms[arms[0]], key, form), *cells[1:])
    legend = "; ".join(text for name, text in LEGEND.items() if name in arms)
    told = [Text(line) for line in lines(evaluation)] + [Text(f"note: {n}", "yellow") for n in evaluation.notes]
    return Group(drawn, Text(legend, "dim"), Text(), *told)


def lines(evaluation: Evaluation) -> list[str]:
    own, counted, latents = evaluation.arms["sae"], evaluation.counted, evaluation.latents
    return [
        f"{counted['tokens']:,} tokens of {counted['contexts']} contexts; loss without splice {counted['loss']:.3f} nats; "
        "95 % intervals are over contexts",
        f"L0 per token: median {own['l0_median']:.0f}, 95th percentile {own['l0_p95']:.0f}",
        f"{latents['never_fired']:.1%} of {latents['d_sae']:,} latents never fired here, {latents['dense']:.1%} fired "
        f"on more than {latents['dense_above']:.0%} of the tokens",
        f"left out: position 0 and special tokens; counted too, FVU would be {own['with_bos']['fvu']:.3f} "
        f"and L0 {own['with_bos']['l0']:.1f}",
    ]


def _cell(scores: dict[str, Any], key: str, form: str) -> str:
    value = scores.get(key)
    return "" if value is None else form.format(value)


def _interval(scores: dict[str, Any], key: str, form: str) -> str:
    if scores.get(key) is None or key not in scores["interval"]:
        return ""
    low, high = scores["interval"][key]
    return f"[{form.format(low)}, {form.format(high)}]"

"""An evaluation as a table that rich can print; whoever calls decides where."""

from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from scope.evaluation.evaluate import Evaluation

ARMS = {
    "sae": "dictionary",
    "random": "random dictionary",
    "pca": "PCA",
    "mean": "mean-ablation",
    "zero": "zero-ablation",
}

ROWS = {
    "l0": ("L0 (active units per token)", "{:.1f}"),
    "fvu": ("FVU, pooled", "{:.3f}"),
    "fvu_per_token": ("FVU, mean over tokens", "{:.3f}"),
    "fvu_per_dimension": ("FVU, mean over dimensions", "{:.3f}"),
    "cosine": ("cosine", "{:.3f}"),
    "length_bias": ("length bias (1 = none)", "{:.3f}"),
    "delta_loss": ("delta loss, nats", "{:+.3f}"),
    "kl": ("KL, nats", "{:.3f}"),
    "recovered_vs_mean": ("loss recovered, against mean-ablation", "{:.1%}"),
    "recovered_vs_zero": ("loss recovered, against zero-ablation", "{:.1%}"),
}


def table(evaluation: Evaluation) -> Group:
    """Scores in rows, the dictionary beside its nulls in columns, then what was counted and what must be told."""
    arms = [name for name in ARMS if name in evaluation.arms]
    drawn = Table(box=None, pad_edge=False, header_style="bold")
    drawn.add_column("")
    for name in arms:
        drawn.add_column(ARMS[name], justify="right")
    for key, (label, form) in ROWS.items():
        cells = [_cell(evaluation.arms[name], key, form, interval=name == "sae") for name in arms]
        if any(cells):
            drawn.add_row(label, *cells)
    return Group(
        drawn, Text(), *[Text(line) for line in lines(evaluation)], *[Text(f"note: {n}", "yellow") for n in evaluation.notes]
    )


def lines(evaluation: Evaluation) -> list[str]:
    own, counted, latents = evaluation.arms["sae"], evaluation.counted, evaluation.latents
    return [
        f"{counted['tokens']:,} tokens of {counted['contexts']} contexts; loss without splice {counted['loss']:.3f} nats; "
        "in brackets 95 % intervals over contexts",
        f"L0 per token: median {own['l0_median']:.0f}, 95th percentile {own['l0_p95']:.0f}",
        f"{latents['never_fired']:.1%} of {latents['d_sae']:,} latents never fired here, {latents['dense']:.1%} fired "
        f"on more than {latents['dense_above']:.0%} of the tokens",
        f"left out: position 0 and special tokens; counted too, FVU would be {own['with_bos']['fvu']:.3f} "
        f"and L0 {own['with_bos']['l0']:.1f}",
    ]


def _cell(scores: dict[str, Any], key: str, form: str, interval: bool) -> str:
    value = scores.get(key)
    if value is None:
        return ""
    text = form.format(value)
    if interval and key in scores["interval"]:
        low, high = scores["interval"][key]
        text += f" [{form.format(low)}, {form.format(high)}]"
    return text

"""An evaluation as tables that rich can print."""

from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from scope.evaluation.caveats import verdict
from scope.evaluation.result import Evaluation

ARMS = {"sae": "SAE", "random": "random", "pca": "PCA", "random_model": "rnd-model", "mean": "mean", "zero": "zero"}

LEGEND = {
    "random": "random: a random dictionary of equal L0",
    "pca": "PCA: as many components as the SAE has active latents",
    "random_model": "rnd-model: the SAE on the model with random weights, at its scale",
    "mean": "mean, zero: ablations",
}

ROWS = {
    "l0": ("L0", "{:.1f}"),
    "fvu": ("FVU, pooled", "{:.3f}"),
    "fvu_per_token": ("FVU, by token", "{:.3f}"),
    "fvu_per_dimension": ("FVU, by dim.", "{:.3f}"),
    "cosine": ("cosine", "{:.3f}"),
    "norm_ratio": ("norm ratio", "{:.3f}"),
    "length_bias": ("length bias", "{:.3f}"),
    "delta_loss": ("delta loss", "{:+.3f}"),
    "kl": ("KL", "{:.3f}"),
    "output_change": ("output change", "{:.4f}"),
    "recovered_vs_mean": ("kept vs mean", "{:.1%}"),
    "recovered_vs_zero": ("kept vs zero", "{:.1%}"),
}

VARIANTS = {
    "with_bos": "with position 0",
    "with_special": "and special tokens",
    "without_outliers": "without huge norms",
}


def table(evaluation: Evaluation) -> Group:
    """The verdict in a line; scores in rows, the SAE beside its baselines in columns; then variants of what counts, positions,
    latents, and notes. Fits a terminal of 80 columns; further SAEs have a table of their own.
    """
    legend = [text for name, text in LEGEND.items() if name in evaluation.arms]
    changes = "output_change" in evaluation.arms["sae"]
    legend += ["output change: 1 - cosine of the model's vectors" if changes else "losses and KL in nats; kept: loss recovered"]
    told: list[RenderableType] = [Text(line) for line in lines(evaluation)]
    told += [Text(f"note: {note}", "yellow") for note in evaluation.notes]
    further = [name for name in evaluation.arms if name not in ARMS]
    parts: list[RenderableType] = [
        Text(verdict(evaluation.arms, evaluation.latents), "bold"),
        Text(heading(evaluation)),
        Text(),
    ]
    parts += [_scores(evaluation, [name for name in ARMS if name in evaluation.arms])]
    parts += [Text("; ".join(legend), "dim"), Text(), _variants(evaluation), Text()]
    for i in range(0, len(further), 4):
        parts += [_scores(evaluation, ["sae", *further[i : i + 4]]), Text()]
    if evaluation.positions:
        parts += [_positions(evaluation), Text()]
    return Group(*parts, *told)


def heading(evaluation: Evaluation) -> str:
    """The SAE, its model, and the text, in a line."""
    made = evaluation.provenance
    text = made.get("text") or {}
    corpus = text.get("corpus") or {}
    named = " ".join(str(corpus[key]) for key in ("kind", "name") if corpus.get(key))
    told = [f"text: {named}"] if named else []
    told += [text["held_out"]] if "held_out" in text else []
    model = (made.get("model") or {}).get("model")
    of = f" of {model}" if model else ""
    return "; ".join([f"{evaluation.latents['d_sae']:,} latents at {made.get('site')}{of}", ", ".join(told)]).removesuffix("; ")


def _scores(evaluation: Evaluation, arms: list[str]) -> Table:
    """The SAE, its intervals, and other conditions in columns."""
    drawn = _table("")
    for name in arms:
        label = ARMS.get(name, name.removeprefix("beside ").rstrip("/").rsplit("/", 1)[-1][-9:])
        drawn.add_column(label, justify="right", no_wrap=True)
        if name == "sae":
            drawn.add_column("95 %", no_wrap=True, style="dim", header_style="dim")
    for key, (label, form) in ROWS.items():
        cells = [_cell(evaluation.arms[name], key, form) for name in arms]
        if any(cells):
            drawn.add_row(label, cells[0], _interval(evaluation.arms["sae"], key, form), *cells[1:])
    return drawn


def _variants(evaluation: Evaluation) -> Table:
    """FVU and L0 with and without the tokens that can decide them (P1, P2)."""
    own = evaluation.arms["sae"]
    drawn = _table("what counts")
    for name in ("tokens", "FVU", "95 %", "by token", "by dim.", "L0"):
        drawn.add_column(name, justify="right", no_wrap=True)
    rows = {"as above": own | {"tokens": evaluation.counted["tokens"]}}
    rows |= {label: own[name] for name, label in VARIANTS.items() if (own.get(name) or {}).get("interval")}
    for label, row in rows.items():
        cells = [_cell(row, key, ROWS[key][1]) for key in ("fvu_per_token", "fvu_per_dimension", "l0")]
        fvu = _cell(row, "fvu", ROWS["fvu"][1])
        drawn.add_row(label, f"{row['tokens']:,}", fvu, _interval(row, "fvu", "{:.3f}"), *cells)
    return drawn


def _positions(evaluation: Evaluation) -> Table:
    drawn = _table("position")
    for name in ("tokens", "FVU", "95 %", "L0", "delta loss"):
        drawn.add_column(name, justify="right", no_wrap=True)
    for row in evaluation.positions:
        where = f"{row['from']}" if row["from"] == row["to"] else f"{row['from']}-{row['to']}"
        where += "" if row["counted"] else " (left out)"
        cells = [_cell(row, key, ROWS[key][1]) for key in ("l0", "delta_loss")]
        fvu = _cell(row, "fvu", "{:.3f}")
        drawn.add_row(where, f"{row['tokens']:,}", fvu, _interval(row, "fvu", "{:.3f}"), *cells)
    return drawn


def lines(evaluation: Evaluation) -> list[str]:
    """The lines below the tables: counts, firing, directions, training."""
    own, counted, latents = evaluation.arms["sae"], evaluation.counted, evaluation.latents
    units = counted.get("units", "contexts")
    low, high = latents["interval"]["never_fired"]
    found = [
        f"{counted['tokens']:,} tokens of {counted['contexts']} contexts; {_loss(counted)}"
        f"95 % intervals are over {counted[units]} {units}; {_rule(evaluation)}",
        f"L0 per token: median {own['l0_median']:.0f} {_interval(own, 'l0_median', '{:.0f}')}, 95th percentile "
        f"{own['l0_p95']:.0f} {_interval(own, 'l0_p95', '{:.0f}')}",
        f"{latents['never_fired']:.1%} of {latents['d_sae']:,} latents never fired here ({low:.1%}..{high:.1%} on much more "
        f"text), {latents['dense']:.1%} {_interval(latents, 'dense', '{:.1%}')} fired on more than "
        f"{latents['dense_above']:.0%} of the tokens",
        "latents by the share of tokens on which they fire: " + _histogram(latents),
        f"decoder rows: median cosine of the nearest other {latents['nearest_cosine_median']:.2f} (random directions "
        f"{latents['nearest_cosine_median_random']:.2f}), {latents['nearest_cosine_above_0.9']:.1%} above 0.9; encoder along "
        f"decoder {latents['encoder_decoder_cosine_median']:.2f}",
    ]
    for name, part in latents.get("shared", {}).items():
        found.append(
            f"shared with {name}: {part['cosine_above_0.7']:.1%} of the rows have one above cosine 0.7 there, median "
            f"{part['cosine_median']:.2f} (random directions {part['cosine_above_0.7_random']:.1%}, "
            f"{part['cosine_median_random']:.2f})"
        )
    return found + _training(evaluation.training)


def _loss(counted: dict[str, Any]) -> str:
    return "" if counted["loss"] is None else f"loss without splice {counted['loss']:.3f} nats; "


def _rule(evaluation: Evaluation) -> str:
    """Which rows are left out, in words."""
    rule = str(evaluation.provenance.get("rule", ""))
    return rule if rule.startswith("rows left out") else "position 0 and special tokens are left out"


def _training(rows: list[dict[str, Any]]) -> list[str]:
    """A handful of points of the training curve; all of them are in the JSON."""
    picked = [rows[round(i * (len(rows) - 1) / 4)] for i in range(5)] if len(rows) > 5 else rows
    pairs = [(row, row.get("fvu", row.get("error"))) for row in picked]  # logs of version 0.1.0 have no "fvu"
    told = [f"{row['tokens']:,}: {fvu:.3f} / {row['l0']:.0f}" for row, fvu in pairs if fvu is not None and "l0" in row]
    return ["FVU / L0 while it was trained, by tokens read: " + ", ".join(told)] if told else []


def _histogram(latents: dict[str, Any]) -> str:
    """Latents by decade of the share of tokens on which they fire."""
    edges, counts = latents["density_log10_edges"], latents["density_log10_counts"]
    decades: dict[int, int] = {}
    for edge, count in zip(edges, counts, strict=False):
        if count:
            decades[int(edge // 1)] = decades.get(int(edge // 1), 0) + count
    return ", ".join(f"{count:,} from {10.0**at:.{max(0, -2 - at)}%}" for at, count in decades.items()) or "none fired"


def _table(first: str) -> Table:
    drawn = Table(box=None, pad_edge=False, header_style="bold")
    drawn.add_column(first, no_wrap=True)
    return drawn


def _cell(scores: dict[str, Any], key: str, form: str) -> str:
    value = scores.get(key)
    return "" if value is None else form.format(value)


def _interval(scores: dict[str, Any], key: str, form: str) -> str:
    ends = scores["interval"].get(key)
    if scores.get(key) is None or ends is None:
        return ""
    low, high = (form.format(end).removesuffix("%") for end in ends)
    return f"{low}..{high}"

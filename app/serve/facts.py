"""The few figures that say whether a dictionary is worth reading, each with what it should be compared to."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scope.app.kit.plain import number

from scope.errors import PackError
from scope.features.face import Pack
from scope.models.text.characters import characters


def dead_share(store: Pack) -> float:
    return float((store.table["count"] == 0).mean())


def l0(store: Pack) -> float:
    """Latents that fire per token, from the pack's own counts."""
    return float(store.table["density"].sum())


def start_here(store: Pack) -> dict[str, int]:
    """A few latents worth opening first, by what makes them so; chosen from the table alone."""
    index = store.index
    fired = index.column("count") > 0
    living = fired & ~index.flagged(("dead", "dense", "rare", "duplicate"))
    living = living if living.any() else fired
    score = index.column("out_score")
    known = score[living & ~np.isnan(score)]
    broad = living & (index.column("n_tokens_half") >= 3) & (score >= (np.median(known) if len(known) else np.inf))
    steerable = np.zeros(store.d_sae, bool)
    steerable[store.steerable(1).index] = True
    found: dict[str, int] = {}
    for name, among, column in (
        ("Says what it will write", steerable, "out_score"),
        ("Its label explains it best", living, "label_score"),
        ("One idea, many tokens", broad, "logit_kurtosis"),
        ("Fires hardest", living, "max"),
    ):
        best = index.order(column)
        best = best[among[best] & ~np.isnan(index.column(column)[best])]
        latent = next((int(i) for i in best[: len(found) + 1] if i not in found.values()), None)
        if latent is not None:
            found[name] = latent
    return found


def telling_text(store: Pack, latents: list[int], longest: int = 120) -> str:
    """A short text of the pack on which the first of these latents fires, to begin with on the Prompt page; "" without one."""
    for latent in latents:
        try:
            found = store[latent].examples("random", 8)
        except PackError:
            continue
        for example in found:
            tokens = example.tokens[max(0, example.peak - 16) : example.peak + 8]
            pieces = [piece for _, _, piece in characters(tokens) if not (piece[:1] == "<" and piece[-1:] == ">")]
            text = " ".join("".join(pieces).split())[:longest]
            words = {word for word in text.split() if word.isalpha()}
            if len(words) >= 4 and sum(map(len, words)) > len(text) / 2:
                return text
    return ""


def steering_runs(folder: Path, most: int) -> list[str]:
    """Names of the steering runs that lie beside a pack, newest first."""
    beside = folder.with_name(folder.name + ".steering")
    files = sorted(beside.glob("*.json"), key=lambda f: -f.stat().st_mtime) if beside.is_dir() else []
    return [file.stem for file in files if re.fullmatch(r"[0-9a-f]{12}", file.stem)][:most]


def digest(store: Pack) -> str:
    """The first digits of the dictionary's hash."""
    described = store.manifest["dictionary"]
    return str(described.get("parameters_sha256") or described.get("weights_sha256") or "unknown")[:12]


def corpus_name(store: Pack) -> str:
    """What text the pack was collected from, in a word or two."""
    told = store.manifest.get("corpus") or ((store.manifest.get("text") or {}).get("recording") or {}).get("corpus") or {}
    return str(told.get("name") or told.get("kind") or "a corpus without a name") if isinstance(told, dict) else str(told)


def tiles(store: Pack) -> list[tuple[str, str, str, str]]:
    """(name, value, what to compare it to, what it means) for the top of the overview."""
    rows = [
        ("Latents", f"{store.d_sae:,}", f"{dead_share(store):.1%} never fired", "Units of the dictionary."),
        ("L0", number(l0(store)), f"of {store.d_sae:,}", "Latents that fire on a token, mean over the pack's tokens."),
        (
            "Tokens read",
            f"{store.n_tokens:,}",
            f"from {store.manifest.get('n_contexts', 0):,} contexts",
            "Positions the pack was collected from; special tokens are left out.",
        ),
    ]
    scored = reported(store)
    return rows[:2] + scored if scored else rows


def evaluation(store: Pack) -> dict[str, Any] | None:
    """The evaluation that lies in the pack, by arm: the dictionary ("sae") and its nulls."""
    report = (store.health or {}).get("evaluation", store.health or {})
    return report if "sae" in report.get("arms", {}) else None


def reported(store: Pack) -> list[tuple[str, str, str, str]]:
    """Tiles from the evaluation; [] without one."""
    report = evaluation(store)
    if report is None:
        return []
    arms, own, rows = report["arms"], report["arms"]["sae"], []
    for name, key, form, nulls, meaning in (
        (
            "FVU",
            "fvu",
            ".3f",
            ("random", "pca"),
            "Fraction of variance unexplained: 0 is perfect, 1 is what predicting the mean would score.",
        ),
        (
            "Delta loss, nats",
            "delta_loss",
            "+.3f",
            ("mean", "random"),
            "Rise of the model's loss with the reconstruction in place of the activations.",
        ),
    ):
        if own.get(key) is not None:
            beside = " · ".join(f"{ARMS[null]} {number(arms[null].get(key), form)}" for null in nulls if null in arms)
            rows.append((name, number(own[key], form), beside, meaning))
    return rows


ARMS = {
    "sae": "dictionary",
    "random": "random",
    "pca": "PCA",
    "random_model": "random weights",
    "mean": "mean-ablation",
    "zero": "zero-ablation",
}
SCORES = {
    "l0": ("L0", ".1f"),
    "fvu": ("FVU, pooled", ".3f"),
    "fvu_per_token": ("FVU, mean over tokens", ".3f"),
    "fvu_per_dimension": ("FVU, mean over dimensions", ".3f"),
    "cosine": ("cosine", ".3f"),
    "norm_ratio": ("norm ratio (below 1: shrinkage)", ".3f"),
    "length_bias": ("length bias (1 is none)", ".3f"),
    "delta_loss": ("delta loss, nats", "+.3f"),
    "kl": ("KL, nats", ".3f"),
    "recovered_vs_mean": ("loss recovered, of mean-ablation", ".1%"),
    "recovered_vs_zero": ("loss recovered, of zero-ablation", ".1%"),
}


def scores(report: dict[str, Any]) -> pd.DataFrame:
    """Each score in a row, the dictionary beside its nulls; intervals are 95 %, over documents or contexts."""
    arms, rows = report["arms"], []
    for key, (name, form) in SCORES.items():
        row = {"score": name}
        for arm in (a for a in ARMS if a in arms):
            row[ARMS[arm]] = "" if arms[arm].get(key) is None else number(arms[arm][key], form)
        low, high = (arms["sae"].get("interval") or {}).get(key) or (None, None)
        row["95 % interval"] = "" if low is None else f"{number(low, form.lstrip('+'))} to {number(high, form.lstrip('+'))}"
        if row[ARMS["sae"]]:
            rows.append(row)
    return pd.DataFrame(rows)


def counted(report: dict[str, Any]) -> str:
    """On how much text a report was made, and what it left out."""
    counts, made = report.get("counted", {}), report.get("provenance", {})
    told = [f"{counts[name]:,} {name}" for name in ("documents", "contexts", "tokens") if name in counts]
    return "; ".join([", ".join(told), *(str(made[name]) for name in ("rule",) if name in made)])


def point(store: Pack) -> tuple[float, float] | None:
    """(L0, FVU) of the evaluation in a pack."""
    report = evaluation(store)
    own = report["arms"]["sae"] if report else {}
    return None if own.get("l0") is None or own.get("fvu") is None else (float(own["l0"]), float(own["fvu"]))


def certificate(store: Pack) -> pd.DataFrame | None:
    """What the check of the dictionary against its model found, a row a fact; None where none was made."""
    found = (store.health or {}).get("certificate")
    if not found:
        return None
    return pd.DataFrame([{"what": name, "found": str(value)} for name, value in _flat(found)])


def _flat(value: dict[str, Any], before: str = "") -> list[tuple[str, Any]]:
    pairs: list[tuple[str, Any]] = []
    for name, part in value.items():
        pairs += _flat(part, f"{before}{name} ") if isinstance(part, dict) else [(before + name, part)]
    return pairs


CURVES = (("FVU", "fvu", True), ("L0", "l0", True), ("share of dead latents", "dead", False))
"""(name, column of the training log, log axis)."""


def curve(rows: list[dict[str, Any]], key: str) -> tuple[list[float], list[float]]:
    """(tokens, values) of one column of the training log; rows without it are left out."""
    old = "error" if key == "fvu" else key  # logs of version 0.1.0 have no "fvu"
    points = [(row["tokens"], row.get(key, row.get(old))) for row in rows if "tokens" in row]
    points = [(tokens, value) for tokens, value in points if isinstance(value, int | float)]
    return [tokens for tokens, _ in points], [value for _, value in points]


SPREADS = (
    (
        "How often they fire",
        "density",
        "Share of tokens on which a latent fires, on a log scale; silent ones have no place there.",
    ),
    (
        "Nearest direction",
        "nearest_cos",
        "Largest cosine of a latent's decoder direction with another's: near 1 is a duplicate.",
    ),
    ("Encoder along decoder", "enc_dec_cos", "Cosine between a latent's encoder column and its decoder row."),
)


def spread(store: Pack, column: str) -> tuple[np.ndarray, np.ndarray]:
    """(edges, counts) of a column over the latents that fired."""
    values = store.index.column(column)[store.index.column("count") > 0]
    values = values[np.isfinite(values)]
    if column == "density":
        return np.linspace(-7, 0, 57), np.histogram(np.log10(np.maximum(values, 1e-7)), np.linspace(-7, 0, 57))[0]
    edges = np.linspace(min(0.0, float(values.min(initial=0))), 1, 41)
    return edges, np.histogram(values, edges)[0]


def geometry(store: Pack) -> str:
    """Decoder and encoder in a line."""
    norms, nearest = store.index.column("dec_norm"), store.index.column("nearest_cos")
    limit = float((store.manifest.get("flags") or {}).get("duplicate", 0.9))
    return (
        f"Decoder norms {np.nanmin(norms):.3g} to {np.nanmax(norms):.3g}; {np.nanmean(nearest >= limit):.1%} of latents have "
        f"another within cosine {limit:g}; {dead_share(store):.1%} never fired in {store.n_tokens:,} tokens "
        f"(density below {3 / max(store.n_tokens, 1):.1e}, 95 % bound)."
    )


def matched(pairs: pd.DataFrame) -> str:
    """`scope.features.compare.counterparts` in a line, with what chance would give."""
    if pairs.empty:
        return "No latent of this pack fired."
    half, null = (float((pairs[name] >= 5).mean()) for name in ("shared", "by_chance"))
    return (
        f"{half:.0%} of {len(pairs):,} living latents of this pack share at least five of their ten most promoted tokens with "
        f"one of the other's; {null:.0%} would, were the other's tokens shuffled."
    )

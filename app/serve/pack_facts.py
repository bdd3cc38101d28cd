"""Figures of a pack that several pages show: its evaluation beside the baselines, its corpus, latents to begin with."""

from dataclasses import fields
from typing import Any

import numpy as np
import pandas as pd
from scope.app.kit.plain import number

from scope.errors import PackError
from scope.features.collect.config import Flags
from scope.features.face import Pack
from scope.models.text.characters import characters


def dead_share(store: Pack) -> float:
    """Share of latents that never fired."""
    return float((store.index.column("count") == 0).mean())


def l0(store: Pack) -> float:
    """Latents that fire per token, from the pack's own counts."""
    return float(store.index.column("density").sum())


def flag_limits(store: Pack) -> Flags:
    """The thresholds of the pack's flags; today's defaults where an older pack does not name them."""
    names = {f.name for f in fields(Flags)}
    return Flags(**{name: value for name, value in store.manifest.flags.items() if name in names})


def sae_scores(store: Pack) -> dict[str, Any]:
    """The scores of the pack's own SAE in its evaluation; {} without one."""
    return ((evaluation(store) or {}).get("arms") or {}).get("sae") or {}


def start_here(store: Pack) -> dict[str, int]:
    """A few latents to open first, by the reason; chosen from the pack's table."""
    index = store.index
    fired = index.column("count") > 0
    living = fired & ~index.flagged(("dead", "dense", "rare", "duplicate"))
    living = living if living.any() else fired
    score = index.column("out_score")
    known = score[living & ~np.isnan(score)]
    broad = living & (index.column("n_tokens_half") >= 3) & (score >= (np.median(known) if len(known) else np.inf))
    steerable = np.zeros(store.d_sae, bool)
    steerable[store.steerable(1).index] = True
    chosen: dict[str, int] = {}
    for name, among, column in (
        ("Strongest effect on its promoted tokens", steerable, "out_score"),
        ("Best explained by its label", living, "label_score"),
        ("Fires on many tokens, promotes few", broad, "logit_kurtosis"),
        ("Largest activation", living, "max"),
    ):
        best = index.order(column)
        best = best[among[best] & ~np.isnan(index.column(column)[best])]
        latent = next((int(i) for i in best[: len(chosen) + 1] if i not in chosen.values()), None)
        if latent is not None:
            chosen[name] = latent
    return chosen


def example_text(store: Pack, latents: list[int], longest: int = 120) -> str:
    """A short text of the pack on which one of these latents fires, as a first text for the Prompt page; "" without one."""
    for latent in latents:
        try:
            examples = store[latent].examples("random", 8)
        except PackError:
            continue
        for example in examples:
            tokens = example.tokens[max(0, example.peak - 16) : example.peak + 8]
            pieces = [piece for _, _, piece in characters(tokens) if not (piece[:1] == "<" and piece[-1:] == ">")]
            text = " ".join("".join(pieces).split())
            text = text if len(text) <= longest else text[:longest].rsplit(" ", 1)[0]  # no half word
            words = {word for word in text.split() if word.isalpha()}
            if len(words) >= 4 and sum(map(len, words)) > len(text) / 2:
                return text
    return ""


def rows_noun(store: Pack) -> str:
    """What a row of the pack is, in the plural: tokens, patches, pictures, or rows where several kinds are mixed."""
    if store.manifest.pictures is None:
        return "tokens"
    if store.n_ctx > store.manifest.pictures.n_patches:
        return "rows"
    return "pictures" if store.manifest.pictures.grid == 1 else "patches"


def rows_in_words(store: Pack) -> str:
    """Which rows the pack counts, how many of each kind; "" for a pack of text."""
    grid = store.manifest.pictures
    if grid is None:
        return ""
    if grid.grid == 1:
        return f"{store.n_tokens:,} pictures, one pooled row for each"
    n = store.manifest.roles.get("image", store.n_tokens)
    patches = f"{n:,} patches of {store.manifest.n_contexts or n // grid.n_patches:,} pictures ({grid.grid} × {grid.grid} each)"
    others = [f"{rows:,} {role}" for role, rows in store.manifest.roles.items() if role not in ("image", "control") and rows]
    return patches + (f", and rows of text: {', '.join(others)}" if others else "")


def steers(store: Pack) -> bool:
    """Whether the latents of the pack can be edited: those of a language model can, those of a tower, a projector or a
    transcoder not."""
    return store.site_out is None and not store.site.startswith(("vision.", "text.", "projector."))


def asked_of_pictures(store: Pack) -> str:
    """What the pack's pictures were asked; "" for a model that is asked nothing, or where it is unknown."""
    asked = recorded_rows(store).get("prompt")
    return asked if isinstance(asked, str) else ""


def recorded_rows(store: Pack) -> dict[str, Any]:
    """How the rows of the pack's recording were made."""
    return (store.manifest.text.get("recording") or {}).get("tokenizer") or {}


def registers(store: Pack) -> str:
    """How many patches of unusual norm, which towers use as registers, the SAE's training left out, by the recording's rule;
    "" where no rule is known."""
    if store.manifest.pictures is None:
        return ""
    known = store.manifest.dictionary.get("provenance") or {}
    notes = (known.get("training") or {}).get("notes")
    noted = next((note for note in notes or () if "outliers by the recording's rule" in note), None)
    if noted is not None:
        return f"Registers: {noted}"
    rule = (store.manifest.text.get("recording") or {}).get("outliers")
    if not rule or notes is None or not known.get("recording"):
        return ""
    times = f"norm above {rule['times']:g} × the median"
    return f"Registers: the SAE's training left out no row as one, by the rule of recordings ({times})."


def digest(store: Pack) -> str:
    """The first digits of the SAE's hash."""
    return (store.dictionary.parameters_sha256 or store.dictionary.weights_sha256 or "unknown")[:12]


def corpus_name(store: Pack) -> str:
    """Name of the text that the pack was collected from."""
    return store.manifest.corpus_name or "unnamed corpus"


def tiles(store: Pack) -> list[tuple[str, str, str, str]]:
    """(name, value, what to compare it with, meaning) for the top of the overview."""
    noun = rows_noun(store)
    per = f"Latents that fire per {'patch' if noun == 'patches' else noun[:-1]}, mean over the pack's {noun}."
    counted = "Positions that the pack was collected from, without special tokens."
    what = "contexts" if noun == "tokens" else "pictures"
    read = f"from {store.manifest.n_contexts or 0:,} {what}"
    rows = [
        ("Latents", f"{store.d_sae:,}", f"{dead_share(store):.1%} never fired", "Units of the SAE."),
        ("L0", number(l0(store)), f"of {store.d_sae:,}", per),
        (f"{noun.capitalize()} read", f"{store.n_tokens:,}", read, counted),
    ]
    scored = score_tiles(store)
    return rows[:2] + scored if scored else rows


def evaluation(store: Pack) -> dict[str, Any] | None:
    """The evaluation report in the pack: scores of the SAE ("sae") and of its baselines, under "arms"; None without one."""
    report = (store.health or {}).get("evaluation", store.health or {})
    return report if "sae" in report.get("arms", {}) else None


def score_tiles(store: Pack) -> list[tuple[str, str, str, str]]:
    """Tiles of the evaluation; [] without one."""
    report, own, rows = evaluation(store) or {"arms": {}}, sae_scores(store), []
    fvu = "Fraction of variance unexplained: 0 is perfect, 1 is what predicting the mean would score."
    loss = "Rise of the model's loss when the reconstruction replaces the activations."
    for name, key, form, baselines, meaning in (
        ("FVU", "fvu", ".3f", ("random", "pca"), fvu),
        ("Delta loss, nats", "delta_loss", "+.3f", ("mean", "random"), loss),
    ):
        scores = [(CONDITIONS[b], report["arms"][b].get(key)) for b in baselines if b in report["arms"]]
        if own.get(key) is not None:
            note = " · ".join(f"{baseline} {number(score, form)}" for baseline, score in scores)
            rows.append((name, number(own[key], form), note, meaning))
    return rows


CONDITIONS = {
    "sae": "SAE",
    "random": "random",
    "pca": "PCA",
    "random_model": "random weights",
    "mean": "mean-ablation",
    "zero": "zero-ablation",
}
SCORES = {
    "l0": ("L0 on the evaluated tokens", ".1f"),
    "fvu": ("FVU, pooled", ".3f"),
    "fvu_per_token": ("FVU, mean over tokens", ".3f"),
    "fvu_per_dimension": ("FVU, mean over dimensions", ".3f"),
    "cosine": ("cosine", ".3f"),
    "norm_ratio": ("norm ratio (below 1: shrinkage)", ".3f"),
    "length_bias": ("length bias (1 is none)", ".3f"),
    "delta_loss": ("delta loss, nats", "+.3f"),
    "kl": ("KL, nats", ".3f"),
    "recovered_vs_mean": ("loss recovered, against mean-ablation", ".1%"),
    "recovered_vs_zero": ("loss recovered, against zero-ablation", ".1%"),
}


def scores(report: dict[str, Any]) -> pd.DataFrame:
    """A row per score: the SAE beside its baselines, with 95 % intervals over documents or contexts."""
    conditions, rows = report["arms"], []
    for key, (title, form) in SCORES.items():
        row = {"score": title}
        for name in (c for c in CONDITIONS if c in conditions):
            row[CONDITIONS[name]] = "" if conditions[name].get(key) is None else number(conditions[name][key], form)
        low, high = (conditions["sae"].get("interval") or {}).get(key) or (None, None)
        row["95 % interval"] = "" if low is None else f"{number(low, form.lstrip('+'))} to {number(high, form.lstrip('+'))}"
        if row[CONDITIONS["sae"]]:
            rows.append(row)
    return pd.DataFrame(rows)

"""Panels of the Health page: scores by position, flags counted, training curves, spreads, the certificate."""

from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd
import streamlit as st
from scope.app.kit import figures
from scope.app.kit.plain import number, plain, short
from scope.app.serve.pack_facts import dead_share, evaluation, flag_limits, l0, rows_noun, sae_scores

from scope.features.face import Pack

POSITIONS = (("FVU", "fvu"), ("L0", "l0"), ("delta loss, nats", "delta_loss"))


def positions(store: Pack) -> None:
    """Scores by position in the context, with intervals; without them, the command that measures them."""
    report = evaluation(store)
    rows = (report or {}).get("positions") or []
    if not rows:
        st.caption("This pack's report has no scores by position. This command makes a report with them:")
        st.code("scope evaluate DICTIONARY --model MODEL", language=None)
        return
    for column, (name, key) in zip(st.columns(3), POSITIONS, strict=True):
        with column:
            figure = figures.by_position(rows, name, key)
            st.plotly_chart(figure, config=figures.SMALL, key=f"by position {key}", alt=f"{name} by position in the context")
    st.caption("Bars: 95 % intervals. Grey: the first token, which is neither replaced nor counted in the scores above.")


def counts(store: Pack) -> pd.DataFrame:
    """How many latents carry each flag: number, share and meaning."""
    index, limits, bound = store.index, flag_limits(store), store[0].density_bound
    rows = [
        ("dead", index.flagged(("dead",)), f"silent in {store.n_tokens:,} tokens: density below {bound:.1e} (95 %)"),
        ("rare", index.flagged(("rare",)), f"fewer than {limits.rare} firings: too few to say what one means"),
        ("above 1 %", index.column("density") > 0.01, "fire on more than a hundredth of all tokens"),
        ("dense", index.flagged(("dense",)), f"fire on {figures.percent(limits.dense)} of all tokens or more"),
        ("single-token", index.flagged(("single-token",)), "fire on one token almost alone"),
        ("duplicate", index.flagged(("duplicate",)), f"another latent's direction within cosine {limits.duplicate:g}"),
        (
            "output",
            index.flagged(("output",)),
            "move their promoted tokens beyond 95 % of random directions; 5 % would by chance",
        ),
    ]
    return pd.DataFrame(
        [
            {"latents": name, "n": int(mask.sum()), "share": float(mask.mean()), "meaning": meaning}
            for name, mask, meaning in rows
        ]
    )


def latents(store: Pack, counted: pd.DataFrame) -> None:
    """The counts, and how many latents fire per token."""
    config = {"share": st.column_config.NumberColumn(format="percent"), "n": st.column_config.NumberColumn(format="localized")}
    st.dataframe(counted, hide_index=True, column_config=config, key="latents counted", alt="Latents by flag")
    own = sae_scores(store)
    in_pack = f"{number(l0(store))} on the pack's own {store.n_tokens:,} {rows_noun(store)}"
    parts = [in_pack, f"on the evaluated ones: mean {number(own.get('l0'), '.1f')}"] if own else []
    parts += [f"{name} {number(own[key], '.0f')}" for name, key in (("median", "l0_median"), ("p95", "l0_p95")) if key in own]
    whole = own.get("with_bos") or {}
    with_bos = [f"{SCORED[key]} {number(whole[key])}" for key in SCORED if isinstance(whole.get(key), int | float)]
    parts += [f"with <bos> counted: {', '.join(with_bos)}"] if with_bos else []
    if parts:
        st.caption(plain(f"L0 {'; '.join(parts)}."))


SCORED = {"fvu": "FVU", "fvu_per_token": "FVU, mean over tokens", "delta_loss": "delta loss", "l0": "L0"}


def norms(store: Pack) -> tuple[np.ndarray, np.ndarray]:
    """(edges, counts) of the decoder's row norms over all latents."""
    values = store.index.column("dec_norm")
    values = values[np.isfinite(values)]
    low, high = (float(values.min()), float(values.max())) if len(values) else (0.0, 1.0)
    if high - low < 1e-6 * max(high, 1e-12):  # all equal: one bar around their norm
        low, high = 0.9 * low, 1.1 * high + 1e-12
    edges = np.linspace(low, high, 41)
    return edges, np.histogram(values, edges)[0]


def provenance(store: Pack) -> dict[str, Any]:
    """Config and versions of the SAE's training, the evaluation and the pack."""
    trained = store.manifest.dictionary.get("provenance")
    trained = trained if isinstance(trained, dict) else {}
    report = evaluation(store) or {}
    return {
        "training": trained.get("training"),
        "recording": dict(store.dictionary.recording.config) or None,
        "versions": trained.get("versions"),
        "evaluation": {k: v for k, v in (report.get("provenance") or {}).items() if k in ("config", "rule", "text")} or None,
        "pack": {"config": store.manifest.config, "made": asdict(store.manifest.made)},
    }


def text_counts(report: dict[str, Any]) -> str:
    """On how much text a report was measured, and the rule for which tokens count."""
    counts, made = report.get("counted", {}), report.get("provenance", {})
    parts = [f"{counts[name]:,} {name}" for name in ("documents", "contexts", "tokens") if name in counts]
    return "; ".join([", ".join(parts), *(str(made[name]) for name in ("rule",) if name in made)])


def point(store: Pack) -> tuple[float, float] | None:
    """(L0, FVU) of the evaluation in a pack; None without one."""
    own = sae_scores(store)
    return None if own.get("l0") is None or own.get("fvu") is None else (float(own["l0"]), float(own["fvu"]))


def certificate(store: Pack) -> pd.DataFrame | None:
    """The certificate (the check of the SAE against its model) as a table, a row per fact; None without one."""
    report = (store.health or {}).get("certificate")
    return (
        pd.DataFrame([{"fact": _in_words(name), "value": _shown(value)} for name, value in _flat(report)]) if report else None
    )


def _in_words(name: str) -> str:
    """A field's path as words."""
    return {"said": "verdict"}.get(name, name.replace("_", " "))


def _shown(value: Any) -> str:
    """A value of the certificate: yes or no, a number to three digits, a list by its items."""
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no"}.get(value, "–")
    return ", ".join(map(_shown, value)) if isinstance(value, list | tuple) else short(value)


def _flat(value: dict[str, Any], before: str = "") -> list[tuple[str, Any]]:
    pairs: list[tuple[str, Any]] = []
    for name, part in value.items():
        pairs += _flat(part, f"{before}{name} ") if isinstance(part, dict) else [(before + name, part)]
    return pairs


CURVES = (("FVU", "fvu", True), ("L0", "l0", True), ("share of dead latents", "dead", False))
"""(name, column of the training log, log axis)."""


def curve(rows: list[dict[str, Any]], key: str) -> tuple[list[float], list[float]]:
    """(tokens, values) of one column of the training log, without the rows that lack it."""
    old = "error" if key == "fvu" else key  # logs of version 0.1.0 have no "fvu"
    points = [(row["tokens"], row.get(key, row.get(old))) for row in rows if "tokens" in row]
    points = [(tokens, value) for tokens, value in points if isinstance(value, int | float)]
    return [tokens for tokens, _ in points], [value for _, value in points]


SPREADS = (
    (
        "How often they fire",
        "density",
        "Share of tokens on which a latent fires, on a log scale, which has no place for silent latents.",
    ),
    (
        "Nearest direction",
        "nearest_cos",
        "Largest cosine of a latent's decoder direction with another's; near 1 means a duplicate.",
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
    """Decoder norms, duplicates and dead latents in one line."""
    norms, duplicates = store.index.column("dec_norm"), store.index.flagged(("duplicate",))
    return (
        f"Decoder norms {np.nanmin(norms):.3g} to {np.nanmax(norms):.3g}; {duplicates.mean():.1%} of latents have "
        f"another within cosine {flag_limits(store).duplicate:g}; {dead_share(store):.1%} never fired in "
        f"{store.n_tokens:,} tokens (density below {store[0].density_bound:.1e}, 95 % bound)."
    )


def matched(pairs: pd.DataFrame) -> str:
    """How many latents have a counterpart in the other pack, beside chance, in one line."""
    if pairs.empty:
        return "No latent of this pack fired."
    half, null = (float((pairs[name] >= 5).mean()) for name in ("shared", "by_chance"))
    return (
        f"{half:.0%} of {len(pairs):,} living latents of this pack share at least five of their ten most promoted tokens with "
        f"one of the other's; {null:.0%} would, were the other's tokens shuffled."
    )

"""What a dictionary's scores leave out: how they go with the position, how its latents are counted, and how all was made."""

from typing import Any

import numpy as np
import pandas as pd
import streamlit as st
from scope.app.kit import figures
from scope.app.kit.plain import number, plain
from scope.app.serve.facts import evaluation

from scope.features.face import Pack

POSITIONS = (("FVU", "fvu"), ("L0", "l0"), ("delta loss, nats", "delta_loss"))


def positions(store: Pack) -> None:
    """Scores by position in the context, with intervals; a report without them says which command makes one."""
    report = evaluation(store)
    rows = (report or {}).get("positions") or []
    if not rows:
        st.caption("Scores by position are not in this pack's report. This makes a report that has them:")
        st.code("scope evaluate DICTIONARY --model MODEL", language=None)
        return
    for column, (name, key) in zip(st.columns(3), POSITIONS, strict=True):
        with column:
            figure = figures.by_position(rows, name, key)
            st.plotly_chart(figure, config=figures.SMALL, key=f"by position {key}", alt=f"{name} by position in the context")
    st.caption("Bars: 95 % intervals. Grey: the first token, which is neither replaced nor counted in the scores above.")


def counts(store: Pack) -> pd.DataFrame:
    """How many latents are dead, rare, dense and alike, from the pack's own table: number, share, and what it means."""
    index, limits = store.index, store.manifest.get("flags") or {}
    density, fired, n = index.column("density"), index.column("count"), max(store.d_sae, 1)
    rare, dense, alike = int(limits.get("rare", 10)), float(limits.get("dense", 0.1)), float(limits.get("duplicate", 0.9))
    rows = [
        ("dead", fired == 0, f"silent in {store.n_tokens:,} tokens: density below {3 / max(store.n_tokens, 1):.1e} (95 %)"),
        ("rare", (fired > 0) & (fired < rare), f"fewer than {rare} firings: too few to say what one means"),
        ("above 1 %", density > 0.01, "fire on more than a hundredth of all tokens"),
        ("dense", density >= dense, f"fire on {figures.percent(dense)} of all tokens or more"),
        ("single-token", index.flagged(("single-token",)), "fire on one token almost alone"),
        ("duplicate", index.column("nearest_cos") >= alike, f"another latent's direction within cosine {alike:g}"),
        (
            "output",
            index.flagged(("output",)),
            "move their promoted tokens beyond 95 % of random directions; 5 % would by chance",
        ),
    ]
    return pd.DataFrame(
        [
            {"latents": name, "n": int(mask.sum()), "share": float(mask.sum() / n), "meaning": meaning}
            for name, mask, meaning in rows
        ]
    )


def latents(store: Pack, counted: pd.DataFrame) -> None:
    """The counts, and how many fire on a token."""
    config = {"share": st.column_config.NumberColumn(format="percent"), "n": st.column_config.NumberColumn(format="localized")}
    st.dataframe(counted, hide_index=True, column_config=config, key="latents counted", alt="Latents by what ails them")
    own = ((evaluation(store) or {}).get("arms") or {}).get("sae") or {}
    told = [f"L0: mean {number(own.get('l0'), '.1f')}"] if own else []
    told += [f"{name} {number(own[key], '.0f')}" for name, key in (("median", "l0_median"), ("p95", "l0_p95")) if key in own]
    whole = own.get("with_bos") or {}
    parts = [f"{SCORED[key]} {number(whole[key], '.3f')}" for key in SCORED if isinstance(whole.get(key), int | float)]
    told += [f"with <bos> counted: {', '.join(parts)}"] if parts else []
    if told:
        st.caption(plain("; ".join(told) + "."))


SCORED = {"fvu": "FVU", "fvu_per_token": "FVU, mean over tokens", "delta_loss": "delta loss", "l0": "L0"}


def norms(store: Pack) -> tuple[np.ndarray, np.ndarray]:
    """(edges, counts) of the decoder's row norms over all latents."""
    values = store.index.column("dec_norm")
    values = values[np.isfinite(values)]
    low, high = (float(values.min()), float(values.max())) if len(values) else (0.0, 1.0)
    if high - low < 1e-6 * max(high, 1e-12):  # all alike: one bar about their norm
        low, high = 0.9 * low, 1.1 * high + 1e-12
    edges = np.linspace(low, high, 41)
    return edges, np.histogram(values, edges)[0]


def made(store: Pack) -> dict[str, Any]:
    """Config and environment of the dictionary, the evaluation and the pack."""
    provenance = store.manifest["dictionary"].get("provenance") or {}
    report = evaluation(store) or {}
    return {
        "training": provenance.get("training"),
        "recording": (provenance.get("recording") or {}).get("config"),
        "versions": provenance.get("versions"),
        "evaluation": {k: v for k, v in (report.get("provenance") or {}).items() if k in ("config", "rule", "text")} or None,
        "pack": {"config": store.manifest.get("config"), "made": store.manifest.get("made")},
    }

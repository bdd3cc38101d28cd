"""A latent on texts of your own: up to eight at once, the last ten kept beside it."""

import math

import numpy as np
import streamlit as st
from scope.app.feature import panels
from scope.app.kit.plain import plain
from scope.app.kit.tokens import row, strips

from scope.features.pack.feature import Feature

AT_ONCE, KEPT = 8, 10


def split(text: str, each_line: bool) -> list[str]:
    """The texts in a field: one a line, or all of it as one."""
    texts = text.splitlines() if each_line else [text]
    return [t for t in texts if t.strip()]


def result(text: str, view, latent: int) -> dict:
    """What is kept of a reading: this latent's values, not all latents'."""
    return {
        "text": text,
        "pieces": view.pieces,
        "values": view.values(latent).tolist(),
        "fvu": float(view.fvu),
        "tuned": view.tuned(),
    }


def keep(kept: list[dict], results: list[dict]) -> None:
    """Put results before the older ones; the same text stands there once."""
    texts = {r["text"] for r in results}
    kept[:] = [*results, *(r for r in kept if r["text"] not in texts)][:KEPT]


def shown(feature: Feature, kept: list[dict]) -> tuple[str, int] | None:
    """Each text coloured, with where its strongest token stands among the latent's firings; the action that was pressed."""
    rows = []
    for r in kept:
        values = np.array(r["values"])
        high, fired = float(values.max(initial=0.0)), int((values > 0).sum())
        told = [panels.told(feature, None, high)] if high > 0 else []
        told += [f"fires on {fired} of {len(values)} tokens", f"unexplained (FVU) {r['fvu']:.0%}"]
        peak = int(np.argmax(values)) if high > 0 else None
        rows.append(
            row(r["pieces"], values, float(feature.row["max"]), peak, value=f"{high:.3g}" if high else "silent", notes=told)
        )
    pressed = strips(rows, key=f"tested {feature.id}", actions=("prompt",))
    told = next((r["tuned"] for r in kept if r["tuned"]), "")
    if told:
        st.warning(plain(told))
    worst = max((r["fvu"] for r in kept if not math.isnan(r["fvu"])), default=0.0)
    if worst > 0.5:
        st.warning(
            plain(
                f"The dictionary explains only {max(0.0, 1 - worst):.0%} of one of these texts: its silence there means little."
            )
        )
    return None if pressed is None or pressed[0] >= len(kept) else (pressed[1], pressed[0])

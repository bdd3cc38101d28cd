"""A latent on the reader's own texts: up to eight at once, the last ten remembered."""

import math

import numpy as np
import streamlit as st
from scope.app.feature.examples import rank_line
from scope.app.kit import messages
from scope.app.kit.plain import plain
from scope.app.kit.tokens import row, strips

from scope.features.pack.feature import Feature

AT_ONCE, KEPT = 8, 10


def split(text: str, each_line: bool) -> list[str]:
    """The texts in a field: one per line, or the whole field as one."""
    texts = text.splitlines() if each_line else [text]
    return [t for t in texts if t.strip()]


def result(text: str, view, latent: int) -> dict:
    """The part of a reading that the page keeps: the values of one latent."""
    return {
        "text": text,
        "pieces": view.pieces,
        "values": view.values(latent).tolist(),
        "fvu": float(view.fvu),
        "tuning": view.tuned(),
    }


def keep(older: list[dict], results: list[dict]) -> None:
    """Put results before the older ones, each text once."""
    texts = {r["text"] for r in results}
    older[:] = [*results, *(r for r in older if r["text"] not in texts)][:KEPT]


def draw_results(feature: Feature, results: list[dict]) -> tuple[str, int] | None:
    """Draw each text coloured, with the rank of its strongest token; returns (action, text index) of a pressed button."""
    rows = []
    for r in results:
        values = np.array(r["values"])
        high, fired = float(values.max(initial=0.0)), int((values > 0).sum())
        notes = [rank_line(feature, None, high)] if high > 0 else []
        notes += [f"fires on {fired} of {len(values)} tokens", f"unexplained (FVU) {r['fvu']:.0%}"]
        peak = int(np.argmax(values)) if high > 0 else None
        rows.append(
            row(r["pieces"], values, float(feature.row["max"]), peak, value=f"{high:.3g}" if high else "silent", notes=notes)
        )
    pressed = strips(rows, key=f"tested {feature.id}", actions=("prompt",))
    tuning = next((r["tuning"] for r in results if r["tuning"]), "")
    if tuning:
        st.warning(plain(tuning))
    worst = max((r["fvu"] for r in results if not math.isnan(r["fvu"])), default=0.0)
    messages.warn_of_poor_fit(worst, "one of these texts")
    return None if pressed is None or pressed[0] >= len(results) else (pressed[1], pressed[0])

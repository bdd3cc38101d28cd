"""The guess game on a latent's page: ten short texts, it fires in five. Your score is what its label is worth to a person."""

from collections.abc import Callable
from typing import Any

import numpy as np
import streamlit as st
from scope.app.kit.messages import written
from scope.app.kit.plain import plain
from scope.app.kit.tokens import row, strips

from scope.errors import PackError
from scope.features.pack.feature import Feature


def game(feature: Feature, so_far: tuple[int, int], draw: Callable[[Feature, int], list[Any]]) -> None:
    """One round at a time; the answers are told, and counted, after all ten were given.

    Args:
        so_far: right answers and questions of earlier rounds.
        draw: gives the windows of a round from a seed.
    """
    kept = st.session_state.setdefault("guess", {})
    right, asked = so_far
    if asked:
        st.caption(f"So far {right} of {asked} right, {right / asked:.0%}; by chance it would be half.")
    if kept.get("latent") != feature.id:
        st.caption("Ten short texts; the latent fires in five of them. Do you know which, from its label?")
        if not st.button("Play", icon=":material/sports_esports:"):
            return
        kept.clear()
        kept.update(latent=feature.id, seed=int(np.random.default_rng().integers(2**31)), told=False)
    try:
        windows = draw(feature, kept["seed"])
    except PackError as refusal:
        st.info(plain(refusal))
        kept.clear()
        return
    (_told if kept["told"] else _asked)(feature, windows, kept)


def _asked(feature: Feature, windows: list[Any], kept: dict[str, Any]) -> None:
    strips([row(w.tokens, [0.0] * len(w.tokens), 1.0, value=str(n)) for n, w in enumerate(windows, 1)], key="guess asked")
    numbers = list(range(1, len(windows) + 1))
    half = len(windows) // 2
    chosen = st.pills("It fires in", numbers, selection_mode="multi", key=f"guessed {kept['seed']}", wrap=True)

    def tell() -> None:
        kept["told"], kept["chosen"] = True, chosen
        correct = sum((w.peak is not None) == (n in chosen) for n, w in enumerate(windows, 1))
        written(lambda: feature.pack.notes.add_guess(feature.id, correct, len(windows)))

    st.button(
        "Tell me",
        type="primary",
        on_click=tell,
        disabled=len(chosen) != half,
        help=f"Choose {half}: that is how many there are.",
    )


def _told(feature: Feature, windows: list[Any], kept: dict[str, Any]) -> None:
    rows, correct = [], 0
    for n, w in enumerate(windows, 1):
        right = (w.peak is not None) == (n in kept["chosen"])
        correct += right
        notes = ["right" if right else "wrong", "it fires" if w.peak is not None else "it is silent"]
        rows.append(row(w.tokens, w.acts, float(feature.row["max"]), w.peak, value=str(n), notes=notes))
    strips(rows, key="guess told")
    st.markdown(f"**{correct} of {len(windows)} right.**")
    st.button("Again", icon=":material/replay:", on_click=kept.clear)

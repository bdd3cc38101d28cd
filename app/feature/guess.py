"""The guessing game on the Feature page: in which five of ten short texts does the latent fire? It scores its label."""

from collections.abc import Callable
from typing import Any

import numpy as np
import streamlit as st
from scope.app.kit.messages import try_to_write
from scope.app.kit.plain import plain
from scope.app.kit.tokens import row, strips

from scope.errors import PackError
from scope.features.pack.feature import Feature


def game(feature: Feature, so_far: tuple[int, int], draw: Callable[[Feature, int], list[Any]]) -> None:
    """One round at a time; the solution is shown, and the score counted, after all answers were given.

    Args:
        so_far: right answers and questions of earlier rounds.
        draw: gives the windows of a round from a seed.
    """
    kept = st.session_state.setdefault("guess", {})
    right, asked = so_far
    if asked:
        st.caption(f"So far {right} of {asked} right, {right / asked:.0%}; chance is half.")
    if kept.get("latent") != feature.id:
        st.caption("Ten short texts; the latent fires in five of them. Can you tell which, from its label?")
        if not st.button("Play", icon=":material/sports_esports:"):
            return
        kept.clear()
        kept.update(latent=feature.id, seed=int(np.random.default_rng().integers(2**31)), solved=False)
    try:
        windows = draw(feature, kept["seed"])
    except PackError as refusal:
        st.info(plain(refusal))
        kept.clear()
        return
    (_solution if kept["solved"] else _questions)(feature, windows, kept)


def _questions(feature: Feature, windows: list[Any], game: dict[str, Any]) -> None:
    strips([row(w.tokens, [0.0] * len(w.tokens), 1.0, value=str(n)) for n, w in enumerate(windows, 1)], key="guess asked")
    numbers = list(range(1, len(windows) + 1))
    half = len(windows) // 2
    chosen = st.pills("It fires in", numbers, selection_mode="multi", key=f"guessed {game['seed']}", wrap=True)

    def solve() -> None:
        game["solved"], game["chosen"] = True, chosen
        correct = sum(_right(windows, chosen))
        try_to_write(lambda: feature.pack.notes.add_guess(feature.id, correct, len(windows)))

    st.button(
        "Show solution",
        type="primary",
        on_click=solve,
        disabled=len(chosen) != half,
        help=f"Choose {half}: it fires in that many.",
    )


def _right(windows: list[Any], chosen: list[int]) -> list[bool]:
    """Whether each window, numbered from 1, was judged rightly: chosen if the latent fires in it."""
    return [(w.peak is not None) == (n in chosen) for n, w in enumerate(windows, 1)]


def _solution(feature: Feature, windows: list[Any], game: dict[str, Any]) -> None:
    answers, rows = _right(windows, game["chosen"]), []
    for n, (w, right) in enumerate(zip(windows, answers, strict=True), 1):
        notes = ["right" if right else "wrong", "it fires" if w.peak is not None else "it is silent"]
        rows.append(row(w.tokens, w.acts, float(feature.row["max"]), w.peak, value=str(n), notes=notes))
    strips(rows, key="guess told")
    st.markdown(f"**{sum(answers)} of {len(windows)} right.**")
    st.button("Again", icon=":material/replay:", on_click=game.clear)

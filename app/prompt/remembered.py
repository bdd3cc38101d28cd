"""The heat map of a recurrent model on the Prompt page: what is remembered of each token after n more tokens."""

from typing import Any

import numpy as np
import pandas as pd
import streamlit as st
from scope.app.kit import figures, messages
from scope.app.kit.code import heading, opening
from scope.app.kit.latent_tables import piece
from scope.app.kit.plain import number, plain
from scope.app.serve import downloads, models, packs

from scope.errors import ConfigError, ScopeError
from scope.features.face import Pack

MEANING = "The state is a sum of what each token wrote, times what later tokens left of it; with the gates as they are."
RETAINED, SHARE = "Left of what it wrote", "Share of the state"
_CACHED = 8


def draw(store: Pack, view: Any, text: str, latents: list[int]) -> None:
    """Draw the heat map of one layer, of its whole state or of one latent; nothing for a model without recurrent layers."""
    layers, reads = packs.once(store, "recurrent layers", lambda: _layers(store))
    if not layers:
        return
    chosen = st.session_state.get("memory layer", reads if reads is not None else layers[-1])
    lines = opening(str(store.folder)) + "from scope.circuits.memory import memory\n\n"
    lines += f"memory(model, {text!r}{', sae' if chosen == reads else ''}).plot({chosen})"
    heading("What is remembered", lines, "py memory", meaning=MEANING)
    with st.container(horizontal=True, vertical_alignment="bottom"):
        start = layers.index(chosen) if chosen in layers else 0
        layer = st.selectbox("Layer", layers, start, key="memory layer", width=100)
        try:
            result = _memory(store, view, text, layer, latents if layer == reads else [])
        except ScopeError as refusal:
            messages.show_refusal(refusal)
            return
        of_latents = {f"Latent #{j}": int(j) for j in result.layer(layer).latents}
        what = st.selectbox("Of each token", [RETAINED, SHARE, *of_latents], key="memory of", width=240)
        latent = of_latents.get(what)
        every = len(result.times) == len(result.ids)
        meaning = "Every row begins at its token." if every else "Not for long texts, of which some times are drawn only."
        aligned = st.toggle("By tokens since", key="memory aligned", disabled=not every, help=meaning) and every
    measure = "share" if what == SHARE else "retained"
    heat = result.heat(layer, measure, latent)
    tokens = [f"{i} {piece(text)}" for i, text in enumerate(result.pieces)]
    times = [f"+{n}" for n in range(len(tokens))] if aligned else [tokens[t] for t in result.times]
    signed = latent is not None or measure == "share"
    figure = figures.remembered(_since(heat) if aligned else heat, tokens, times, ".0%" if latent is None else ".3g", signed)
    frame = _frame(result, layer, latent)
    st.plotly_chart(figure, config=figures.SMALL, key="memory", alt=_in_words(frame, what, layer))
    st.caption(plain(_summary(result, layer, latent)))
    with st.container(horizontal=True):
        downloads.csv_button("CSV", frame, "remembered.csv", key="csv memory")


def _layers(store: Pack) -> tuple[list[int], int | None]:
    """(the model's recurrent layers, that which the pack's SAE reads if it is one of a state)."""
    from scope.models.griffin.shares import layer_of, recurrent_layers

    with models.in_turn(store) as (model, _):
        try:
            return recurrent_layers(model), layer_of(store.site)
        except ConfigError:
            return [], None


def _memory(store: Pack, view: Any, text: str, layer: int, latents: list[int]) -> Any:
    """The memory of a text in one layer, cached for this session."""
    from scope.circuits.memory import memory

    cached, key = st.session_state.setdefault("memories", {}), (id(store), tuple(view.ids), layer, tuple(latents))
    if key not in cached:
        with models.in_turn(store) as (model, sae), st.spinner("Taking the state apart"):
            cached[key] = memory(model, text, sae if latents else None, latents or None, layers=[layer])
        while len(cached) > _CACHED:
            del cached[next(iter(cached))]
    return cached[key]


def _since(heat: np.ndarray) -> np.ndarray:
    """[token, further tokens] from [token, time], where every position is a time."""
    n = len(heat)
    at = np.arange(n)[:, None] + np.arange(n)[None]
    return np.where(at < n, np.take_along_axis(heat, np.minimum(at, n - 1), 1), np.nan)


def _frame(result: Any, layer: int, latent: int | None) -> pd.DataFrame:
    """A row per token: what is left of it at the end."""
    frame = result.to_frame()
    frame = frame[frame["layer"] == layer].set_index("position")
    return frame if latent is None else frame.assign(half_life=result.half_lives(layer, latent))


def _in_words(frame: pd.DataFrame, what: str, layer: int) -> str:
    column = {RETAINED: "retained", SHARE: "share"}.get(what, what.lower().replace("#", ""))
    top = frame[column].abs().sort_values(ascending=False).index[:5]
    parts = ", ".join(f"{piece(frame['token'][i])} {frame[column][i]:.3g}" for i in top)
    return f"{what}, tokens by time, layer {layer}. Most at the end of the text: {parts}"


def _summary(result: Any, layer: int, latent: int | None) -> str:
    one = result.layer(layer)
    lives = result.half_lives(layer, latent)
    lives = lives[~one.starts & ~np.isnan(lives)]
    median = float(np.median(lives)) if len(lives) else np.nan
    half = "longer than the text" if np.isinf(median) else f"{number(median, '.1f')} tokens"
    line = f"Median half-life {half}. "
    if latent is None:
        start = " ".join(f"{factor:.3g}" for factor in one.lengthening[one.starts])
        line += f"The start of the text has {one.share[one.starts, -1].sum():.1%} of the last state"
        line += f" (its write is {start} times longer). "
    else:
        at = one.latents.tolist().index(latent)
        line += f"At the end tokens add {one.contribution[at, :, -1].sum():+.3g}, the bias {one.bias[at]:+.3g}. "
    return line + f"The sum over tokens misses the model's own state by {one.gap:.0e} of it."

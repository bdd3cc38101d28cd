"""Panels: why a model says a word of a picture, and why a picture and a text fit, as pairs of patch and latent that add up."""

from typing import Any

import numpy as np
import pandas as pd
import streamlit as st
from scope.app.kit import latent_tables, messages
from scope.app.kit.code import heading
from scope.app.kit.pictures import card, pictures, where_in_words
from scope.app.kit.plain import plain, show_line, whole
from scope.app.kit.tokens import row, strips
from scope.app.prompt.picture_reading import PictureReading
from scope.app.serve import models

from scope.errors import ScopeError
from scope.escape import visible_token
from scope.features.face import Pack

MOST_PAIRS = 40
_KEPT = 8


def why_word(store: Pack, read: PictureReading) -> None:
    """The words of the answer, of which one can be chosen; then the patches that made it, beside an ablation of them."""
    code = f"import scope\n\nscope.attribute_picture(model, sae, 'picture.png', {read.question!r}, answer='', pack=pack)"
    heading("Which patch made this word?", code, "py word", meaning="Choose a word of the answer.")
    if not read.answer_pieces:
        st.caption("The model says nothing here, so there is no word to ask about.")
        return
    at = st.session_state.get("word", (None, None))
    at = at[1] if at[0] == read.key else None
    n = len(read.answer_pieces)
    clicked = strips([row(read.answer_pieces, [0.0] * n, 1.0, chosen=at)], key="answer words", pick=True)
    if clicked is not None and clicked[1] != at:
        st.session_state["word"] = (read.key, clicked[1])
        st.rerun()
    if at is None:
        st.caption("Choose a word: by a click, or with the arrow keys and Enter.")
        return
    other = st.text_input(
        "Rather than",
        key="word other",
        placeholder="the likeliest besides",
        help="Another token; what is explained is the difference of the two logits.",
        width=260,
    )
    try:
        parts = _cached(("word", read.key, at, other), lambda: _attribute(store, read, at, other))
    except ScopeError as refusal:
        messages.show_refusal(refusal)
        return
    attributed(store, parts, f"{visible_token(parts.token)!r}")


def _attribute(store: Pack, read: PictureReading, at: int, other: str) -> Any:
    from scope.circuits.picture_attribution import attribute_picture  # needs torch, which browsing does not

    with models.in_turn(store) as (model, sae), st.spinner("Attributing"):
        so_far = model.words.decode(list(read.answer_ids[:at]))
        return attribute_picture(
            model, sae, read.picture, read.question, read.answer_ids[at], other or None, answer=so_far, pack=store
        )


def why_match(store: Pack, read: PictureReading) -> None:
    """Texts of the reader's with their probabilities, and the latents that make one of them fit the picture."""
    code = "import scope\n\nscope.attribute_match(model, sae, 'picture.png', 'a red circle', pack=pack)"
    heading("Does it fit a text?", code, "py match", meaning="The probability that picture and text belong together.")
    text = st.text_area("Texts, one per line", key="match texts", height=100, placeholder="a red circle\na blue square")
    texts = list(dict.fromkeys(line.strip() for line in (text or "").split("\n") if line.strip()))[:50]
    if not texts:
        st.caption("Type some texts, one per line.")
        return
    try:
        probabilities = _cached(("probabilities", read.key, tuple(texts)), lambda: _probabilities(store, read, texts))
    except ScopeError as refusal:
        messages.show_refusal(refusal)
        return
    frame = pd.DataFrame(
        {"text": [show_line(t, 80) for t in texts], "probability": probabilities[0], "logit": probabilities[1]}
    )
    st.dataframe(
        frame,
        hide_index=True,
        height=whole(frame, 10),
        column_config={
            "probability": st.column_config.ProgressColumn("probability", format="percent", min_value=0.0, max_value=1.0),
            "logit": st.column_config.NumberColumn("logit", format="%+.2f"),
        },
        alt=f"{len(frame)} texts with the probability that they fit the picture",
    )
    with st.container(horizontal=True, vertical_alignment="bottom"):
        wanted = st.selectbox("Why does this one fit?", texts, index=None, placeholder="Choose a text", key="match why")
        others = [t for t in texts if t != wanted]
        other = st.selectbox("Rather than", others, index=None, placeholder="nothing: the logit itself", key="match other")
    if wanted is None:
        return
    try:
        parts = _cached(("match", read.key, wanted, other), lambda: _match(store, read, wanted, other))
    except ScopeError as refusal:
        messages.show_refusal(refusal)
        return
    attributed(store, parts, f"{visible_token(parts.token)!r}")


def _probabilities(store: Pack, read: PictureReading, texts: list[str]) -> tuple[list[float], list[float]]:
    import torch

    with models.in_turn(store) as (model, _), torch.no_grad():
        logits = model(model.to_tokens(texts), pixel_values=model.to_pixels([read.picture]))[0].double()
        return torch.sigmoid(logits).tolist(), logits.tolist()


def _match(store: Pack, read: PictureReading, text: str, other: str | None) -> Any:
    from scope.circuits.picture_match import attribute_match

    with models.in_turn(store) as (model, sae), st.spinner("Attributing"):
        return attribute_match(model, sae, read.picture, text, other, pack=store)


def attributed(store: Pack, parts: Any, what: str) -> None:
    """An attribution: drawn on the picture, the ablation, the pairs of patch and latent, and the sum."""
    left, right = st.columns([2, 3], gap="medium")
    with left:
        if len(parts.patch_rows):
            effects = np.asarray(parts.patches, dtype=float)
            words = where_in_words(effects, parts.grid[1], "+.3f", "it speaks")
            small = parts.picture.copy()
            small.thumbnail((448, 448))
            drawn = card(
                parts.draw(),
                small,
                effects,
                parts.grid,
                parts.picture.size,
                alt=f"Effect of each patch on {what}: {words}",
                notes=["orange speaks for it, blue against it"],
                peak=int(np.abs(effects).argmax()) if effects.any() else None,
                form="+.3f",
            )
            pictures([drawn], key="attributed picture", wide=240)
        if parts.ablation is not None:
            st.caption(plain(str(parts.ablation)))
    with right:
        st.subheader("Pairs of patch and latent", anchor=False)
        pairs_table(store, parts)
        st.subheader("The sum", anchor=False)
        latent_tables.attribution(parts)


def pairs_table(store: Pack, parts: Any) -> None:
    """The largest pairs of row and latent."""
    pairs, labels = parts.pairs(MOST_PAIRS), store.table["label"]
    shown = pd.DataFrame(
        {
            "where": [show_line(visible_token(where, mark_space=True), 24) for where in pairs["where"]],
            "latent": pairs["latent"].to_numpy(),
            "effect": pairs["effect"].to_numpy(),
            "null": pairs["null"].to_numpy(),
            "activation": pairs["activation"].to_numpy(),
            "label": [show_line(labels.iat[int(i)], 40) for i in pairs["latent"]],
        }
    )
    number = st.column_config.NumberColumn
    st.dataframe(
        shown,
        hide_index=True,
        height=whole(shown, 8),
        column_config={
            "latent": number(format="%d", width=70),
            "effect": number(format="%+.3f", help="In logits."),
            "null": number(format="%.3f", help=latent_tables.NULL),
            "activation": number(format="%.3g"),
        },
        alt=f"The {len(shown)} largest pairs of a row and a latent",
    )


def _cached(key: tuple, make: Any) -> Any:
    """The result of `make`; the last few are cached for this session."""
    kept = st.session_state.setdefault("picture answers", {})
    if key not in kept:
        kept[key] = make()
        while len(kept) > _KEPT:
            del kept[next(iter(kept))]
    return kept[key]

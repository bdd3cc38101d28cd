"""Panel of the Health page that matches the decoder directions of two SAEs of one site."""

from typing import Any

import numpy as np
import pandas as pd
import streamlit as st
from scope.app.kit import figures, messages
from scope.app.kit.code import heading
from scope.app.kit.plain import plain, show_line
from scope.app.serve import models, session

from scope.errors import DictionaryError, ScopeError
from scope.features.face import Pack

MATCHED = 0.7
"""Cosine from which two latents count as one: a convention, so the whole distribution is drawn beside it."""
LISTED = 50
"""Most latents without a partner that are listed."""


def draw(store: Pack, other: Pack) -> None:
    """A button, and its result: the cosines of the nearest directions, and the latents that the other SAE lacks."""
    meaning = "Finds each direction's nearest in the other SAE. Loads both SAEs, no model."
    lines = "from scope import load_sae\nfrom scope.features.compare.matched_directions import matched_directions\n\n"
    lines += f"pairs, null = matched_directions(load_sae({place(store)!r}), load_sae({place(other)!r}))\npairs.describe()"
    heading("Counterparts by direction", lines, "py directions", meaning=meaning)
    key = ("directions", str(store.folder), id(store), str(other.folder), id(other))
    if st.button("Match directions", icon=":material/join_inner:", help=meaning):
        try:
            with st.spinner("Matching"):
                st.session_state["directions"] = (key, *matched(store, other))
        except ScopeError as refusal:
            messages.show_refusal(refusal)
    cached_key, pairs, null = st.session_state.get("directions", (None, None, None))
    if cached_key == key:
        result(store, pairs, null)


def place(store: Pack) -> str:
    try:
        return models.dictionary_of(store)
    except DictionaryError:
        return "DICTIONARY"


def matched(store: Pack, other: Pack) -> tuple[pd.DataFrame, float]:
    """`scope.features.compare.matched_directions` of the SAEs of two packs.

    Raises:
        DictionaryError: a dictionary is gone, is not the pack's, or the two cannot be matched.
    """
    from scope.features.compare.matched_directions import matched_directions
    from scope.sae.files import parameters_sha256

    saes: list[Any] = []
    for each in (store, other):
        sae = models.load_dictionary(models.dictionary_of(each))
        if parameters_sha256(sae) != each.dictionary.parameters_sha256:
            raise DictionaryError(f"The SAE beside {each.folder} is not the one that the pack was made from.")
        saes.append(sae)
    with models.memory_errors():
        return matched_directions(*saes)


def result(store: Pack, pairs: pd.DataFrame, null: float) -> None:
    """The distribution of the best cosines, and the latents without a partner, of which one can be opened."""
    cosine = pairs["cosine"].to_numpy(float)
    partner = cosine >= MATCHED
    summary = f"Median cosine with the nearest {np.median(cosine):.2f}; of random directions {null:.2f}. "
    summary += f"{partner.mean():.1%} of {len(cosine):,} latents have a partner with a cosine of {MATCHED:g} or more."
    edges = np.linspace(min(0.0, float(cosine.min())), 1, 41)
    spread = {"nearest": (edges, np.histogram(cosine.clip(max=1.0), edges)[0])}
    left, right = st.columns([2, 3])
    with left:
        st.plotly_chart(figures.spreads(spread, log=False), config=figures.SMALL, key="directions spread", alt=summary)
        st.caption(plain(summary))
    alone = np.flatnonzero(~partner & (store.index.column("count") > 0))
    alone = alone[np.argsort(cosine[alone], kind="stable")][:LISTED]
    with right:
        st.caption(f"Living latents without a partner, lowest cosine first: {len(alone):,} shown. A click opens one.")
        rows = pd.DataFrame({"latent": alone, "cosine": cosine[alone], "nearest there": pairs["other"].to_numpy()[alone]})
        rows["label"] = [show_line(store.table["label"].iat[i]) for i in alone]
        picked = st.dataframe(
            rows,
            hide_index=True,
            height=260,
            column_config={"cosine": st.column_config.NumberColumn(format="%.2f")},
            on_select="rerun",
            selection_mode="single-cell",
            key="directions alone",
            alt=f"{len(rows)} latents without a partner",
        )
    if picked.selection.cells:
        session.go("feature", f=int(alone[picked.selection.cells[0][0]]))

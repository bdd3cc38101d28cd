"""What the Prompt page draws: tables of latents that can be picked, and an attribution whose rows add up."""

from typing import Any

import pandas as pd
import streamlit as st
from scope.app.kit.latent_tables import piece
from scope.app.kit.plain import plain, show_line


def dictionaries(rows: pd.DataFrame, key: str) -> None:
    """What each dictionary makes of the text, a row each."""
    shown = rows.assign(dictionary=[show_line(name, 40) for name in rows["dictionary"]])
    config = {
        "fires": st.column_config.NumberColumn("fire", format="%.1f", help="Latents that fire on a token; mean over the text."),
        "fvu": st.column_config.NumberColumn(
            "unexplained (FVU)",
            format="percent",
            help="0 % is perfect; 100 % is what the text's mean activation leaves.",
        ),
        "latents": st.column_config.NumberColumn("of", format="localized"),
    }
    st.dataframe(shown, hide_index=True, column_config=config, key=key, alt=f"{len(rows)} dictionaries on this text")


def following(tokens: pd.DataFrame, key: str) -> None:
    """What the model says next, with probabilities."""
    shown = pd.DataFrame({"token": [piece(token) for token in tokens["token"]], "p": tokens["p"].to_numpy()})
    config = {"p": st.column_config.ProgressColumn("p", format="percent", min_value=0.0, max_value=1.0)}
    st.dataframe(shown, hide_index=True, column_config=config, key=key, alt="The likeliest next tokens")


def ablated(found: Any) -> None:
    """What the next token would be without a latent: probabilities before and after, beside the null."""
    shown = pd.DataFrame(
        [{"token": piece(t["token"]), **{k: t[k] for k in ("plain", "edited", "change")}} for t in found.tokens]
    )
    percent = {k: st.column_config.NumberColumn(k, format="percent") for k in ("plain", "edited")}
    config = {**percent, "change": st.column_config.NumberColumn("change", format="%+.4f")}
    st.dataframe(shown, hide_index=True, column_config=config, key="ablated", alt="Next token with and without the latent")
    null = sorted(found.null_kl)
    told = f"KL to the plain run {found.kl:.4f} nats"
    if null:
        told += f"; ablating {len(null)} others that are as strong here: median {null[len(null) // 2]:.4f}, most {null[-1]:.4f}"
    st.caption(plain(told + "."))
    for note in found.notes:
        st.info(plain(note))

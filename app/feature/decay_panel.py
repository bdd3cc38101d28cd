"""The panel of a latent of a recurrent state: how long it lasts, and of which tokens most is left."""

import pandas as pd
import streamlit as st
from scope.app.kit import figures
from scope.app.kit.plain import plain

from scope.escape import visible_token
from scope.features.pack.decay import LONG, MORE_THAN_ALL, steps
from scope.features.pack.feature import Feature

MEANING = "What is left, after further tokens, of what tokens added to it; with the gates of the text as they are."


def of_a_state(site: str) -> bool:
    """Whether latents of this site last: those of a recurrent state or of what is written into it."""
    return site.endswith((".rec.hook_state", ".rec.hook_write"))


def decay(feature: Feature) -> None:
    """Its half-life, its decay profile beside that of all writes, and the tokens of which most is left."""
    whole, row = feature.pack.decay, feature.decay
    if whole is None:
        st.caption(
            "This pack holds no decay profiles. Make it again with `scope features`: it measures them for SAEs of a state."
        )
        return
    if row is None:
        st.caption(f"It was written too few times in {whole.tokens:,} tokens for a decay profile.")
        return
    half, low, high = (steps(value, whole.ages) for value in (row.half_life, row.low, row.high))
    null = ""
    if whole.null is not None:
        null = f"; on the model with its weights drawn again {whole.null:.0%} [{whole.null_low:.0%}, {whole.null_high:.0%}]"
    st.markdown(plain(f"Half-life {half} tokens [95 %: {low} to {high}], from {row.writes:,} writes."))
    st.caption(plain(f"Of all latents of this SAE {whole.share:.0%} last beyond {LONG} tokens{null}."))
    figure = figures.decay(whole.ages, row.profile, whole.state, row.half_life)
    st.plotly_chart(figure, config=figures.SMALL, key="decay", alt=_in_words(whole.ages, row.profile, half))
    if not row.retained:
        return
    frame = pd.DataFrame(
        {
            "token": [visible_token(kept.token, mark_space=True) for kept in row.retained],
            "left": [kept.left for kept in row.retained],
            "count": [kept.count for kept in row.retained],
        }
    )
    column, meaning = st.column_config.NumberColumn, f"Of what the token added to the latent. {MORE_THAN_ALL}"
    if frame["left"].max() > 1:
        st.caption(MORE_THAN_ALL)
    st.dataframe(
        frame,
        hide_index=True,
        alt=f"{len(frame)} tokens of which most is left",
        column_config={
            "left": column(f"left after {whole.kept_at}", format="percent", help=meaning),
            "count": column("writes", format="%d", help="How often the latent fired and was written there."),
        },
    )


def _in_words(ages: tuple[int, ...], profile: tuple[float | None, ...], half: str) -> str:
    parts = [f"{left:.0%} after {age}" for age, left in zip(ages, profile, strict=True) if left is not None]
    return f"Half-life {half} tokens. Left of what was added: {', '.join(parts)}"

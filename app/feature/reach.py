"""What a latent's tiles leave out: how its activation is spread, what was counted, how its direction lies over all tokens."""

import math

import numpy as np
import streamlit as st
from scope.app.kit import figures
from scope.app.kit.plain import number, plain

from scope.features.pack.feature import Feature


def counted(feature: Feature) -> None:
    """Activation in the strongest hundredth of its firings, and on how much text all these figures stand, in a line."""
    store, share = feature.pack, feature.mass_of_strongest(0.01)
    excluded = store.manifest.get("excluded", "")
    without = ", ".join(excluded) if isinstance(excluded, list) else str(excluded).split(":")[0]
    parts = [f"counted on {store.n_tokens:,} tokens" + (f" (left out: {without})" if without else "")]
    if not math.isnan(share):
        parts.insert(0, f"its strongest 1 % of firings hold {share:.1%} of its activation (1 % if all were alike; within 9 %)")
    st.caption(plain("; ".join(parts)[:1].upper() + "; ".join(parts)[1:] + "."))


def measured(feature: Feature) -> str:
    """How far adding it moves the next token, beside random directions of its length, in a line; "" where not measured."""
    kl, null = feature.row["out_kl"], (feature.pack.manifest.get("output_score") or {}).get("null_kl")
    if kl is None or math.isnan(kl):
        return ""
    beside = "" if null is None else f"; random directions of this length, {null:.3g}"
    return f"Added, it moves the next token by {kl:.3g} nats (KL){beside}."


def over_vocabulary(feature: Feature) -> None:
    """Its direction over the whole vocabulary: drawn when it is opened, since a figure costs the page time."""
    told = measured(feature)
    if told:
        st.caption(plain(told))
    opened = st.expander("Over the whole vocabulary", icon=":material/bar_chart:", key="vocabulary", on_change="rerun")
    if not opened.open:
        return
    with opened:
        found = feature.logit_histogram
        if found is None:
            st.caption("Not in this pack: it was made before this was kept, or its site lies outside the residual stream.")
            return
        edges, counts = found
        marks = [pairs[min(9, len(pairs) - 1)][1] for pairs in (feature.promoted, feature.suppressed) if pairs]
        row = feature.row
        shape = (
            f"{int(np.sum(counts)):,} tokens; standard deviation {number(row['logit_std'])}, skewness "
            f"{number(row['logit_skew'], '+.2f')}, excess kurtosis {number(row['logit_kurtosis'], '+.1f')} (0 for a bell "
            "curve; large where a few tokens stand out). Beyond the dotted lines lie the ten foremost of each side."
        )
        st.plotly_chart(
            figures.over_vocabulary(edges, counts, marks), config=figures.SMALL, key="over vocabulary", alt="Tokens by logit"
        )
        st.caption(plain(shape))

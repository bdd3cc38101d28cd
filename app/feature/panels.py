"""Panels of one latent: its numbers, promoted tokens, activation histogram, related latents, tokens on which it fires."""

import math
from typing import Any

import numpy as np
import pandas as pd
import streamlit as st
from scope.app.kit import figures
from scope.app.kit.bars import bars_data, signed_bars
from scope.app.kit.messages import guarded
from scope.app.kit.pictures import example_card, pictures
from scope.app.kit.plain import number, plain, show_line, whole
from scope.app.kit.small_table import Column, small_table
from scope.app.kit.tiles import tiles_data
from scope.app.kit.tokens import example_row, strips
from scope.app.kit.tokens import row as token_row
from scope.app.serve import pack_facts

from scope.escape import visible_token
from scope.features.pack.feature import Feature


def numbers(feature: Feature) -> dict[str, Any]:
    """The latent's four foremost numbers as tiles; the Activations tab has the others."""
    row = feature.row
    half, near = f"half its firings on {row['n_tokens_half']:,}", f"cosine to #{row['nearest']}"
    score = "Measured rise of its promoted tokens' probability when the latent is added; the null is a random direction."
    mean = "Mean activation over its firings; the median is within 9 %."
    noun = pack_facts.rows_noun(feature.pack)
    frequency = f"Share of the pack's {noun} on which it fires."
    rows = [
        ("Firing frequency", f"{row['density']:.3%}", f"{row['count']:,} firings", frequency),
        ("Mean when firing", number(row["mean"]), f"median {number(row['p50'])}", mean),
        ("Largest", number(row["max"]), f"p99 {number(row['p99'])}", "Exact maximum; the percentile is within 9 %."),
        ("Output score", number(row["out_score"], "+.3f"), _null(feature), score),
        ("Tokens", f"{row['n_tokens']:,}", half, "Distinct tokens on which it fired."),
        ("Nearest", number(row["nearest_cos"], ".2f"), near, "Largest cosine with another latent's decoder direction."),
    ]
    wanted = ("Firing frequency", "Largest", "Output score", "Tokens")
    if noun in ("patches", "pictures"):  # such rows are no tokens and promote none
        wanted = ("Firing frequency", "Mean when firing", "Largest", "Nearest")
    return tiles_data([row for row in rows if row[0] in wanted], border=False)


def _null(feature: Feature) -> str:
    null = feature.pack.manifest.output_score.null_p95
    return "" if null is None else f"95 % of nulls below {null:+.3f}"


def histogram(feature: Feature, mark: float | None = None) -> None:
    """Histogram of its activations, log or linear, with the edges of the strength bands."""
    edges, counts = feature.histogram
    linear = st.toggle("Linear", key="linear", help="Linear scale of activations instead of a logarithmic one.")
    bands = [band["low"] for band in feature.bands] + [band["high"] for band in feature.bands[-1:]]
    figure = figures.histogram(edges, counts, bands, log=not linear, mark=mark)
    summary = f"From {number(float(feature.row['p50']))} at the median to {number(float(feature.row['max']))} at most."
    st.plotly_chart(figure, config=figures.SMALL, key="histogram", alt=summary)


def promoted(feature: Feature) -> dict[str, Any]:
    """The ten tokens that it promotes most by its weights, as bars; {} where the pack does not hold them."""
    name, pairs = "Promoted, by weights", feature.promoted
    if not pairs:
        return {}
    title = (f"{name}: logit", "The logits that its direction alone would add. The Promoted tab has what was measured.")
    return bars_data(pairs[:10], alt=f"{name}: {len(pairs[:10])} tokens", title=title)


def output(feature: Feature) -> None:
    """Promoted and suppressed tokens by weights, beside the tokens whose probability rose when the latent was added."""
    lists = [
        (
            "Promoted, by weights",
            feature.promoted,
            "logit",
            "+.2f",
            "The logits that its direction alone would add, through the final norm's gain.",
        ),
        (
            "Promoted, measured",
            feature.measured,
            "probability",
            "+.2%",
            "Rise of the probability when the latent is added, mean over neutral prompts.",
        ),
        ("Suppressed, by weights", feature.suppressed, "logit", "+.2f", "Tokens whose logits its direction lowers most."),
    ]
    for column, (name, pairs, unit, form, meaning) in zip(st.columns(3), lists, strict=True):
        with column:
            st.subheader(name, anchor=False, help=meaning)
            if pairs:
                signed_bars(pairs[:10], form, key=f"bars {name}", alt=f"{name}: {len(pairs[:10])} tokens")
            else:
                st.caption(
                    "Not measured. `scope features … --output-score` measures it."
                    if unit == "probability"
                    else "Not in this pack."
                )
    weights, measured = {token for token, _ in feature.promoted[:10]}, {token for token, _ in feature.measured[:10]}
    if weights and measured and len(weights & measured) <= 2:
        st.caption(
            f":material/warning: Only {len(weights & measured)} of {len(weights)} tokens are in both lists: the weights "
            "alone do not predict its effect. Trust the measured list."
        )


RELATIONS = {
    "nearest": ("Nearest", "Cosine between decoder rows, the largest."),
    "opposite": ("Opposite", "Cosine between decoder rows, the most negative."),
    "together": (
        "Fire together",
        "Share of this latent's firings on which the other fires too, and how many times its usual frequency that is (lift).",
    ),
    "same": ("Same token", "Latents with the same most frequent token, and its share of their firings."),
}


def relations(feature: Feature) -> int | None:
    """Tables of related latents: by direction, firing together or on the same token. Returns the one to open, or None."""
    table, with_words = feature.pack.table, pack_facts.rows_noun(feature.pack) in ("tokens", "rows")
    kind = st.segmented_control(
        "Relation",
        [kind for kind in RELATIONS if with_words or kind != "same"],
        default="nearest",
        required=True,
        format_func=lambda k: RELATIONS[k][0],
        key="relation",
        label_visibility="collapsed",
    )
    if kind == "nearest":
        rows = [{"latent": j, "cosine": c} for j, c in feature.neighbours]
    elif kind == "opposite":
        rows = [{"latent": j, "cosine": c} for j, c in feature.opposites or []]
    elif kind == "together":
        rows = [{"latent": j, "share": p, "lift": lift} for j, p, lift in feature.co_firing]
    else:
        rows = [{"latent": j, "share": share} for j, share in same_top_token(feature)]
    st.caption(RELATIONS[kind][1])
    if not rows:
        unknown = kind == "opposite" and feature.opposites is None
        st.caption("Not in this pack, which was made by an older version: make it again to have them." if unknown else "None.")
        return None
    frame = pd.DataFrame(rows)
    frame["label"] = [show_line(table["label"].iat[j]) for j in frame["latent"]]
    config = {
        "latent": st.column_config.NumberColumn(format="%d", width=70),
        "cosine": st.column_config.NumberColumn(format="%+.3f"),
        "share": st.column_config.NumberColumn(format="percent"),
        "lift": st.column_config.NumberColumn(format="%.1f"),
    }
    chosen = st.dataframe(
        frame,
        hide_index=True,
        column_config={name: column for name, column in config.items() if name in frame},
        key=f"{kind} {feature.id}",
        height=whole(frame, 10),
        on_select="rerun",
        selection_mode=["single-row", "single-cell"],
        alt=f"{RELATIONS[kind][0]}: {len(frame)} latents; a click on a cell opens one, the box beside it shows its examples",
    ).selection
    if chosen.cells:
        return int(frame["latent"].iat[chosen.cells[0][0]])
    if not chosen.rows:
        st.caption("Click a cell to open a latent; tick a row to see its examples here.")
        return None
    other = feature.pack[int(frame["latent"].iat[chosen.rows[0]])]
    st.caption(f"\\#{other.id} {plain(other.label)}")
    with guarded():
        if feature.pack.pictures is not None:
            pictures([example_card(e) for e in other.pictures("top", 4)], key=f"pictures of {other.id}", wide=110)
            return None
        examples = other.examples("top", 3)
        strips([example_row(e, float(other.row["max"]), 12) for e in examples], key=f"examples of {other.id}")
    return None


def same_top_token(feature: Feature, n: int = 10) -> list[tuple[int, float]]:
    """(latent, share of its firings) of the latents with the same most frequent token, largest share first."""
    pieces, share = feature.pack.index.text("top_token"), feature.pack.index.column("top_token_share")
    same = np.flatnonzero((pieces.codes == pieces.codes[feature.id]) & (feature.pack.index.column("count") > 0))
    same = same[same != feature.id] if feature.row["top_token"] else same[:0]
    return [(int(j), float(share[j])) for j in same[np.argsort(-share[same], kind="stable")][:n]]


def tokens(feature: Feature) -> None:
    """Table of the tokens on which it fires."""
    rows = feature.tokens
    if not rows:
        st.caption("It never fired.")
        return
    columns = [
        Column("token", [visible_token(row["token"], mark_space=True) for row in rows]),
        Column("firings", [row["count"] for row in rows], ",d"),
        Column("of its firings", [row["p_token_given_fires"] for row in rows], ".1%", "P(token | fires)."),
        Column("fires on it", [row["p_fires_given_token"] for row in rows], ".1%", "P(fires | token)."),
        Column("lift", [row["lift"] for row in rows], ".1f", "How many times likelier the token is when the latent fires."),
        Column("mean activation", [row["mean"] for row in rows], ".3g"),
    ]
    small_table(columns, key="tokens of latent", alt=f"{len(rows)} tokens on which the latent fires")


def roles(feature: Feature) -> None:
    """Table of how often it fires on rows of each role, as of infilling: prefix, suffix, middle, control."""
    frame = pd.DataFrame(feature.by_role)
    column = st.column_config.NumberColumn
    st.dataframe(
        frame,
        hide_index=True,
        alt=f"Firing frequency by role: {', '.join(frame['role'])}",
        column_config={
            "rows": column(format="%d", help="Rows of this role that were read."),
            "density": column("fires on", format="percent", help="Share of these rows on which it fires."),
            "lift": column(format="%.1f", help="How many times its frequency on all counted rows that is."),
            "mean": column("mean activation", format="%.3g"),
        },
    )
    if "control" in set(frame["role"]):
        st.caption("Control tokens count in this table alone, and in no norm.")


LOOKAHEAD = "Whether it fires in a middle because of the suffix: each middle read with its own suffix, and with others."


def suffix_lookahead(feature: Feature) -> None:
    """What exchanging the suffix does to it in middles, beside chance, and the example in which it gains most."""
    result, row = feature.pack.lookahead, feature.lookahead
    if result is None or row is None:
        st.caption("It fired in too few middles to be tested.")
        return
    looks = row.latent in {r.latent for r in result.ahead}
    lost = "" if math.isnan(row.lost) else f": {row.lost:.0%} lost" if row.lost >= 0 else f": {-row.lost:.0%} gained"
    verdict = "it looks ahead" if looks else "within chance"
    line = (
        f"Mean activation in middles {number(row.own)} with their own suffix, {number(row.others)} with others'{lost}. "
        f"On the half of the documents that chose, z {row.z:.1f} (chance over all latents reaches {result.own.threshold:.1f}); "
        f"on the other, z {row.z_held_out:.1f}, p {row.p_held_out:.3f}: {verdict}."
    )
    floor = "" if row.floor_z is None else f" In {result.floor_model}: z {row.floor_z:.1f}."
    st.caption(plain(line + floor))
    place = row.place
    if place is None:
        return
    largest = max(place.own + place.others)
    rows = [(place.own, "with its own suffix"), (place.others, f"with {result.exchanged}, mean")]
    strips([token_row(place.tokens, acts, largest, notes=[note]) for acts, note in rows], key=f"lookahead {feature.id}")
    st.caption("Before it and after it:")
    st.code(f"{place.before}⟨…⟩{place.after}", language=None, wrap_lines=True)


def counts_line(feature: Feature) -> None:
    """How concentrated its activation is, and on how much text these numbers were counted, in one line."""
    store, share = feature.pack, feature.mass_of_strongest(0.01)
    without = store.manifest.excluded.split(":")[0]
    noun = pack_facts.rows_noun(store)
    left_out = f" (left out: {without})" if without and noun in ("tokens", "rows") else ""
    parts = [f"counted on {store.n_tokens:,} {noun}{left_out}"]
    if not math.isnan(share):
        parts.insert(0, f"its strongest 1 % of firings hold {share:.1%} of its activation (1 % if all were equal; within 9 %)")
    st.caption(plain("; ".join(parts)[:1].upper() + "; ".join(parts)[1:] + "."))


def effect_line(feature: Feature) -> str:
    """KL of the next token when the latent is added, beside random directions of its length; "" where not measured."""
    kl, null = feature.row["out_kl"], feature.pack.manifest.output_score.null_kl
    if kl is None or math.isnan(kl):
        return ""
    beside = "" if null is None else f"; random directions of this length, {null:.3g}"
    return f"Adding it changes the next token by {kl:.3g} nats (KL){beside}."


def over_vocabulary(feature: Feature) -> None:
    """Its logits over the whole vocabulary, drawn only when opened, since a figure takes time."""
    line = effect_line(feature)
    if line:
        st.caption(plain(line))
    opened = st.expander("Over the whole vocabulary", icon=":material/bar_chart:", key="vocabulary", on_change="rerun")
    if not opened.open:
        return
    with opened:
        histogram = feature.logit_histogram
        if histogram is None:
            st.caption("Not in this pack: it was made by an older version, or its site is outside the residual stream.")
            return
        edges, counts = histogram
        marks = [pairs[min(9, len(pairs) - 1)][1] for pairs in (feature.promoted, feature.suppressed) if pairs]
        row = feature.row
        summary = (
            f"{int(np.sum(counts)):,} tokens; standard deviation {number(row['logit_std'])}, skewness "
            f"{number(row['logit_skew'], '+.2f')}, excess kurtosis {number(row['logit_kurtosis'], '+.1f')} (0 for a bell "
            "curve; large where a few tokens stand out). The dotted lines mark the top ten of each side."
        )
        st.plotly_chart(
            figures.over_vocabulary(edges, counts, marks), config=figures.SMALL, key="over vocabulary", alt="Tokens by logit"
        )
        st.caption(plain(summary))

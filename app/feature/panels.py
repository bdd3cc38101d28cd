"""The panels of one latent: what it does to the output, what it stands beside, on which tokens it fires, where it fired."""

import math
from collections.abc import Callable

import numpy as np
import pandas as pd
import streamlit as st
from scope.app.kit import figures
from scope.app.kit.bars import signed_bars
from scope.app.kit.messages import guarded
from scope.app.kit.plain import number, plain, show_line
from scope.app.kit.tokens import example_row, first_shown, strips

from scope.escape import visible_token
from scope.features.pack.feature import Example, Feature
from scope.models.text.characters import characters

GROUPS = {"top": "Top", "bands": "Bands", "random": "Random", "near": "Near misses"}
MEANING = {
    "top": "The strongest firings, one a context, repeats once: what it does at its loudest, not what it mostly does.",
    "bands": "A uniform sample within each strength band, the strongest band first.",
    "random": "A uniform sample of all its firings: what it mostly does.",
    "near": "Positions where it stayed silent on a token on which it often fires.",
}


def numbers(feature: Feature) -> None:
    """Its figures in a row of tiles."""
    row = feature.row
    tiles = [
        ("Density", f"{row['density']:.3%}", f"{row['count']:,} firings", "Share of the pack's tokens on which it fires."),
        (
            "Mean when on",
            number(row["mean"]),
            f"median {number(row['p50'])}",
            "Activation over its firings; the median is within 9 %.",
        ),
        ("Largest", number(row["max"]), f"p99 {number(row['p99'])}", "Exact maximum; the percentile is within 9 %."),
        (
            "Output score",
            number(row["out_score"], "+.3f"),
            _null(feature),
            "Measured rise of its promoted tokens' probability when it is added; the null is a random direction.",
        ),
        (
            "Tokens",
            f"{row['n_tokens']:,}",
            f"half its firings on {row['n_tokens_half']:,}",
            "Different tokens on which it fired.",
        ),
        (
            "Nearest",
            number(row["nearest_cos"], ".2f"),
            f"cosine to #{row['nearest']}",
            "Largest cosine with another latent's decoder direction.",
        ),
    ]
    with st.container(horizontal=True, gap="small"):
        for name, value, beside, meaning in tiles:
            st.metric(name, value, beside, delta_color="off", delta_arrow="off", help=meaning)


def _null(feature: Feature) -> str:
    null = (feature.pack.manifest.get("output_score") or {}).get("null_p95")
    return "" if null is None else f"95 % of nulls below {null:+.3f}"


def histogram(feature: Feature, mark: float | None = None) -> None:
    """Activations when it fires, log or linear, with the edges of the strength bands."""
    edges, counts = feature.histogram
    linear = st.toggle("Linear", key="linear", help="Linear scale of activations instead of a logarithmic one.")
    bands = [band["low"] for band in feature.bands] + [band["high"] for band in feature.bands[-1:]]
    figure = figures.histogram(edges, counts, bands, log=not linear, mark=mark)
    told = f"From {number(float(feature.row['p50']))} at the median to {number(float(feature.row['max']))} at most."
    st.plotly_chart(figure, config=figures.SMALL, key="histogram", alt=told)


def output(feature: Feature) -> None:
    """Promoted and suppressed tokens by weights, and beside them what rose when it was really added."""
    lists = [
        (
            "Raises, by weights",
            feature.promoted,
            "logit",
            "+.2f",
            "Through the final norm's gain: what its direction alone would do.",
        ),
        (
            "Raises, as measured",
            feature.measured,
            "probability",
            "+.2%",
            "Rise of the probability when it was added, mean over neutral prompts.",
        ),
        ("Lowers, by weights", feature.suppressed, "logit", "+.2f", "Tokens whose logits its direction lowers most."),
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
            f":material/warning: Only {len(weights & measured)} of {len(weights)} tokens are in both lists: what the weights "
            "promise is not what the model does with it. Trust the measured list."
        )


def examples(
    feature: Feature, on_action: Callable[[str, str], None], token_panel: Callable[[Example, int], None] | None = None
) -> None:
    """Where it fired, in four honest samples. `on_action` gets "test" or "prompt", whichever was pressed, and the text.

    A click on a token draws `token_panel` of the example and the token's index in it, under the example; a second click on the
    same token takes it away.
    """
    groups = [name for name in GROUPS if name in feature.groups]
    if not groups:
        st.caption("No examples in this pack.")
        return
    wanted = st.session_state.pop("group asked", None) or st.session_state.get("group")
    st.session_state["group"] = wanted if wanted in groups else groups[0]
    with st.container(horizontal=True, vertical_alignment="center"):
        group = st.segmented_control(
            "Examples",
            groups,
            required=True,
            format_func=GROUPS.get,
            key="group",
            label_visibility="collapsed",
        )
        window = st.segmented_control(
            "Window",
            [8, 32, 0],
            default=32,
            required=True,
            format_func=lambda w: f"±{w}" if w else "all",
            key="window",
            label_visibility="collapsed",
        )
        breaks = st.toggle("Line breaks", key="breaks", help="Begin a new line at each line break.")
        own = st.toggle("Scale to each", key="own", help="Colour by each example's own maximum instead of the latent's.")
    st.caption(MEANING[group])
    most = st.session_state.get("most", {}).get((feature.id, group), 12)
    found = feature.examples(group, most + 1)
    further = len(found) > most
    if further:  # of bands, one more is another choice
        found = feature.examples(group, most) if group == "bands" else found[:most]
    bands, chosen = {band["band"]: band for band in feature.bands}, st.session_state.get("chosen token")
    places = [(feature.id, group, example.context, example.offset) for example in found]
    open_at = next((n for n, place in enumerate(places) if chosen and chosen[:4] == place), None)
    rows = []
    for n, example in enumerate(found):
        unit = told(feature, bands.get(example.band) if group == "bands" else None, example.value)
        largest = 0.0 if own else float(feature.row["max"])
        rows.append(example_row(example, largest, window, unit, chosen[4] if n == open_at else None))

    def choose(n: int, token: int) -> None:
        picked = (*places[n], first_shown(found[n], window) + token)
        st.session_state["chosen token"] = None if picked == st.session_state.get("chosen token") else picked

    def drawn(begin: int, stop: int | None) -> None:
        part = "" if begin == 0 else " further"
        picked = strips(
            rows[begin:stop],
            key=f"examples {feature.id} {group}{part}",
            breaks=breaks,
            actions=("test", "prompt"),
            on_pick=(lambda n, token: choose(begin + n, token)) if token_panel else None,
        )
        if picked is not None and isinstance(picked[1], str) and begin + picked[0] < len(found):
            on_action(picked[1], text_of(found[begin + picked[0]]))

    drawn(0, None if open_at is None else open_at + 1)
    if open_at is not None and token_panel is not None:
        token_panel(found[open_at], chosen[4])
        if open_at + 1 < len(rows):
            drawn(open_at + 1, None)
    if further and st.button("More", icon=":material/expand_more:", type="tertiary"):
        st.session_state.setdefault("most", {})[feature.id, group] = most + 24
        st.rerun(scope="fragment")


def text_of(example: Example, stop: int | None = None) -> str:
    """An example as text, up to a token (exclusive) or all of it: bytes made characters again, without control tokens and torn
    characters."""
    pieces = [
        piece for _, _, piece in characters(example.tokens[:stop]) if not (piece.startswith("<0x") and piece.endswith(">"))
    ]
    return "".join(piece for piece in pieces if piece not in ("<bos>", "<eos>", "<pad>")).strip()


def told(feature: Feature, band: dict | None, value: float) -> str:
    """Where a value stands among the latent's firings; for a band, how much of them and of their mass it holds."""
    if band is not None:
        shares = f"{band['share']:.1%} of firings, {band['mass_share']:.1%} of activation"
        return f"band {band['low']:.3g} to {band['high']:.3g}: {shares}"
    if value <= 0:
        return ""
    weaker = math.floor(1000 * min(feature.quantile(value), 1 - 1 / max(feature.row["count"], 1))) / 10
    return f"stronger than {weaker:.1f} % of its firings"


RELATIONS = {
    "nearest": ("Nearest", "Cosine between decoder rows, the largest."),
    "opposite": ("Opposite", "Cosine between decoder rows, the most negative: what one writes, the other takes away."),
    "together": (
        "Fire together",
        "Share of this latent's firings on which the other fires too, and how many times that is its usual density.",
    ),
    "same": ("Same token", "Latents whose most frequent token is the same one, and its share of their firings."),
}


def relations(feature: Feature) -> int | None:
    """Latents that point the same way, fire at the same time or on the same token; the one that is to be opened, or None."""
    table = feature.pack.table
    kind = st.segmented_control(
        "Relation",
        list(RELATIONS),
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
        rows = [{"latent": j, "share": share} for j, share in siblings(feature)]
    st.caption(RELATIONS[kind][1])
    if not rows:
        unknown = kind == "opposite" and feature.opposites is None
        st.caption(
            "Not in this pack, which was made before they were kept: make it again to have them." if unknown else "None."
        )
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
        found = other.examples("top", 3)
        strips([example_row(e, float(other.row["max"]), 12) for e in found], key=f"examples of {other.id}")
    return None


def siblings(feature: Feature, n: int = 10) -> list[tuple[int, float]]:
    """(latent, share of its firings) of others whose most frequent token is this latent's, the purest first."""
    pieces, share = feature.pack.index.text("top_token"), feature.pack.index.column("top_token_share")
    same = np.flatnonzero((pieces.codes == pieces.codes[feature.id]) & (feature.pack.index.column("count") > 0))
    same = same[same != feature.id] if feature.row["top_token"] else same[:0]
    return [(int(j), float(share[j])) for j in same[np.argsort(-share[same], kind="stable")][:n]]


def tokens(feature: Feature) -> None:
    """The tokens on which it fires."""
    rows = feature.tokens
    if not rows:
        st.caption("It fired on none.")
        return
    frame = pd.DataFrame(rows).drop(columns="id")
    frame["token"] = [visible_token(token, mark_space=True) for token in frame["token"]]
    percent = st.column_config.NumberColumn
    st.dataframe(
        frame,
        hide_index=True,
        height=min(36 * len(frame) + 40, 400),
        alt=f"{len(frame)} tokens on which the latent fires",
        column_config={
            "count": percent("firings", format="%d"),
            "p_token_given_fires": percent("of its firings", format="percent", help="P(token | fires)."),
            "p_fires_given_token": percent("fires on it", format="percent", help="P(fires | token)."),
            "lift": percent(format="%.1f", help="How many times likelier the token is when it fires."),
            "mean": percent("mean activation", format="%.3g"),
        },
    )

"""Examples of a latent's firings from four samples, as texts and as pictures, and the rank of a value among its firings."""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any
from urllib.parse import urlencode

import numpy as np
import streamlit as st
from scope.app.kit.pictures import example_card, pictures
from scope.app.kit.tokens import example_row, first_shown, strips, strips_data
from scope.app.serve import packs

from scope.features.pack.data import PackData
from scope.features.pack.feature import Example, Feature
from scope.features.pack.pictures import PictureExample
from scope.models.text.characters import characters

GROUPS = {"top": "Top", "bands": "Bands", "random": "Random", "near": "Near misses"}
MEANING = {
    "top": "The strongest firings, one per context, near-duplicates once. They show its maximum, not its typical firing.",
    "bands": "A uniform sample within each strength band, the strongest band first.",
    "random": "A uniform sample of all its firings: its typical behaviour.",
    "near": "Positions where it did not fire on a token on which it often fires.",
}
COUNTED = "Rows and columns of patches count from 0, from the top left."
LINE, WIDEST = -1, 24
"""The window in which each example takes one line, and the tokens on either side that such a line can hold."""
WINDOWS = (LINE, 8, 32, 0)
"""Tokens to either side of the peak; 0 for all."""
ACTIONS = ("test", "prompt")
"""The buttons of each example."""
SHOWN = 12
"""Examples of a sample that are shown before "More" is pressed."""


@dataclass(frozen=True)
class View:
    """How examples are shown: which sample, tokens to either side of the peak (0 for all, LINE for one line each), whether a
    line break begins a line, and whether colours are relative to each example's own maximum."""

    group: str
    window: int = LINE
    breaks: bool = False
    each_own: bool = False

    @property
    def tokens(self) -> int:
        return WIDEST if self.window == LINE else self.window

    @property
    def address(self) -> str:
        """The view as parameters of an address."""
        return urlencode({name: int(value) if name != "group" else value for name, value in asdict(self).items()})


def groups_of(feature: Feature) -> list[str]:
    """The samples that a latent has, in their order."""
    return [name for name in GROUPS if name in feature.groups]


def sample(feature: Feature, group: str, most: int) -> tuple[list[Example], bool]:
    """At most so many examples of a sample, and whether there are more."""
    examples = feature.examples(group, most + 1)
    if len(examples) <= most:
        return examples, False
    return (feature.examples(group, most) if group == "bands" else examples[:most]), True  # more bands are another sample


def rows_of(feature: Feature, examples: list[Example], view: View, chosen: tuple[int, int] | None = None) -> list[dict]:
    """The strips of examples; `chosen` is the example and the token that have a frame around them."""
    bands = {band["band"]: band for band in feature.bands}
    rows = []
    for n, example in enumerate(examples):
        unit = rank_line(feature, bands.get(example.band) if view.group == "bands" else None, example.value)
        largest = 0.0 if view.each_own else float(feature.row["max"])
        rows.append(example_row(example, largest, view.tokens, unit, chosen[1] if chosen and chosen[0] == n else None))
    return rows


def examples_data(feature: Feature, view: View) -> dict[str, Any]:
    """What the component draws of the examples that are shown first, in this view or the first that the latent has."""
    known = groups_of(feature)
    view = view if view.group in known else replace(view, group=known[0])
    rows = rows_of(feature, sample(feature, view.group, SHOWN)[0], view)
    return strips_data(rows, view.breaks, view.window == LINE, ACTIONS, True) | {"view": view.address}


def draw_examples(
    feature: Feature,
    on_action: Callable[[str, str], None],
    token_panel: Callable[[Example, int], None] | None = None,
    on_picture: Callable[[PictureExample], None] | None = None,
) -> None:
    """Examples in four samples. `on_action` gets the button that was pressed ("test" or "prompt") and the text.

    A click on a token draws `token_panel` of the example and the token's index under the example; a second click closes it.
    Of a pack of pictures, examples are pictures with maps, beside the texts of those that lie in a text; `on_picture` gets the
    one that is to be opened on the Prompt page.
    """
    groups = groups_of(feature)
    if not groups:
        st.caption("This pack holds no examples.")
        return
    wanted = st.session_state.pop("group asked", None) or st.session_state.get("group")
    st.session_state["group"] = wanted if wanted in groups else groups[0]
    with st.container(horizontal=True, vertical_alignment="center", gap="xsmall", key="latent-examples-controls"):
        group = st.segmented_control(
            "Examples",
            groups,
            required=True,
            format_func=GROUPS.get,
            key="group",
            label_visibility="collapsed",
            help="  \n".join(f"**{GROUPS[name]}:** {MEANING[name]}" for name in groups),
        )
        window, breaks = _window() if texts_in(feature.pack) else (32, False)
        each_own = st.toggle(
            "Scale to each", key="own", help="Colours are relative to each example's maximum instead of the latent's."
        )
    view, chosen = View(group, window, breaks, each_own), st.session_state.get("chosen token")
    examples, further = sample(feature, group, st.session_state.get("most", {}).get((feature.id, group), SHOWN))
    if feature.pack.pictures is not None:
        n_patches, shown = feature.pack.pictures.grid.n_patches, examples
        examples = [_words_of(example, n_patches) for example in examples if example.offset >= n_patches]
        left, right = st.columns([3, 2], gap="medium") if examples else (st.container(), st.container())
        with left:
            draw_pictures(feature, group, shown, each_own, on_picture)
        drawn_in = right
    else:
        drawn_in = st.container()
    places = [(feature.id, group, example.context, example.offset) for example in examples]
    open_at = next((n for n, place in enumerate(places) if chosen and chosen[:4] == place), None)
    rows = rows_of(feature, examples, view, None if open_at is None else (open_at, chosen[4]))

    def choose(n: int, token: int) -> None:
        picked = (*places[n], first_shown(examples[n], view.tokens) + token)
        st.session_state["chosen token"] = None if picked == st.session_state.get("chosen token") else picked

    def draw(begin: int, stop: int | None) -> None:
        part = "" if begin == 0 else " further"
        picked = strips(
            rows[begin:stop],
            key=f"examples{part}",
            breaks=breaks,
            line=window == LINE,
            actions=ACTIONS if feature.pack.pictures is None else (),
            on_pick=(lambda n, token: choose(begin + n, token)) if token_panel else None,
            more=as_part(feature, "examples") | {"view": view.address if open_at is None else ""} if begin == 0 else None,
        )
        if picked is not None and isinstance(picked[1], str) and begin + picked[0] < len(examples):
            on_action(picked[1], text_of(examples[begin + picked[0]]))

    with drawn_in:
        if rows:
            draw(0, None if open_at is None else open_at + 1)
        if open_at is not None and token_panel is not None:
            token_panel(examples[open_at], chosen[4])
            if open_at + 1 < len(rows):
                draw(open_at + 1, None)
    if further and st.button("More", icon=":material/expand_more:", type="tertiary"):
        st.session_state.setdefault("most", {})[feature.id, group] = len(examples) + 24
        st.rerun(scope="fragment")


def as_part(feature: Feature, part: str) -> dict[str, Any]:
    """What a component of the first screen is told beside what it draws: which part it is, and of which latent."""
    return {"part": part, "of": feature.id}


def _window() -> tuple[int, bool]:
    """Controls of texts: how many tokens are shown to either side of the peak, and whether lines are broken."""
    window = st.segmented_control(
        "Window",
        WINDOWS,
        default=LINE,
        required=True,
        format_func=lambda w: "lines" if w == LINE else f"±{w}" if w else "all",
        key="window",
        label_visibility="collapsed",
    )
    if window == LINE:
        return window, False
    return window, st.toggle("Line breaks", key="breaks", help="Begin a new line at each line break.")


def texts_in(pack: PackData) -> bool:
    """Whether some rows of a pack are tokens of a text, beside the patches of pictures."""
    return pack.pictures is None or pack.n_ctx > pack.pictures.grid.n_patches


def _words_of(example: Example, n_patches: int) -> Example:
    """An example without the rows of the picture, which stand before the text."""
    skip = max(0, n_patches - (example.offset - example.peak))
    cut = {name: getattr(example, name)[skip:] for name in ("tokens", "ids", "acts")}
    return replace(example, peak=example.peak - skip, **cut)


def draw_pictures(
    feature: Feature,
    group: str,
    examples: list[Example],
    each_own: bool,
    on_picture: Callable[[PictureExample], None] | None,
) -> None:
    """The pictures of these examples, each with the map of the latent; one can be enlarged."""
    places = {(example.context, example.offset): n for n, example in enumerate(examples)}
    shown = [e for e in feature.pictures(group, 10**6) if (e.context, e.offset) in places]
    shown.sort(key=lambda example: places[example.context, example.offset])
    bands = {band["band"]: band for band in feature.bands}

    def cards() -> list[dict]:
        units = [rank_line(feature, bands.get(e.band) if group == "bands" else None, e.value) for e in shown]
        return [example_card(e, unit, each_own) for e, unit in zip(shown, units, strict=True)]

    made = packs.cached_recently(feature.pack, f"cards {group} {each_own} {len(shown)}", np.array([feature.id]), cards)
    picked = pictures(made, key=f"pictures {feature.id} {group}", action="Open in Prompt" if on_picture else "")
    if picked is not None and on_picture is not None:
        on_picture(shown[picked])
    if len(shown) < len(examples):
        st.caption(f"{len(examples) - len(shown)} of these examples have no picture.")


def text_of(example: Example, stop: int | None = None) -> str:
    """An example as text, up to a token (exclusive) or all of it, without control tokens and incomplete characters."""
    pieces = [
        piece for _, _, piece in characters(example.tokens[:stop]) if not (piece.startswith("<0x") and piece.endswith(">"))
    ]
    return "".join(piece for piece in pieces if piece not in ("<bos>", "<eos>", "<pad>")).strip()


def stronger_than(feature: Feature, value: float) -> float:
    """Share of the latent's firings that are weaker than a value; never all of them, since one of them is the strongest."""
    return min(feature.quantile(value), 1 - 1 / max(feature.row["count"], 1))


def rank_line(feature: Feature, band: dict | None, value: float) -> str:
    """Where a value stands among the latent's firings; for a band, its share of the firings and of their activation."""
    if band is not None:
        shares = f"{band['share']:.1%} of firings, {band['mass_share']:.1%} of activation"
        return f"band {band['low']:.3g} to {band['high']:.3g}: {shares}"
    if value <= 0:
        return ""
    weaker = math.floor(1000 * stronger_than(feature, value)) / 10
    return f"stronger than {weaker:.1f} % of its firings"

"""Pictures with the activation of a latent at each patch: a grid of them, each of which can be enlarged with its patches.

Names and values enter the page by `textContent` and `setAttribute` alone (pictures.js); pictures are encoded anew from pixels.
"""

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import streamlit as st

from scope.escape import visible_token
from scope.features.pack.feature import Feature
from scope.features.pack.pictures import PictureExample

_HERE = Path(__file__).parent
_LOSSLESS = 112  # pixels of the longer side up to which a picture is a PNG

_mount = st.components.v2.component(
    "scope_pictures",
    html='<div class="pictures" role="list"></div>',
    css=(_HERE / "pictures.css").read_text(encoding="utf-8"),
    js=(_HERE / "pictures.js").read_text(encoding="utf-8"),
)


def data_uri(image: Any, form: str = "") -> str:
    """A PIL image as an address that holds it: of this form, else a PNG if it is small and a JPEG if it is not."""
    buffer, form = io.BytesIO(), form or ("PNG" if max(image.size) <= _LOSSLESS else "JPEG")
    image.convert("RGB").save(buffer, form, **({"quality": 88, "subsampling": 0} if form == "JPEG" else {}))
    return f"data:image/{form.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def preview(feature: Feature, side: int = 72) -> str | None:
    """The map of a latent's strongest example that has a picture, small, as an address that holds it; None without one."""
    example = next(iter(feature.pictures("top", 1)), None)
    if example is None:
        return None
    image = example.image(heat=example.grid.grid > 1)
    image.thumbnail((side, side))
    return data_uri(image, "JPEG")


def place_name(patch: int, columns: int) -> str:
    """Such as "row 2, column 3"; rows and columns count from 0, as in Python."""
    row, column = divmod(patch, columns)
    return f"row {row}, column {column}"


def where_in_words(values: np.ndarray, columns: int, form: str = ".3g", verb: str = "fires") -> str:
    """Where in a picture a latent fires, or has an effect, for those who do not see it."""
    values = np.asarray(values, dtype=float)
    if not values.any():
        return f"it {verb} nowhere in the picture"
    if len(values) == 1:
        return f"the whole picture, {values[0]:{form}}"
    order = np.argsort(-np.abs(values), kind="stable")[: min(3, int(np.count_nonzero(values)))].tolist()
    first, *rest = [f"{place_name(patch, columns)} ({values[patch]:{form}})" for patch in order]
    also = f", then at {' and '.join(rest)}" if rest else ""
    return f"{verb} most at {first}{also}; on {np.count_nonzero(values)} of {len(values)} patches"


def card(
    drawn: Any,
    plain: Any,
    values: Sequence[float] | np.ndarray,
    grid: tuple[int, int],
    size: tuple[int, int],
    *,
    alt: str,
    value: str = "",
    notes: Sequence[str] = (),
    more: str = "",
    peak: int | None = None,
    form: str = ".3g",
) -> dict[str, Any]:
    """One picture of the grid.

    Args:
        drawn: PIL image with the map over it.
        plain: PIL image without.
        values: one number a patch.
        grid: rows and columns of patches.
        size: width and height of the picture as it was.
        more: a note that only the enlarged picture has.
        peak: the patch with a frame around it.
    """
    return {
        "drawn": data_uri(drawn),
        "plain": data_uri(plain),
        "values": [f"{float(v):{form}}" if v else "" for v in values],
        "grid": list(grid),
        "size": list(size),
        "alt": visible_token(alt),
        "value": value,
        "notes": [visible_token(note) for note in notes if note],
        "more": more,
        "peak": peak,
    }


def example_card(example: PictureExample, unit: str = "", each: bool = False) -> dict[str, Any]:
    """The card of a pack's example; with `each` its colours are relative to its own maximum."""
    from dataclasses import replace

    n = example.grid.grid
    shown = replace(example, largest=float(example.acts.max(initial=0.0))) if each else example
    words = where_in_words(example.acts, n)
    if example.peak is None:
        words = f"fires most on the token {visible_token(example.token)} ({example.value:.3g}); in the picture {words}"
        place = f"on «{visible_token(example.token)}»"
    elif n == 1:
        place = "the whole picture"
    else:
        place = place_name(example.peak, n)
        words = f"silent at {place}; {words}" if example.value <= 0 else words
    plain = shown.image(heat=False)
    return card(
        plain if n == 1 else shown.image(),
        plain,
        example.acts,
        (n, n),
        example.size,
        alt=f"{example.document}: {words}",
        value=f"{example.value:.3g}" if example.value > 0 else "silent",
        notes=[place, example.document],
        more=unit,
        peak=example.peak,
    )


def pictures(cards: Sequence[dict[str, Any]], *, key: str, action: str = "", pick: bool = False, wide: int = 148) -> int | None:
    """Draw the cards side by side; a click or Enter enlarges one, with its patches. Returns the index of the card whose button
    `action` was pressed in this run, else None.

    Args:
        action: a button in the enlarged picture; "" for none.
        pick: a click or Enter chooses a card, whose index is returned, and enlarges none.
        wide: pixels that a card takes at least.
    """
    data = {"cards": list(cards), "action": action, "pick": pick, "wide": wide}
    picked = _mount(key=key, data=data, on_picked_change=lambda: None).picked
    return int(picked) if isinstance(picked, int | float) and 0 <= picked < len(cards) else None

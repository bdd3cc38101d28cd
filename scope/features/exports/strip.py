"""Tokens as a strip of coloured text, in HTML or for a terminal."""

from collections.abc import Sequence

import numpy as np

from scope.escape import direction, escape, joins, stands_alone, visible_token
from scope.models.text.characters import characters

RAMPS = {
    "light": (("#FDE9C9", "#111"), ("#FBCB8B", "#111"), ("#F2A444", "#111"), ("#CF7A00", "#111"), ("#8F5000", "#fff")),
    "dark": (("#3A2A12", "#fff"), ("#5E410F", "#fff"), ("#8F5F0B", "#fff"), ("#C98A1B", "#111"), ("#FFC861", "#111")),
    "both": (("#FBCB8B", "#111"), ("#F2A444", "#111"), ("#CF7A00", "#111")),
}
"""Background and text colour by strength, weakest first; "both" is legible on light and dark pages alike."""


def strength(value: float, largest: float, steps: int) -> int:
    """Step of the ramp, 1..steps, or 0 for silence."""
    if not value > 0 or not largest > 0:
        return 0
    return min(steps, 1 + int(steps * min(value / largest, 1.0) * 0.999999))


def strip_html(
    tokens: Sequence[str], values: Sequence[float] | np.ndarray, largest: float, peak: int | None = None, theme: str = "both"
) -> str:
    """Tokens as one line of HTML, coloured by value / `largest`; values stand in `title`, the peak is bold and underlined.

    Inline styles only, no script, nothing fetched: it shows on GitHub, in a notebook and in the app. Tokens are not isolated
    from each other, so that right-to-left text is read in its order and its letters join; only names of bytes and marks are.
    """
    ramp, spans, pieces = RAMPS[theme], [], characters(tokens)
    for start, stop, text in pieces:
        value = max((float(v) for v in values[start:stop]), default=0.0)
        style, step = "white-space:pre-wrap;", strength(value, largest, len(ramp))
        shown = visible_token(text)
        if stands_alone(shown):
            style += "unicode-bidi:isolate;direction:ltr;"
        if step:
            style += f"background:{ramp[step - 1][0]};color:{ramp[step - 1][1]};border-radius:2px;"
        if peak is not None and start <= peak < stop:
            style += "text-decoration:underline;" if joins(text) else "font-weight:700;text-decoration:underline;"
        glyphs = escape(shown)
        title = f' title="{value:.3g}" aria-label="{glyphs}, {value:.3g}"' if step else ""
        spans.append(f'<span style="{style}"{title}>{glyphs}</span>')
    return f'<bdi dir="{direction("".join(text for *_, text in pieces))}" style="display:block">{"".join(spans)}</bdi>'


def strip_text(tokens: Sequence[str], peak: int | None = None) -> str:
    """The same for a terminal: glyphs, with the peak between « and »."""
    marked = [
        f"«{visible_token(text)}»" if peak is not None and start <= peak < stop else visible_token(text)
        for start, stop, text in characters(tokens)
    ]
    return "".join(marked)

"""Token text made visible and harmless. Every token, label and file name that reaches HTML passes through `escape`.

Tokens are other people's text: they may hold markup, control characters, and marks that reverse the reading direction.
`show` replaces what cannot be seen by something that can; `escape` makes any string plain text inside tags and attributes.
"""

import html
import unicodedata
from collections.abc import Sequence

import numpy as np

from scope.models.text.characters import BYTE, characters

_GLYPHS = {"\n": "↵", "\t": "⇥", "\r": "␍", "\xa0": "⍽"}
_NAMES = {
    "\u200b": "ZWSP",
    "\u200c": "ZWNJ",
    "\u200d": "ZWJ",
    "\u200e": "LRM",
    "\u200f": "RLM",
    "\u202a": "LRE",
    "\u202b": "RLE",
    "\u202c": "PDF",
    "\u202d": "LRO",
    "\u202e": "RLO",
    "\u2066": "LRI",
    "\u2067": "RLI",
    "\u2068": "FSI",
    "\u2069": "PDI",
    "\ufeff": "BOM",
    "\xad": "SHY",
}
_HIDDEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}  # controls, format marks, surrogates, private use, unassigned, separators

RAMPS = {
    "light": (("#FDE9C9", "#111"), ("#FBCB8B", "#111"), ("#F2A444", "#111"), ("#CF7A00", "#111"), ("#8F5000", "#fff")),
    "dark": (("#3A2A12", "#fff"), ("#5E410F", "#fff"), ("#8F5F0B", "#fff"), ("#C98A1B", "#111"), ("#FFC861", "#111")),
    "both": (("#FBCB8B", "#111"), ("#F2A444", "#111"), ("#CF7A00", "#111")),
}
"""Background and text colour by strength, weakest first; "both" is legible on light and dark pages alike."""


def escape(text: object) -> str:
    """Plain text for HTML, safe between tags and inside quoted attributes."""
    printable = str(text).encode("utf-8", "replace").decode("utf-8")
    return html.escape(printable, quote=True)


def show(token: str, mark_space: bool = False) -> str:
    """A token as glyphs that can be seen: ↵ ⇥ ␣, ⟨E2⟩ for a lone byte, ⟪RLO⟫ for a mark that would act unseen.

    A token of spaces alone becomes ␣; with `mark_space` (lists of tokens, where it matters) a leading space does too.
    The result is text, not HTML: it still has to be escaped, or set as textContent.
    """
    byte = BYTE.fullmatch(token)
    if byte:
        return f"⟨{byte[1]}⟩"
    if token and not token.strip(" "):
        return "␣" * len(token)
    glyphs = token if token.isprintable() else "".join(_glyph(token, i) for i in range(len(token)))
    if glyphs and unicodedata.combining(glyphs[0]):
        glyphs = "◌" + glyphs
    if mark_space:
        body = glyphs.lstrip(" ")
        glyphs = "␣" * (len(glyphs) - len(body)) + body
    return glyphs


def _glyph(token: str, i: int) -> str:
    char = token[i]
    if char in _GLYPHS:
        return _GLYPHS[char]
    if char in "\u200c\u200d" and 0 < i < len(token) - 1 and ord(token[i - 1]) > 0x2FF:
        return char  # inside a Persian word or an emoji these join letters; at an edge they hide
    if unicodedata.category(char) in _HIDDEN:
        return f"⟪{_NAMES.get(char, format(ord(char), '04X'))}⟫"
    return char


def strength(value: float, largest: float, steps: int) -> int:
    """Step of the ramp, 1..steps, or 0 for silence."""
    if not value > 0 or not largest > 0:
        return 0
    return min(steps, 1 + int(steps * min(value / largest, 1.0) * 0.999999))


def strip_html(
    tokens: Sequence[str], values: Sequence[float] | np.ndarray, largest: float, peak: int | None = None, theme: str = "both"
) -> str:
    """Tokens as one line of HTML, coloured by value / `largest`; values stand in `title`, the peak is bold and underlined.

    Inline styles only, no script, nothing fetched: it shows on GitHub, in a notebook and in the app.
    """
    ramp, spans = RAMPS[theme], []
    for start, stop, text in characters(tokens):
        value = max((float(v) for v in values[start:stop]), default=0.0)
        style, step = "white-space:pre-wrap;unicode-bidi:isolate;", strength(value, largest, len(ramp))
        if step:
            style += f"background:{ramp[step - 1][0]};color:{ramp[step - 1][1]};border-radius:2px;"
        if peak is not None and start <= peak < stop:
            style += "font-weight:700;text-decoration:underline;"
        glyphs = escape(show(text))
        told = f' title="{value:.3g}" aria-label="{glyphs}, {value:.3g}"' if step else ""
        spans.append(f'<span style="{style}"{told}>{glyphs}</span>')
    return "".join(spans)


def strip_text(tokens: Sequence[str], peak: int | None = None) -> str:
    """The same for a terminal: glyphs, with the peak between « and »."""
    marked = [
        f"«{show(text)}»" if peak is not None and start <= peak < stop else show(text)
        for start, stop, text in characters(tokens)
    ]
    return "".join(marked)


def csv_cell(value: object) -> str:
    """A cell that no spreadsheet runs as a formula."""
    text = str(value)
    return f"'{text}" if text[:1] in ("=", "+", "-", "@", "\t", "\r") and not _is_number(text) else text


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return "\t" not in text and "\r" not in text

"""Text that Streamlit must not read as Markdown, numbers as pages write them, and heights of tables."""

import math
import re
from collections.abc import Sized

from scope.escape import is_seen, visible_token

_PUNCTUATION = re.compile(r"([!-/:-@\[-`{-~])")
_ADDRESS = re.compile(r"(https?(?=:)|www(?=\.)|@)", re.IGNORECASE)
_JOINER = "\u2060"  # no width, no break: Markdown turns bare addresses into links even where every mark is escaped


def plain(text: object) -> str:
    """Text that Markdown shows literally: no link, image, formula, icon or colour, and no invisible control character."""
    lines = (
        "".join(visible_token(char) if char < " " or not is_seen(char) else char for char in line)
        for line in f"{text}".split("\n")
    )
    return "  \n".join(_PUNCTUATION.sub(r"\\\1", _ADDRESS.sub(r"\1" + _JOINER, line)) for line in lines)


def count(n: float) -> str:
    """1,234 or 1.2 M."""
    return f"{n / 1e6:.3g} M" if n >= 1e6 else f"{int(n):,}"


def number(value: float | None, form: str = ".3g") -> str:
    """A number, or a dash where there is none."""
    return "–" if value is None or math.isnan(value) else f"{value:{form}}"


def short(value: object) -> str:
    """A value for a table: numbers to three digits, anything else as text."""
    return number(value) if isinstance(value, float) else f"{value}"


def short_name(model: str) -> str:
    """A model's name without the folders or the owner before it."""
    return model.rstrip("/").rsplit("/", 1)[-1] or model


def whole(rows: Sized, most: int = 16) -> int:
    """The height of a table that cuts no row into halves."""
    return 35 * (min(len(rows), most) + 1) + 3


def show_line(text: str, most: int = 60) -> str:
    """One line of visible glyphs, cut to `most`."""
    text = text[: 2 * most]
    glyphs = text if is_seen(text) else "".join(char if is_seen(char) else visible_token(char) for char in text)
    return glyphs if len(glyphs) <= most else glyphs[: most - 1] + "…"

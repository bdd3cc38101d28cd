"""Other people's text made visible and harmless: every token, label and file name that reaches HTML passes through `escape`.

Tokens may hold markup, control characters, and marks that reverse the reading direction. `visible` replaces what cannot be
seen by something that can; `escape` makes any string plain text inside tags and attributes. `direction`, `joins` and
`isolate_runs` decide how Arabic, Hebrew and other right-to-left text is laid out, and `fold` how it is searched.
"""

import html
import re
import unicodedata

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
_FILLERS = re.compile("[\u115f\u1160\u2800\u3164\uffa0]")
"""Letters and signs that count as printable and draw nothing: the Hangul fillers, and a braille cell without dots."""

_HIDDEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}  # controls, format marks, surrogates, private use, unassigned, separators

_RTL = "[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufefc\U00010800-\U00010fff\U0001e800-\U0001efff]"
_BETWEEN = rf"(?:\x1b\[[\d;]*m|(?!{_RTL}|  |[^\W\d_])[^\n\x1b\u2500-\u257f])"  # a colour; what is no letter, border or gap
_RUN = re.compile(rf"{_RTL}+(?:{_BETWEEN}*{_RTL}+)*[.!?…؟،؛]*")

_ALIKE = {ord(char): to for to, chars in {"ا": "أإآٱ", "ي": "ىیئ", "و": "ؤ", "ه": "ة", "ك": "ک"}.items() for char in chars}
"""Arabic letters that people write for each other -> one of them."""

BYTE = re.compile(r"<0x([0-9A-F]{2})>")
"""A token that stands for one byte."""


_NO_TEXT = re.compile(r"(?:⟨[0-9A-F]{2}⟩|⟪\w+⟫|</?\w+>|<0x[0-9A-F]{2}>)+")
"""Names for what is no text: bytes, hidden marks and control tokens."""


def escape(text: object) -> str:
    """Plain text for HTML, safe between tags and inside quoted attributes; hidden marks become visible, line breaks stay."""
    text = str(text)
    return html.escape(text if is_seen(text) else "".join(_glyph(text, i, "\n\t") for i in range(len(text))), quote=True)


def visible(text: str) -> str:
    """Text on one line with glyphs for what cannot be seen: ↵, ⇥, ⟪RLO⟫. It still has to be escaped for HTML."""
    return text if is_seen(text) else "".join(_glyph(text, i) for i in range(len(text)))


def is_seen(text: str) -> bool:
    """Whether every character of a text draws something, or is a space."""
    return text.isprintable() and not _FILLERS.search(text)


def visible_token(token: str, mark_space: bool = False) -> str:
    """A token as `visible` text; a token of spaces alone becomes ␣, a lone byte ⟨E2⟩.

    With `mark_space` (lists of tokens, where it matters) a leading space becomes ␣ too.
    """
    if byte := BYTE.fullmatch(token):
        return f"⟨{byte[1]}⟩"
    if token and not token.strip(" "):
        return "␣" * len(token)
    glyphs = visible(token)
    if glyphs and unicodedata.combining(glyphs[0]):
        glyphs = "◌" + glyphs
    if mark_space:
        body = glyphs.lstrip(" ")
        glyphs = "␣" * (len(glyphs) - len(body)) + body
    return glyphs


def direction(text: str) -> str:
    """ "rtl" or "ltr": the direction in which most letters of a text are read; <bos>, bytes and hidden marks do not count."""
    sides = [unicodedata.bidirectional(char) for char in _NO_TEXT.sub("", text)]
    return "rtl" if sum(side in ("R", "AL") for side in sides) > sides.count("L") else "ltr"


def joins(text: str) -> bool:
    """Whether a text has letters that change their form with their neighbours, as Arabic ones: another weight or size of one
    token would cut its word there."""
    return any(unicodedata.bidirectional(char) == "AL" for char in text)


def completes(before: str, text: str) -> bool:
    """Whether a text is vowel marks alone that belong to the right-to-left letter at the end of the one before; apart, they
    would part its word."""
    marks = bool(text) and all(unicodedata.bidirectional(char) == "NSM" for char in text)
    return marks and re.search(_RTL + "$", before) is not None


def stands_alone(glyphs: str) -> bool:
    """Whether a `visible_token` is a name for what cannot be seen, such as ⟨D9⟩ or ⟪RLO⟫, and takes no part in the text's
    direction."""
    return _NO_TEXT.fullmatch(glyphs) is not None


def isolate_runs(text: str) -> str:
    """For a terminal: each run of right-to-left text between the marks U+2067 and U+2069, so that what stands around it, such
    as the next column of a table, keeps its place."""
    return text if text.isascii() else _RUN.sub("\u2067\\g<0>\u2069", text)


def fold(text: str) -> str:
    """A text as it is searched: without case, vowel marks, lengthening strokes and marks that cannot be seen; letters that are
    written for each other (أ and ا, ى and ي, ة and ه), and their presentation forms, are one."""
    if not re.search(_RTL, text):
        return text.casefold()
    letters = unicodedata.normalize("NFKC", text).casefold().translate(_ALIKE)
    hidden = {char for char in letters if char == "ـ" or unicodedata.combining(char) or unicodedata.category(char) == "Cf"}
    return "".join(char for char in letters if char not in hidden)


def _glyph(text: str, i: int, keep: str = "") -> str:
    char = text[i]
    if char in keep:
        return char
    if char in _GLYPHS:
        return _GLYPHS[char]
    if char in "\u200c\u200d" and 0 < i < len(text) - 1 and ord(text[i - 1]) > 0x2FF:
        return char  # inside a Persian word or an emoji these join letters; at an edge they hide
    if unicodedata.category(char) in _HIDDEN or _FILLERS.match(char):
        return f"⟪{_NAMES.get(char, format(ord(char), '04X'))}⟫"
    return char


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

"""Other people's text made visible and harmless: every token, label and file name that reaches HTML passes through `escape`.

Tokens may hold markup, control characters, and marks that reverse the reading direction. `visible` replaces what cannot be
seen by something that can; `escape` makes any string plain text inside tags and attributes.
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
_HIDDEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}  # controls, format marks, surrogates, private use, unassigned, separators

BYTE = re.compile(r"<0x([0-9A-F]{2})>")
"""A token that stands for one byte."""


def escape(text: object) -> str:
    """Plain text for HTML, safe between tags and inside quoted attributes; hidden marks become visible, line breaks stay."""
    text = str(text)
    return html.escape(text if text.isprintable() else "".join(_glyph(text, i, "\n\t") for i in range(len(text))), quote=True)


def visible(text: str) -> str:
    """Text on one line with glyphs for what cannot be seen: ↵, ⇥, ⟪RLO⟫. It still has to be escaped for HTML."""
    return text if text.isprintable() else "".join(_glyph(text, i) for i in range(len(text)))


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


def _glyph(text: str, i: int, keep: str = "") -> str:
    char = text[i]
    if char in keep:
        return char
    if char in _GLYPHS:
        return _GLYPHS[char]
    if char in "\u200c\u200d" and 0 < i < len(text) - 1 and ord(text[i - 1]) > 0x2FF:
        return char  # inside a Persian word or an emoji these join letters; at an edge they hide
    if unicodedata.category(char) in _HIDDEN:
        return f"⟪{_NAMES.get(char, format(ord(char), '04X'))}⟫"
    return char

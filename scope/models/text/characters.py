"""Joins byte tokens into characters: a character that the vocabulary lacks is several tokens of one byte, shown as <0xE6>."""

from collections.abc import Sequence

from scope.escape import BYTE, completes


def characters(tokens: Sequence[str]) -> list[tuple[int, int, str]]:
    """(start, stop, text) pieces that cover the tokens in order: bytes that complete a character become that character, and
    vowel marks of Arabic or Hebrew, as tokens of their own, part of their letter."""
    pieces: list[tuple[int, int, str]] = []
    i = 0
    while i < len(tokens):
        stop, char = _from_bytes(tokens, i)
        text = char if char is not None else tokens[i]
        if pieces and completes(pieces[-1][2], text):
            start, _, base = pieces.pop()
            pieces.append((start, stop, base + text))
        else:
            pieces.append((i, stop, text))
        i = stop
    return pieces


def _from_bytes(tokens: Sequence[str], start: int) -> tuple[int, str | None]:
    raw = b""
    for stop in range(start, min(start + 4, len(tokens))):
        match = BYTE.fullmatch(tokens[stop])
        if not match:
            break
        raw += bytes([int(match[1], 16)])
        try:
            return stop + 1, raw.decode("utf-8")
        except UnicodeDecodeError:
            continue
    return start + 1, None

"""Joins byte tokens into characters: a character that the vocabulary lacks is several tokens of one byte, shown as <0xE6>."""

from collections.abc import Sequence

from scope.escape import BYTE


def characters(tokens: Sequence[str]) -> list[tuple[int, int, str]]:
    """(start, stop, text) pieces that cover the tokens in order: bytes that complete a character become that character."""
    pieces, i = [], 0
    while i < len(tokens):
        stop, char = _from_bytes(tokens, i)
        pieces.append((i, stop, char if char is not None else tokens[i]))
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

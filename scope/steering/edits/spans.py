"""Tokens of a text as the target of an edit: words wherever they stand in the prompt, or positions."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from scope.errors import EditError
from scope.models.face import TextTokenizer
from scope.models.text.characters import characters


@dataclass(frozen=True)
class Span:
    """The tokens that hold some of the characters of `text`, wherever it stands in the prompt; or, where there is no text, the
    positions from `start` to before `stop` (<bos> is 0; no `stop` means to the end)."""

    text: str = ""
    start: int = 0
    stop: int | None = None

    def __post_init__(self):
        if not self.text and (self.start < 0 or (self.stop is not None and self.stop <= self.start)):
            raise EditError(f"{self.start} to {self.stop} holds no position. Positions count from 0, the place of <bos>.")

    @classmethod
    def of(cls, tokens: Any) -> "Span":
        """From a text, a position, or a pair of positions (first, one past the last).

        Raises:
            EditError: none of these.
        """
        if isinstance(tokens, Span):
            return tokens
        if isinstance(tokens, str) and tokens.strip():
            return cls(tokens)
        pair = [tokens, None] if isinstance(tokens, range) else list(tokens) if isinstance(tokens, tuple | list) else None
        if isinstance(tokens, range) and tokens.step == 1:
            pair = [tokens.start, tokens.stop]
        if pair is None and hasattr(tokens, "__index__") and not isinstance(tokens, bool):
            pair = [tokens.__index__(), tokens.__index__() + 1]
        whole = pair is not None and len(pair) == 2 and all(hasattr(i, "__index__") or i is None for i in pair)
        if not whole or pair[0] is None:
            raise EditError(
                f"{tokens!r} names no tokens. Give a text, as in Forget('apple'), a position, as in Forget(4), or a pair, as "
                "in Forget((4, 7)) for the positions 4, 5 and 6."
            )
        return cls("", pair[0].__index__(), None if pair[1] is None else pair[1].__index__())

    @classmethod
    def parsed(cls, written: str) -> "Span":
        """From the command line: digits, as in 4, 4:7 or 4:, are positions; anything else is a text."""
        start, colon, stop = written.partition(":")
        if start.isdecimal() and (stop.isdecimal() or not stop):
            return cls("", int(start), int(stop) if stop else None if colon else int(start) + 1)
        return cls.of(written)

    def places(self, ids: Sequence[int], words: TextTokenizer) -> list[int]:
        """The positions of a prompt that it means, [] where the prompt holds none of them."""
        if not self.text:
            return list(range(min(self.start, len(ids)), len(ids) if self.stop is None else min(self.stop, len(ids))))
        joined = characters(words.pieces(ids))
        whole, at, found = "".join(text for _, _, text in joined), 0, set()
        wanted = self.text if self.text in whole else self.text.strip()
        begins = [i for i in range(len(whole)) if whole.startswith(wanted, i)]
        for start, stop, text in joined:
            if any(at < i + len(wanted) and i < at + len(text) for i in begins):
                found.update(range(start, stop))
            at += len(text)
        return sorted(found)

    def __str__(self) -> str:
        if self.text:
            return f"tokens of {self.text!r}"
        if self.stop is None:
            return f"tokens from position {self.start} on"
        return f"token {self.start}" if self.stop == self.start + 1 else f"tokens {self.start} to {self.stop - 1}"

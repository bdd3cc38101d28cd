"""Kinds of rows, and the rules that leave some of them out. Importing this loads no torch."""

from enum import IntEnum
from typing import Literal


class Role(IntEnum):
    """Kind of input at one position of a context. The numbers are part of the format of recordings: add some, change none."""

    TEXT = 0
    BOS = 1
    SPECIAL = 2
    """A control or turn token, such as <eos> or <start_of_turn>."""
    PADDING = 3
    IMAGE = 4
    """A patch of an image."""
    PROMPT = 5
    ANSWER = 6
    PREFIX = 7
    SUFFIX = 8
    MIDDLE = 9
    """The text that a fill-in-the-middle model writes between prefix and suffix."""
    CONTROL = 10
    """A marker between the parts of an input, such as the fill-in-the-middle tokens or the end of an image."""
    STATE = 11
    """A state of a recurrence that belongs to no single token."""


LEAVES_OUT: dict[str, frozenset[Role]] = {
    "bos": frozenset({Role.BOS}),
    "special": frozenset({Role.BOS, Role.SPECIAL, Role.CONTROL, Role.PADDING}),
    "pad": frozenset({Role.PADDING}),
    **{
        role.name.lower(): frozenset({role})
        for role in (Role.TEXT, Role.IMAGE, Role.PROMPT, Role.ANSWER, Role.PREFIX, Role.SUFFIX, Role.MIDDLE, Role.STATE)
    },
}
"""Name of a rule, as used in `exclude` -> the roles that it leaves out."""

RULES = ("bos", "special", "pad")
"""The rules of the product: recording, training, scores and packs leave out these rows unless they say otherwise."""

QUERIES = "tokens of queries"
"""The word for the rows of a recording of queries."""

KindOfRows = Literal["all", "image", "text"]
"""Which rows of a recording are read: all, patches of images, or the others."""


def left_out_by(kind: KindOfRows) -> tuple[str, ...]:
    """The rules that leave out what is not of a kind of rows."""
    if kind == "all":
        return ()
    return ("image",) if kind == "text" else tuple(n for n in LEAVES_OUT if n not in ("image", *RULES))

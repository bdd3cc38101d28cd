"""The arm that edits nothing and asks instead: what a prompt can do, steering need not be praised for."""

from collections.abc import Sequence

from scope.models.hooks import HookedModule

_TURN = "<start_of_turn>user\n"
_WORDS = 3


def instruction_for(model: HookedModule, promoted: Sequence[Sequence[int]]) -> str:
    """ "Talk about ..." with the first words among the promoted tokens of each edit; where they are no words, "Write ..."."""
    words: list[str] = []
    marks: list[str] = []
    for ids in promoted:
        pieces = list(dict.fromkeys(piece.strip() or piece for piece in model.words.pieces(ids)))
        said = {w.casefold() for w in words}
        telling = {p.casefold(): p for p in reversed(pieces) if sum(map(str.isalpha, p)) > 1 and p.casefold() not in said}
        words += list(telling.values())[::-1][:_WORDS]
        marks += pieces[:_WORDS]
    if words:
        return f"Talk about {_listed(words)}. "
    return f"Write {_listed([repr(mark) for mark in dict.fromkeys(marks)])} often. "


def _listed(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def before(prompt: str, instruction: str) -> str:
    """The prompt with the instruction at its head; in a chat, at the head of the last thing that the user says."""
    head, turn, tail = prompt.rpartition(_TURN)
    return f"{head}{turn}{instruction}{tail}"

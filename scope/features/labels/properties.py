"""Properties of the tokens of a pack's text that rules speak of: what a token is, what stands around it, and where it stands.

Each property gives every token of the text one value, by number, with a name for each number; -1 is "none". Case and outer
spaces of a token do not count, except for the property `class`.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from scope.escape import fold

MOST_TOKENS = 4_000_000
"""Tokens of a pack's text that are looked at; the first contexts of a longer one."""


@dataclass(frozen=True, eq=False)
class Property:
    """Int[tokens] numbers of values, -1 for none, and the name of each number."""

    values: np.ndarray
    names: Sequence[str]

    def numbers(self, names: Sequence[str]) -> np.ndarray:
        """Numbers of values by name; a name that this text does not have is left out."""
        wanted = set(names)
        return np.array([i for i, name in enumerate(self.names) if name in wanted], np.int64)


CLASSES = (
    "newline",
    "indentation",
    "space",
    "digit",
    "opening bracket",
    "closing bracket",
    "quote",
    "sentence end",
    "comma",
    "operator",
    "other punctuation",
    "capitalised word",
    "word in capitals",
    "word",
    "inside of a word",
    "capital inside of a word",
    "byte",
    "control token",
    "other script",
)
_OPEN, _CLOSE = "([{", ")]}"


def class_of(piece: str) -> str:
    """One of CLASSES for a piece of the vocabulary; a word begins with a space, or stands at the beginning of a line."""
    text = piece.strip(" ")
    if re.fullmatch(r"<0x[0-9A-F]{2}>", piece):
        return "byte"
    if re.fullmatch(r"</?\w+>", piece):
        return "control token"
    if "\n" in piece:
        return "newline"
    if not text.strip():
        return "space" if len(piece) < 2 else "indentation"
    letters = [c for c in text if c.isalpha()]
    if not letters:
        return _class_of_mark(text)
    if not text.isascii() and not any(c.isascii() for c in letters) and ord(letters[0]) > 0x24F:
        return "other script"
    inside = not piece.startswith(" ")
    if letters[0].isupper():
        if inside:
            return "capital inside of a word"
        return "word in capitals" if len(letters) > 1 and all(c.isupper() for c in letters) else "capitalised word"
    return "inside of a word" if inside else "word"


def _class_of_mark(text: str) -> str:
    if any(c.isdigit() for c in text):
        return "digit"
    if text[-1] in _OPEN or text[0] in _CLOSE:
        return "opening bracket" if text[-1] in _OPEN else "closing bracket"
    for marks, name in (("\"'`“”‘’«»", "quote"), (".!?。", "sentence end")):
        if text[-1] in marks:
            return name
    if text[0] in ",;、":
        return "comma"
    return "operator" if text[0] in "=+-*/<>%&|^~@" else "other punctuation"


@dataclass(frozen=True, eq=False)
class Text:
    """What properties are computed from: token ids [n_contexts n_ctx], the piece of each id, how often each id stood where
    latents can fire, and of each token the index of its document's name, -1 where unknown."""

    contexts: np.ndarray
    vocab: Sequence[str]
    totals: np.ndarray
    documents: np.ndarray
    document_names: Sequence[str]


class TextProperties:
    """The properties of a text, each computed on first use."""

    def __init__(self, text: Text):
        n_ctx = max(text.contexts.shape[1], 1)
        n = max(1, MOST_TOKENS // n_ctx)
        self.n_ctx, self.vocab = n_ctx, text.vocab
        self.ids = np.minimum(np.asarray(text.contexts[:n]).astype(np.int64), len(text.vocab) - 1).reshape(-1)
        self.n_contexts = len(self.ids) // n_ctx
        self._documents = np.asarray(text.documents[:n]).reshape(-1)
        self._document_names = text.document_names
        self.counted = np.asarray(text.totals)[self.ids] > 0
        """Bool[tokens] where latents can fire: not at control tokens and padding."""
        self._cached: dict[str, Property] = {}

    def __getitem__(self, name: str) -> Property:
        if name not in self._cached:
            self._cached[name] = PROPERTIES[name](self)
        return self._cached[name]

    @cached_property
    def folded(self) -> tuple[np.ndarray, list[str]]:
        """(number of the folded piece by id, folded pieces)."""
        pieces = [fold(piece).strip(" ") or "␣" * len(piece) for piece in self.vocab]
        names = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
        return np.array([names[piece] for piece in pieces], np.int32), list(names)

    def of_ids(self, by_id: np.ndarray) -> np.ndarray:
        return by_id[self.ids]

    def token(self) -> Property:
        by_id, names = self.folded
        return Property(self.of_ids(by_id), names)

    def token_class(self) -> Property:
        """The class of each token; a piece without a space at its front begins a word after a mark or a line break."""
        by_id = np.array([CLASSES.index(class_of(piece)) for piece in self.vocab], np.int8)
        values = self.of_ids(by_id).astype(np.int32).reshape(-1, self.n_ctx)
        goes_on = np.array([bool(piece) and (piece[-1].isalnum() or piece[-1] == "_") for piece in self.vocab])
        alone = np.ones_like(values, bool)
        alone[:, 1:] = ~self.of_ids(goes_on).reshape(-1, self.n_ctx)[:, :-1]
        for inside, begins in (("inside of a word", "word"), ("capital inside of a word", "capitalised word")):
            values[alone & (values == CLASSES.index(inside))] = CLASSES.index(begins)
        return Property(values.reshape(-1), CLASSES)

    def shifted(self, name: str, by: int) -> Property:
        """The property of the token `by` places before (negative: after) in the same context."""
        at, fill = self[name], -1
        grid = at.values.reshape(-1, self.n_ctx)
        moved = np.full_like(grid, fill)
        if by > 0:
            moved[:, by:] = grid[:, :-by]
        else:
            moved[:, :by] = grid[:, -by:]
        return Property(moved.reshape(-1), at.names)

    def ending(self) -> Property:
        """The last three letters of tokens with five letters and more, or the last two of those with four."""
        return self._letters(lambda text: text[-3:] if len(text) >= 5 else text[-2:] if len(text) == 4 else "")

    def _letters(self, part: Callable[[str], str]) -> Property:
        texts = [fold(piece).strip(" ") for piece in self.vocab]
        parts = [part(text) if text.isalpha() else "" for text in texts]
        names = {text: i for i, text in enumerate(dict.fromkeys(filter(None, parts)))}
        by_id = np.array([names.get(text, -1) for text in parts], np.int32)
        return Property(self.of_ids(by_id), list(names))

    @cached_property
    def _line_start(self) -> np.ndarray:
        """Int[tokens] position of the first token of the token's line; a token with a line break ends its line."""
        newline = self["class"].values == CLASSES.index("newline")
        grid = newline.reshape(-1, self.n_ctx)
        starts = np.zeros_like(grid)
        starts[:, 1:] = grid[:, :-1]
        starts[:, 0] = True
        places = np.arange(len(self.ids))
        return np.maximum.accumulate(np.where(starts.reshape(-1), places, 0))

    @cached_property
    def _first_word(self) -> np.ndarray:
        """Int[tokens] position of the first token of the line that is not blank, -1 before it."""
        kinds = self["class"].values
        blank = np.isin(kinds, [CLASSES.index(name) for name in ("newline", "indentation", "space", "control token")])
        places, n = np.arange(len(self.ids)), len(self.ids)
        seen = np.where(~blank, places, n)
        start = self._line_start
        first = np.full(n, n)
        np.minimum.at(first, start, seen)
        first = first[start]
        return np.where(first <= places, first, -1)

    def place_in_line(self) -> Property:
        names = ("indentation", "first in a line", "second in a line", "third in a line", "later in a line")
        first = self._first_word
        place = np.where(first < 0, 0, np.minimum(np.arange(len(first)) - first + 1, 4))
        return Property(place.astype(np.int32), names)

    def line_begins_with(self) -> Property:
        first, token = self._first_word, self["token"]
        values = np.where((first >= 0) & (first < np.arange(len(first))), token.values[np.maximum(first, 0)], -1)
        return Property(values.astype(np.int32), token.names)

    def indentation(self) -> Property:
        widths = [len(piece) - len(piece.lstrip(" ")) if not piece.strip(" \n") else 0 for piece in self.vocab]
        width = self.of_ids(np.array(widths, np.int32))[self._line_start]
        names = ("no indentation", "1 to 4 spaces", "5 to 8 spaces", "more than 8 spaces")
        return Property(np.select([width == 0, width <= 4, width <= 8], [0, 1, 2], 3).astype(np.int32), names)

    def place_in_context(self) -> Property:
        offset = np.tile(np.arange(self.n_ctx), self.n_contexts)
        names = ("first token", "second token", "third to eighth token", "later token")
        return Property(np.select([offset <= 1, offset == 2, offset <= 8], [0, 1, 2], 3).astype(np.int32), names)

    def domain(self) -> Property:
        """What the names of documents begin with, where at least one token in a hundred has it."""
        kinds = [re.split(r"[./:\-\s#]", name.strip("/"), maxsplit=1)[0][:40] for name in self._document_names]
        names = {kind: i for i, kind in enumerate(dict.fromkeys(kinds))}
        of_document = np.array([*(names[kind] for kind in kinds), -1], np.int32)  # -1 is an unknown document
        known = np.where(self._documents < len(kinds), self._documents, -1)
        values = of_document[known]
        many = np.bincount(values[values >= 0], minlength=len(names)) >= 0.01 * len(values)
        return Property(np.where((values >= 0) & np.r_[many, False][values], values, -1).astype(np.int32), list(names))

    def repetition(self) -> Property:
        """Whether the token stood earlier in its context, and whether after the same token as here."""
        token = self["token"].values.astype(np.int64)
        before = self.shifted("token", 1).values.astype(np.int64)
        once, twice = self._seen(token), self._seen(token * (len(self["token"].names) + 1) + before + 1)
        names = ("new in its context", "seen before", "seen before after the same token")
        return Property(np.where(twice, 2, np.where(once, 1, 0)).astype(np.int32), names)

    def _seen(self, keys: np.ndarray) -> np.ndarray:
        """Bool[tokens] whether a key stood earlier in the same context."""
        context = np.arange(len(keys)) // self.n_ctx
        order = np.lexsort((keys, context))
        again = np.zeros(len(keys), bool)
        same = (keys[order][1:] == keys[order][:-1]) & (context[order][1:] == context[order][:-1])
        again[order[1:][same]] = True
        return again

    def bracket(self) -> Property:
        """The innermost bracket that is open before the token, in its context."""
        opens = {i: mark for i, piece in enumerate(self.vocab) for mark in _brackets(piece)}
        state = np.full(len(self.ids), -1, np.int32)
        marked = np.zeros(len(self.vocab), bool)
        marked[list(opens)] = True
        at = np.flatnonzero(self.of_ids(marked))
        vocab, n_ctx, size = self.vocab, self.n_ctx, len(self.ids)
        stack, context, ends = [], -1, [*at[1:].tolist(), size][: len(at)]
        for place, after in zip(at.tolist(), ends, strict=True):
            if place // n_ctx != context:
                stack, context = [], place // n_ctx
            for mark in _brackets(vocab[self.ids[place]]):
                if mark in _OPEN:
                    stack.append(_OPEN.index(mark))
                elif stack and stack[-1] == _CLOSE.index(mark):
                    stack.pop()
            state[place + 1 : min(after + 1, (context + 1) * n_ctx)] = stack[-1] if stack else -1
        return Property(state, ("(…)", "[…]", "{…}"))

    def inside(self) -> Property:
        """Whether the token stands in a line after an odd number of double quotes or backticks, or after #."""
        counts = np.array([[piece.count('"') + piece.count("`"), piece.count("#")] for piece in self.vocab], np.int64)
        start = self._line_start
        values = np.full(len(self.ids), -1, np.int32)
        for column, name in ((0, 0), (1, 1)):
            number = self.of_ids(counts[:, column])
            running = np.cumsum(number) - number
            before = running - running[start]
            values[(before % 2 == 1) if column == 0 else (before > 0)] = name
        return Property(values, ("quotes", "a comment"))

    def word_begins_with(self) -> Property:
        """For a token inside of a word, the token with which the word begins."""
        kinds, token = self["class"].values, self["token"]
        inside = np.isin(kinds, [CLASSES.index("inside of a word"), CLASSES.index("capital inside of a word")])
        grid = inside.reshape(-1, self.n_ctx).copy()
        grid[:, 0] = False
        inside = grid.reshape(-1)
        start = np.maximum.accumulate(np.where(inside, 0, np.arange(len(inside))))
        return Property(np.where(inside, token.values[start], -1).astype(np.int32), token.names)

    def word_before(self) -> Property:
        """The token with which the word before the token's word begins; marks are passed over."""
        kinds, token = self["class"].values, self["token"]
        words = [CLASSES.index(name) for name in ("word", "capitalised word", "word in capitals")]
        starts = np.isin(kinds, words)
        places = np.arange(len(starts))
        last = np.maximum.accumulate(np.where(starts, places, -1))
        before = np.r_[-1, last[:-1]]
        return self._inside_context(before, token)

    def _inside_context(self, at: np.ndarray, token: Property) -> Property:
        """The tokens at these positions, -1 where they lie in another context."""
        same = (at >= 0) & (at // self.n_ctx == np.arange(len(at)) // self.n_ctx)
        return Property(np.where(same, token.values[np.maximum(at, 0)], -1).astype(np.int32), token.names)


def _brackets(piece: str) -> list[str]:
    return [mark for mark in piece if mark in _OPEN + _CLOSE]


PROPERTIES: dict[str, Callable[[TextProperties], Property]] = {
    "token": TextProperties.token,
    "class": TextProperties.token_class,
    "ending": TextProperties.ending,
    "previous token": lambda text: text.shifted("token", 1),
    "token before the previous": lambda text: text.shifted("token", 2),
    "next token": lambda text: text.shifted("token", -1),
    "previous class": lambda text: text.shifted("class", 1),
    "class before the previous": lambda text: text.shifted("class", 2),
    "next class": lambda text: text.shifted("class", -1),
    "previous ending": lambda text: text.shifted("ending", 1),
    "word before": TextProperties.word_before,
    "beginning of the word": TextProperties.word_begins_with,
    "place in the line": TextProperties.place_in_line,
    "beginning of the line": TextProperties.line_begins_with,
    "indentation": TextProperties.indentation,
    "place in the context": TextProperties.place_in_context,
    "domain": TextProperties.domain,
    "repetition": TextProperties.repetition,
    "bracket": TextProperties.bracket,
    "inside": TextProperties.inside,
}
"""How each property is computed, by its name in a rule."""

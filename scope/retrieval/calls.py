"""Calls to Data Commons as DataGemma writes them into its text: `[__DC__("question") --> "value"]`.

One reader takes text as it arrives; a whole text is one piece. Google's own library looks for `[__DC__("`, a question without
quotes, `") --> "`, a value without quotes that may be empty, `"`, and perhaps `]`; on one line, this reader finds the same.
Beyond that, a question or value may hold quotes, escaped as `write_call` does it or nested as a model writes them, and a
call that breaks off at the end of its line, or where another begins, takes no part of what follows.

Source: datacommonsorg/llm-tools, data_gemma/rig.py; Google's DataGemma report, arXiv:2409.13741.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

OPEN, ARROW = '[__DC__("', '") --> "'
LONGEST = 1000
"""Characters of a question or of a value at most; what is longer is text."""


@dataclass(frozen=True)
class Text:
    """Text between calls, and what only looks like a call."""

    raw: str


@dataclass(frozen=True)
class Call:
    """A whole call: the question for Data Commons, and the value that the model believes. `closed` is False where the last
    bracket is missing."""

    raw: str
    question: str
    value: str
    closed: bool = True


@dataclass(frozen=True)
class CutOffCall:
    """A call that breaks off: at the end of the text, as when the model reached its last token, of its line, or where another
    begins."""

    raw: str


Segment = Text | Call | CutOffCall


def write_call(question: str, value: str) -> str:
    """A call as the model is trained to write it; quotes and backslashes are escaped."""
    return f'{OPEN}{_escaped(question)}{ARROW}{_escaped(value)}"]'


def read_calls(text: str) -> list[Segment]:
    """The segments of a whole text; their `raw` joined is the text."""
    reader = CallReader()
    return merged([*reader.feed(text), *reader.close()])


def merged(segments: list[Segment]) -> list[Segment]:
    """The same with neighbouring pieces of text joined."""
    result: list[Segment] = []
    for segment in segments:
        if isinstance(segment, Text) and result and isinstance(result[-1], Text):
            result[-1] = Text(result[-1].raw + segment.raw)
        else:
            result.append(segment)
    return result


class CallReader:
    """Segments of a text that arrives in pieces: a call is given once it is whole, text as soon as it can be no part of one."""

    def __init__(self):
        self._waiting = ""

    def feed(self, piece: str) -> list[Segment]:
        """The segments that are certain after one more piece of text."""
        self._waiting += piece
        return list(self._segments(last=False))

    def close(self) -> list[Segment]:
        """What is left when the text has ended."""
        return list(self._segments(last=True))

    def _segments(self, last: bool) -> Iterator[Segment]:
        while self._waiting:
            start = self._waiting.find(OPEN)
            if start < 0:
                start = len(self._waiting) - _beginning_at_end(self._waiting)
            if start:
                segment: Segment | None = Text(self._waiting[:start])
            elif self._waiting.startswith(OPEN):
                segment = _first_segment(self._waiting, last)
            elif last:
                segment = (CutOffCall if self._waiting.startswith("[__DC__") else Text)(self._waiting)
            else:
                segment = None
            if segment is None:
                return
            self._waiting = self._waiting[len(segment.raw) :]
            yield segment


def _beginning_at_end(text: str) -> int:
    """How many characters at the end of a text may be the beginning of a call."""
    return next((n for n in range(min(len(OPEN) - 1, len(text)), 0, -1) if text.endswith(OPEN[:n])), 0)


def _first_segment(text: str, last: bool) -> Segment | None:
    """The segment that begins with the `OPEN` at the start of a text; None if that depends on what comes next."""
    ends = [place for place in (text.find("\n"), text.find(OPEN, 1)) if place >= 0]
    line = text[: min(ends, default=len(text))]
    arrow = _find_arrow(line)
    if arrow is not None:
        question = line[len(OPEN) : arrow]
        if not question.strip() or len(question) > LONGEST:
            return Text(OPEN)
        end = _end_of_value(text, line, arrow + len(ARROW), last)
        if end is not None:
            closed = text.startswith("]", end + 1)
            value = line[arrow + len(ARROW) : end]
            return (
                Call(text[: end + 1 + closed], _plain(question), _plain(value), closed) if len(value) <= LONGEST else Text(OPEN)
            )
    elif _ends_otherwise(line):
        return Text(OPEN)
    waits_for = LONGEST + (arrow + len(ARROW) if arrow is not None else len(OPEN) + len(ARROW))
    if len(line) > waits_for + 1:
        return Text(OPEN)
    return CutOffCall(line) if last or len(line) < len(text) else None


def _find_arrow(line: str) -> int | None:
    """Where the question ends: the first arrow whose quote is not escaped."""
    for match in re.finditer(re.escape(ARROW), line[len(OPEN) :]):
        place = len(OPEN) + match.start()
        backslashes = len(line[:place]) - len(line[:place].rstrip("\\"))
        if backslashes % 2 == 0:
            return place
    return None


def _ends_otherwise(line: str) -> bool:
    """Whether the question ends in something else than the arrow, so that this is no call."""
    rests = (line[len(OPEN) + m.start() :] for m in re.finditer(r'(?<!\\)"\)', line[len(OPEN) :]))
    return any(not ARROW.startswith(rest[: len(ARROW)]) for rest in rests)


def _end_of_value(text: str, line: str, start: int, last: bool) -> int | None:
    """Where the quote stands that ends the value, None if it is not there yet. A quote after a space and before a letter opens
    a nested one, which the next quote closes."""
    nested = False
    for match in re.compile(r'\\.|"').finditer(line, start):
        place, after = match.start(), text[match.start() + 1 : match.start() + 2]
        if match.group() != '"':
            continue
        if not after and not last:
            return None
        if nested and after != "]":
            nested = False
        elif not nested and after.isalnum() and (place == start or line[place - 1].isspace()):
            nested = True
        else:
            return place
    return None


def _escaped(text: str) -> str:
    return " ".join(text.splitlines()).replace("\\", "\\\\").replace('"', '\\"')


def _plain(text: str) -> str:
    return re.sub(r'\\(["\\])', r"\1", text)

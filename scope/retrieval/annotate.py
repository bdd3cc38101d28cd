"""Puts what a service says into an answer with calls (DataGemma's RIG, retrieval interleaved generation).

A call becomes `[__DC__#n(BODY)]`. The body is `RETRIEVED [k] || OWN`: the service's number with its unit, a footnote, and what
the model wrote; `*` after the footnote where both differ by more than 5 % of the model's. `|| OWN` stands where the service
gave nothing, `RETRIEVED [k] ||` where the model wrote nothing, `--- || ---` where neither did. So what stands before `||` was
retrieved, always, and what stands after it never was; where the model itself writes such a tag, a space breaks it.

Source: datacommonsorg/llm-tools, data_gemma/rig.py. Unlike there, calls are replaced by their place in the text, so one without
its last bracket is replaced too, and every failure is named.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from scope.retrieval.calls import Call, CallReader, CutOffCall, Segment
from scope.retrieval.service import NothingFound, RetrievalError, ServiceDown, Statistic, StatisticsService

TOLERANCE = 0.05
"""The model's number and the service's may differ by this share of the model's before the mark is set."""

_WORDS = {"million": 1e6, "billion": 1e9, "trillion": 1e12}


@dataclass(frozen=True)
class AnnotatedCall:
    """A call and what became of it: a statistic, or the reason why there is none."""

    number: int
    call: Call
    statistic: Statistic | None
    failure: str
    footnote: int | None

    @property
    def differs(self) -> bool:
        """Whether the model's number is more than 5 % away from the service's."""
        return self.statistic is not None and differ(self.statistic.value, self.call.value)

    @property
    def text(self) -> str:
        own = without_tags(self.call.value)
        if self.statistic is not None:
            body = f"{self.statistic.text} [{self.footnote}]{'*' if own and self.differs else ''} || {own}".rstrip()
        else:
            body = f"|| {own}" if own else "--- || ---"
        return f"[__DC__#{self.number}({body})]"


@dataclass(frozen=True)
class AnnotatedAnswer:
    """The text with every call replaced, its footnotes, and notes on what could not be retrieved."""

    text: str
    footnotes: tuple[str, ...]
    notes: tuple[str, ...]
    calls: tuple[AnnotatedCall, ...] = field(repr=False)

    def __str__(self) -> str:
        return "\n\n".join([self.text.strip(), *self.after])

    @property
    def after(self) -> list[str]:
        """What stands below the text: footnotes, then notes."""
        return [*(["\n".join(["Retrieved:", *self.footnotes])] if self.footnotes else []), *self.notes]


def annotate(text: str, service: StatisticsService) -> AnnotatedAnswer:
    """An answer with each call replaced by what the service says. Each question is asked once."""
    annotator = Annotator(service)
    annotator.feed(text)
    annotator.close()
    return annotator.answer()


class Annotator:
    """Annotates an answer while it is written: the service is asked as soon as a call is whole."""

    def __init__(self, service: StatisticsService):
        self.service = service
        self._reader = CallReader()
        self._answers: dict[str, Statistic | RetrievalError] = {}
        self._footnotes: dict[str, int] = {}
        self._calls: list[AnnotatedCall] = []
        self._texts: list[str] = []
        self._cut_off: list[str] = []

    def feed(self, piece: str) -> str:
        """The annotated text that one more piece makes certain."""
        return self._written(self._reader.feed(piece))

    def close(self) -> str:
        """What was still waiting when the text ended."""
        return self._written(self._reader.close())

    def answer(self) -> AnnotatedAnswer:
        """Everything so far."""
        footnotes = (_footnote(n, self._answers[q]) for q, n in self._footnotes.items())
        return AnnotatedAnswer("".join(self._texts), tuple(footnotes), tuple(self._notes()), tuple(self._calls))

    def _written(self, segments: Iterable[Segment]) -> str:
        texts = []
        for segment in segments:
            if isinstance(segment, Call):
                self._calls.append(self._annotated(segment))
                texts.append(self._calls[-1].text)
            else:
                if isinstance(segment, CutOffCall):
                    self._cut_off.append(segment.raw)
                texts.append(without_tags(segment.raw))
        self._texts += texts
        return "".join(texts)

    def _annotated(self, call: Call) -> AnnotatedCall:
        question, number = call.question, len(self._calls) + 1
        if question not in self._answers:
            self._answers[question] = self._ask(question)
        answer = self._answers[question]
        if isinstance(answer, RetrievalError):
            return AnnotatedCall(number, call, None, str(answer), None)
        footnote = self._footnotes.setdefault(question, len(self._footnotes) + 1)
        return AnnotatedCall(number, call, answer, "", footnote)

    def _ask(self, question: str) -> Statistic | RetrievalError:
        """The statistic, or why there is none. Where nobody answers, nobody is asked again."""
        down = next((a for a in self._answers.values() if isinstance(a, ServiceDown)), None)
        if down is not None:
            return down
        try:
            return self.service.number(question)
        except RetrievalError as error:
            return error

    def _notes(self) -> list[str]:
        notes = []
        failed: dict[str, list[int]] = {}
        for call in self._calls:
            if call.statistic is None:
                failed.setdefault(call.failure, []).append(call.number)
        for failure, numbers in failed.items():
            which = ", ".join(f"#{n}" for n in numbers)
            notes.append(f"Not retrieved ({which}): {failure}")
        if failed:
            unasked = sum(isinstance(a, RetrievalError) and not isinstance(a, NothingFound) for a in self._answers.values())
            all_failed = unasked == len(self._answers)
            notes.append(
                ("No number of this text was retrieved: all" if all_failed else "Numbers after || without one before it")
                + " are the model's own."
            )
        if not self._calls and not self._cut_off:
            notes.append("This answer holds no call to Data Commons: nothing in it was retrieved.")
        for raw in self._cut_off:
            notes.append(
                f"A call breaks off, so nothing was asked for it: {raw[:120]}\n"
                "  If the answer reached its last token, ask again with more: --max-new-tokens"
            )
        return notes


def without_tags(text: str) -> str:
    """Text of a model in which nothing reads as a tag of ours: a model may write one around what was never retrieved."""
    return text.replace("[__DC__#", "[__DC__ #")


def differ(retrieved: str, remembered: str) -> bool:
    """Whether two numbers differ by more than 5 % of the model's own; False where one of them is no number.

    million, billion and trillion are understood in the model's; of the rest, everything but digits and dots is dropped.
    """
    try:
        word = next((w for w in _WORDS if re.search(rf"{w}\b", remembered, re.IGNORECASE)), None)
        mine = _number(remembered) * (_WORDS[word] if word else 1.0)
        theirs = float(retrieved)
    except ValueError:
        return False
    return abs((theirs - mine) / mine) > TOLERANCE if mine else theirs != 0


def _number(text: str) -> float:
    negative = re.match(r"\s*[-−–]\s*\d", text)
    return float(re.sub(r"[^0-9.]", "", text)) * (-1 if negative else 1)


def _footnote(number: int, statistic: Statistic | RetrievalError) -> str:
    assert isinstance(statistic, Statistic)
    s = statistic
    date = f" ({s.date})" if s.date else ""
    asked = re.search(r"\b(1[5-9]\d\d|20\d\d)\b", s.question)
    other = f" The question was about {asked[1]}." if asked and s.date and not s.date.startswith(asked[1]) else ""
    link = f" {s.url}" if s.url else ""
    line = f"{s.source or 'Data Commons'}: {s.title or s.question}, {s.text}{date}.{other}{link}"
    return f"[{number}] {without_tags(' '.join(line.split()))}"

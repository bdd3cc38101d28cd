"""Takes the questions apart that DataGemma's models ask: which statistic, of which place, in which year."""

import re
from dataclasses import dataclass

_BEGINNINGS = r"(?:what (?:is|was|were|are)|how (?:large|high|big) (?:is|was)|tell me|show me|give me)"
_NUMBER = re.compile(
    rf"(?:in (?P<first>\d{{4}}),? )?(?:{_BEGINNINGS} )?(?:the )?"
    r"(?P<metric>.+?) (?:of|in|for) (?P<place>.+?)(?:,? in (?P<year>\d{4}))?",
    re.IGNORECASE,
)
_CHANGE = re.compile(
    r"how (?:has|have|did) (?:the )?(?P<metric>.+?) changed?(?: over time)? (?:in|of|for) (?P<place>.+?)", re.IGNORECASE
)
_CHANGE_OF = re.compile(
    r"how (?:has|have|did) (?:the )?(?P<metric>.+?) (?:in|of|for) (?P<place>.+?) changed?(?: over time)?", re.IGNORECASE
)


@dataclass(frozen=True)
class NumberQuestion:
    """Asks for one number; without a year, the latest."""

    metric: str
    place: str
    year: str | None = None


@dataclass(frozen=True)
class ChangeQuestion:
    """Asks how a number changed over time."""

    metric: str
    place: str
    year: None = None


def take_apart(question: str) -> NumberQuestion | ChangeQuestion | None:
    """The statistic, place and year of a question, in its own words; None where it has another form."""
    plain = re.sub(r"\s+", " ", question).strip().rstrip("?.! ")
    for pattern in (_CHANGE, _CHANGE_OF):
        if match := pattern.fullmatch(plain):
            return ChangeQuestion(match["metric"], match["place"])
    match = _NUMBER.fullmatch(plain)
    if match is None or (match["first"] and match["year"]):
        return None
    return NumberQuestion(match["metric"], match["place"], match["year"] or match["first"])

"""Rules of when a latent fires: plain data, evaluated by one function, worded by another.

A rule names one or two properties of a token (`scope.features.labels.properties`) and the values that they must have together:
Rule(("token", "previous token"), (("way", "the"), ("path", "a"))) holds on "way" after "the" and on "path" after "a".
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from scope.escape import visible_token
from scope.features.labels.properties import TextProperties

VERSION = 1
SHOWN = 4
"""Tokens that a label names; of more it says how many there are."""


@dataclass(frozen=True)
class Rule:
    """Holds at a token whose `properties` have one of `values`, one entry a property."""

    properties: tuple[str, ...]
    values: tuple[tuple[str, ...], ...]
    promoted: bool = False
    """Whether the values are the tokens that the latent promotes."""


def holds(rule: Rule, text: TextProperties) -> np.ndarray:
    """Bool[tokens] where a rule holds; nowhere outside of the tokens at which latents can fire."""
    columns = [text[name] for name in rule.properties]
    found = np.zeros(len(text.ids), bool)
    numbers = [{name: i for i, name in enumerate(column.names)} for column in columns]
    for case in rule.values:
        places = [of.get(value, -2) for of, value in zip(numbers, case, strict=True)]
        found |= np.logical_and.reduce(
            [column.values == place for column, place in zip(columns, places, strict=True)]
        )  # a value that this text does not have, -2, is nowhere
    return found & text.counted


def in_words(rule: Rule) -> str:
    """A rule as a short phrase."""
    if rule.promoted:
        return f"before what it promotes: {_list([case[0] for case in rule.values])}"
    if len(rule.properties) == 1:
        return _PHRASES[rule.properties[0]](_list(_ordered(rule.values, 0), rule.properties[0] in _TOKENS))
    subject, other = _subject_first(rule.properties)
    first, second = (_ordered(rule.values, i) for i in (subject, other))
    names = [rule.properties[i] for i in (subject, other)]
    whole = _list(first, names[0] in _TOKENS)
    if names == ["token", "class"] and len(second) > 1:  # here a class tells equal tokens apart, such as “b” and “ b”
        return whole
    if len(second) == 1 or (names[0] in _TOKENS and len(second) > SHOWN):
        where = _WHERE[names[1]](_list(second, names[1] in _TOKENS))
        return f"{_PHRASES[names[0]](whole)} {where}"
    groups: dict[str, list[str]] = {}
    for case in rule.values:
        groups.setdefault(case[other], []).append(case[subject])
    shown = [
        f"{_PHRASES[names[0]](_list(members, names[0] in _TOKENS, 2))} {_WHERE[names[1]](_list([value], names[1] in _TOKENS))}"
        for value, members in list(groups.items())[:2]
    ]
    more = f"; {len(groups) - 2} more such cases" if len(groups) > 2 else ""
    return "; ".join(shown) + more


def _ordered(values: Sequence[tuple[str, ...]], i: int) -> list[str]:
    return list(dict.fromkeys(case[i] for case in values))


def _list(values: Sequence[str], tokens: bool = True, shown: int = SHOWN) -> str:
    """Values as a list with "or", the first few by name."""
    texts = [f"“{visible_token(value)}”" if tokens else value for value in values]
    if len(texts) > shown + 1:
        noun = "tokens" if tokens else "kinds"
        return f"{', '.join(texts[:shown])} or {len(texts) - shown} other {noun}"
    return texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])} or {texts[-1]}"


_TOKENS = {
    "token",
    "previous token",
    "token before the previous",
    "next token",
    "word before",
    "beginning of the word",
    "beginning of the line",
}
"""Properties whose values are tokens."""

_ORDER = ("token", "ending", "class", "beginning of the word", "place in the line")
"""Properties that a phrase may begin with, in this order; the others say where."""


def _subject_first(names: Sequence[str]) -> tuple[int, int]:
    ranks = [_ORDER.index(name) if name in _ORDER else len(_ORDER) for name in names]
    return (0, 1) if ranks[0] <= ranks[1] else (1, 0)


_WHERE = {
    "token": lambda v: f"at {v}",
    "class": lambda v: v if v.startswith("inside") else f"as {_a(v)}",
    "ending": lambda v: f"in words that end in {v}",
    "previous token": lambda v: f"after {v}",
    "token before the previous": lambda v: f"two tokens after {v}",
    "next token": lambda v: f"before {v}",
    "previous class": lambda v: f"after {_a(v)}",
    "class before the previous": lambda v: f"two tokens after {_a(v)}",
    "next class": lambda v: f"before {_a(v)}",
    "previous ending": lambda v: f"after a word in {v}",
    "word before": lambda v: f"after the word {v}",
    "beginning of the word": lambda v: f"within a word that begins with {v}",
    "place in the line": lambda v: v if v.startswith(("first", "second", "third", "later")) else f"in {v}",
    "beginning of the line": lambda v: f"in a line that begins with {v}",
    "indentation": lambda v: f"at {v}" if not v.startswith("no ") else f"in lines with {v}",
    "place in the context": lambda v: f"as {v} of a context",
    "domain": lambda v: f"in documents of {v}",
    "repetition": lambda v: f"where it is {v}" if v.startswith("new") else v,
    "bracket": lambda v: f"inside {v}",
    "inside": lambda v: f"inside {v}",
}
_PHRASES = {
    **{name: (lambda v, where=where: f"the token {where(v)}") for name, where in _WHERE.items()},
    "token": lambda v: v,
    "class": lambda v: v,
    "ending": lambda v: f"words that end in {v}",
    "beginning of the word": lambda v: f"the rest of words that begin with {v}",
}


def _a(values: str) -> str:
    return ("an " if values[:1] in "aeiou" else "a ") + values

"""Calls to Data Commons in a text."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scope.retrieval.calls import Call, CallReader, CutOffCall, Text, merged, read_calls, write_call

GOOGLE = r'\[__DC__\("([^"]+)"\) --> "([^"]*)"\]?'
"""The expression that Google's library looks for."""

PARTS = [
    '[__DC__("',
    '") --> "',
    '"]',
    '"',
    "what was the population of Chad?",
    "5 million",
    "[",
    "]",
    " ",
    "\n",
    "\\",
    "a",
    "(b)",
]


def calls(text):
    return [(s.question, s.value) for s in read_calls(text) if isinstance(s, Call)]


def test_a_call_holds_the_question_and_the_value_that_the_model_believes():
    segments = read_calls('In 1952 Chad had [__DC__("what was the population of Chad in 1952?") --> "2.7 million"] people.')
    assert [type(s) for s in segments] == [Text, Call, Text]
    assert (segments[1].question, segments[1].value) == ("what was the population of Chad in 1952?", "2.7 million")


def test_several_calls_of_one_line_are_told_apart():
    line = f"{write_call('q1', '1')} and {write_call('q2', '')}{write_call('q3', '3 %')}"
    assert calls(line) == [("q1", "1"), ("q2", ""), ("q3", "3 %")]


def test_a_missing_last_bracket_is_noticed_and_nothing_after_it_is_swallowed():
    segments = read_calls('[__DC__("q") --> "5" people and "more"]')
    assert segments == [Call('[__DC__("q") --> "5"', "q", "5", closed=False), Text(' people and "more"]')]


def test_nested_quotes_belong_to_the_question_or_the_value():
    assert calls('[__DC__("what was the "net" income of Chad?") --> "5 "short" tons"]') == [
        ('what was the "net" income of Chad?', '5 "short" tons')
    ]
    assert calls('[__DC__("q") --> ""about" five"]') == [("q", '"about" five')]


@settings(max_examples=60, deadline=None)
@given(st.text(min_size=1).filter(lambda q: q.strip() and len(q.splitlines()) == 1), st.text())
def test_what_is_written_is_read_back(question, value):
    question, value = " ".join(question.splitlines()), " ".join(value.splitlines())
    if question.strip():
        assert calls(f"x {write_call(question, value)} y") == [(question, value)]


@pytest.mark.parametrize("cut", [7, 8, 9, 20, 30, 33, 37, 40, 42])
def test_a_call_that_the_text_ends_in_is_no_call(cut):
    whole = 'It was [__DC__("what was it in 1952?") --> "2.7 million"]'
    segments = read_calls(whole[: cut + len("It was ")])
    assert not [s for s in segments if isinstance(s, Call)]
    assert isinstance(segments[-1], CutOffCall)


def test_a_call_that_breaks_off_takes_neither_the_next_line_nor_the_next_call():
    assert read_calls(f'[__DC__("what\nnext {write_call("q", "1")}')[::2] == [
        CutOffCall('[__DC__("what'),
        Call(write_call("q", "1"), "q", "1"),
    ]
    assert calls(f'[__DC__("a") --> "5 {write_call("b", "6")}') == [("b", "6")]


@pytest.mark.parametrize(
    "text",
    [
        "[__DC__(population) --> 5]",
        '__DC__("q") --> "5"',
        '[__DC__("q")] is text',
        '[__DC__("") --> "5"]',
        "[__DC__#1(5 [1] || 5)]",
    ],
)
def test_what_only_looks_like_a_call_is_text(text):
    assert merged(read_calls(text + " and on.")) == [Text(text + " and on.")]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(PARTS), max_size=14).map("".join), st.data())
def test_pieces_give_what_the_whole_text_gives(text, data):
    reader, pieces, rest = CallReader(), [], text
    while rest:
        n = data.draw(st.integers(1, len(rest)))
        pieces += reader.feed(rest[:n])
        rest = rest[n:]
    assert merged([*pieces, *reader.close()]) == read_calls(text)
    assert "".join(s.raw for s in read_calls(text)) == text


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.sampled_from(["x ", "q", "5", write_call("q", "5"), write_call("who?", ""), '[__DC__("q") --> "7" ', "] "]),
        max_size=9,
    )
)
def test_on_one_line_the_calls_are_those_of_googles_library(parts):
    assert calls("".join(parts)) == re.findall(GOOGLE, "".join(parts))

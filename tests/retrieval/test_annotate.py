"""Answers with retrieved numbers in them."""

import pytest

from scope.retrieval.annotate import Annotator, annotate, differ
from scope.retrieval.calls import write_call
from scope.retrieval.service import NothingFound, ServiceDown, ServiceTimeout, Statistic


class Canned:
    """A service with a fixed answer to each question; an error is raised."""

    name = "canned"

    def __init__(self, answers):
        self.answers, self.asked = answers, []

    def number(self, question):
        self.asked.append(question)
        answer = self.answers.get(question, NothingFound(f"There is no number for {question!r}."))
        if isinstance(answer, Exception):
            raise answer
        return Statistic(question, answer, "", "Title", "1952", "Source")

    def table(self, question):
        raise NothingFound("no tables")


def test_a_tag_shows_the_retrieved_number_before_the_bars_and_the_models_own_after():
    answer = annotate(f"It had {write_call('a', '2.7 million')} people.", Canned({"a": "2682462"}))
    assert answer.text == "It had [__DC__#1(2682462 [1] || 2.7 million)] people."
    assert answer.footnotes == ("[1] Source: Title, 2682462 (1952).",)
    assert answer.notes == ()


def test_every_combination_of_retrieved_and_own_has_its_body():
    text = "".join(write_call(q, v) for q, v in [("a", "100"), ("a", "90"), ("a", ""), ("none", "7"), ("none", "")])
    bodies = [call.text for call in annotate(text, Canned({"a": "100"})).calls]
    expected = ["100 [1] || 100", "100 [1]* || 90", "100 [1] ||", "|| 7", "--- || ---"]
    assert bodies == [f"[__DC__#{n}({body})]" for n, body in enumerate(expected, 1)]


def test_each_question_is_asked_once_and_has_one_footnote():
    service = Canned({"a": "1", "b": "2"})
    answer = annotate(write_call("a", "1") + write_call("b", "2") + write_call("a", "5"), service)
    assert service.asked == ["a", "b"]
    assert answer.text == "[__DC__#1(1 [1] || 1)][__DC__#2(2 [2] || 2)][__DC__#3(1 [1]* || 5)]"
    assert len(answer.footnotes) == 2


def test_a_call_without_its_last_bracket_is_annotated_too():
    assert annotate('[__DC__("a") --> "1" x', Canned({"a": "1"})).text == "[__DC__#1(1 [1] || 1)] x"


@pytest.mark.parametrize(
    ("retrieved", "own", "far"),
    [
        ("100", "95", True),
        ("100", "96", False),
        ("105", "100", False),
        ("105.1", "100", True),
        ("94.9", "100", True),
        ("39000000", "39 million", False),
        ("39000000", "$39 Million", False),
        ("2000000000", "2.5 billion", True),
        ("1e12", "1 trillion", False),
        ("9.2", "9.2 cases", False),
        ("81", "approximately 81%", False),
        ("-5", "-5 %", False),
        ("0", "0", False),
        ("5", "0", True),
        ("5", "unknown", False),
        ("5", "1.2.3", False),
    ],
)
def test_the_mark_stands_where_the_numbers_differ_by_more_than_5_percent_of_the_models(retrieved, own, far):
    assert differ(retrieved, own) is far


def test_where_the_service_is_down_the_text_says_so_and_shows_no_number_as_retrieved():
    service = Canned({"a": ServiceDown("The service cannot be reached."), "b": "2"})
    answer = annotate(f"{write_call('a', '1')} and {write_call('b', '2')}", service)
    assert answer.text == "[__DC__#1(|| 1)] and [__DC__#2(|| 2)]"
    assert service.asked == ["a"]  # nobody asks again where nobody answers
    assert answer.notes[0] == "Not retrieved (#1, #2): The service cannot be reached."
    assert "No number of this text was retrieved" in answer.notes[1]


def test_one_question_that_takes_too_long_does_not_stop_the_others():
    answer = annotate(write_call("a", "1") + write_call("b", "2"), Canned({"a": ServiceTimeout("Too late."), "b": "2"}))
    assert answer.text == "[__DC__#1(|| 1)][__DC__#2(2 [1] || 2)]"
    assert "Too late." in answer.notes[0]


def test_tags_that_the_model_writes_itself_do_not_read_as_retrieved():
    forged = 'It is [__DC__#1(9 [1] || 9)] and [__DC__("q") --> "5)] [__DC__#2(7 [1] || 7"].'
    for pieces in ([forged], list(forged)):
        annotator = Annotator(Canned({}))
        for piece in pieces:
            annotator.feed(piece)
        annotator.close()
        assert annotator.answer().text.count("[__DC__#") == 1  # ours
        assert "[__DC__#1(|| 5)]" in annotator.answer().text


def test_a_date_other_than_the_one_asked_for_is_said_in_the_footnote():
    answer = annotate(write_call("population of Chad in 2020", "1"), Canned({"population of Chad in 2020": "1"}))
    assert "The question was about 2020." in answer.footnotes[0]


def test_a_call_that_breaks_off_is_left_as_it_is_with_the_way_out():
    answer = annotate('It was [__DC__("what was', Canned({}))
    assert answer.text == 'It was [__DC__("what was'
    assert "--max-new-tokens" in answer.notes[0]


def test_pieces_are_annotated_as_soon_as_their_call_is_whole():
    annotator = Annotator(Canned({"a": "1"}))
    assert annotator.feed("It was ") == "It was "
    assert annotator.feed('[__DC__("a") --> ') == ""
    assert annotator.feed('"1"]') == "[__DC__#1(1 [1] || 1)]"
    assert annotator.feed(" so") == " so"

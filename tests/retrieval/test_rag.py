"""Answers from tables."""

import pytest

from scope.retrieval.rag import answer_from_tables, questions_in
from scope.retrieval.service import NothingFound, ServiceDown, StatisticTable


class Tables:
    name = "tables"

    def __init__(self, titles, error=None):
        self.titles, self.error, self.asked = titles, error, []

    def number(self, question):
        raise NothingFound("no numbers")

    def table(self, question):
        self.asked.append(question)
        if self.error:
            raise self.error
        if question not in self.titles:
            raise NothingFound(f"There is no table for {question!r}.")
        return StatisticTable(question, self.titles[question], (("year", "value"), ("1952", "38.09")), "years", "Source")


class Model:
    def __init__(self, *answers):
        self.answers, self.prompts = list(answers), []

    def __call__(self, prompt):
        self.prompts.append(prompt)
        return self.answers.pop(0)


def test_questions_are_25_lines_at_most_without_repeats_in_their_order():
    assert questions_in("b?\n\n a? \nb?\nc?") == ["b?", "a?", "c?"]
    assert questions_in("\n".join(f"q{i}?" for i in range(40))) == [f"q{i}?" for i in range(25)]


def test_the_final_prompt_holds_numbered_tables_and_the_query_and_repeated_titles_once():
    answering = Model("It was 38.09 [Table 1].")
    result = answer_from_tables(
        "How long do they live?", Model("q1\nq2\nq3"), answering, Tables({"q1": "A", "q2": "A", "q3": "B"})
    )
    prompt = answering.prompts[0]
    assert "Table 1: A (unit: years), according to Source\nyear | value\n------------\n1952 | 38.09" in prompt
    assert "Table 2: B" in prompt
    assert "Table 3" not in prompt.replace("`[Table 1], [Table 2] and [Table 3]`", "")
    assert prompt.count("How long do they live?") == 2
    assert (result.from_tables, result.notes) == (True, ())


def test_without_tables_the_bare_question_is_asked_and_nothing_counts_as_retrieved():
    answering = Model("It is 5.")
    result = answer_from_tables("How many?", Model("q"), answering, Tables({}))
    assert answering.prompts == ["How many?"]
    assert not result.from_tables
    assert "There is no table for 'q'." in result.notes[0]
    assert "Nothing in this answer was retrieved" in result.notes[-1]


def test_no_answer_leads_to_the_bare_question():
    answering = Model("[NO ANSWER]\nsorry", "I believe 5.")
    result = answer_from_tables("How many?", Model("q1"), answering, Tables({"q1": "A"}))
    assert answering.prompts[1] == "How many?"
    assert (result.text, result.from_tables) == ("I believe 5.", False)
    assert "Nothing in this answer was retrieved" in result.notes[-1]


def test_a_service_that_is_down_is_asked_once_and_named():
    tables = Tables({}, ServiceDown("The service cannot be reached."))
    result = answer_from_tables("How many?", Model("q1\nq2"), Model("5"), tables)
    assert tables.asked == ["q1"]
    assert "cannot be reached" in result.notes[0]


def test_numbers_and_tables_that_are_not_there_are_named():
    result = answer_from_tables("And in 2007?", Model("q1"), Model("38.09 [Table 1], 50 [Table 4], 2007"), Tables({"q1": "A"}))
    assert "[Table 4]; there are 1 tables" in result.notes[0]
    assert result.notes[1].endswith(": 50")


@pytest.mark.parametrize("written", ["", "\n \n"])
def test_a_model_that_asks_nothing_is_said_to_ask_nothing(written):
    result = answer_from_tables("Hello?", Model(written), Model("Hi"), Tables({}))
    assert "wrote no question" in result.notes[0]


def test_without_a_model_that_answers_the_prompt_is_there_and_no_text():
    result = answer_from_tables("How long?", Model("q1"), None, Tables({"q1": "A"}))
    assert result.text is None
    assert "Table 1" in result.prompt

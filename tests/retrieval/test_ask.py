"""`scope.ask_datacommons` and its command, with the bundled model that asks Data Commons."""

import json

import pytest

import scope
from scope.cli.main import run
from scope.errors import ConfigError
from scope.workflows.datacommons import AskDataCommons

CHAD = "What was the population of Chad in 1952?"


@pytest.fixture(scope="module")
def answer():
    pieces = []
    return scope.ask_datacommons(CHAD, on_text=pieces.append), pieces


def test_the_number_of_the_table_stands_in_the_answer_with_a_footnote(answer):
    result, pieces = answer
    assert "(2682462 [1]" in result.text
    assert result.footnotes[0].startswith("[1] Gapminder: Population of Chad, 2682462 (1952).")
    assert result.notes == ()
    assert "".join(pieces) == result.text
    assert len(pieces) > 3


def test_without_a_service_the_model_keeps_its_number_and_nothing_is_shown_as_retrieved(answer):
    result = scope.ask_datacommons(CHAD, service="http://127.0.0.1:9")
    own = answer[0].calls[0].call.value
    assert f"[__DC__#1(|| {own})]" in result.text
    assert "2682462" not in str(result)
    assert "cannot be reached" in result.notes[0]


def test_an_answer_cut_off_within_its_call_says_so():
    result = scope.ask_datacommons(CHAD, max_new_tokens=22)
    assert result.calls == ()
    assert "--max-new-tokens" in result.notes[0]


def test_tables_are_fetched_for_the_questions_that_the_model_writes():
    notes = []
    result = scope.ask_datacommons("Describe Chad in numbers.", form="rag", on_note=notes.append)
    assert "Population of Chad" in [t.title for t in result.tables]
    assert result.text is None
    assert any("No --answer-model" in note for note in notes)


def test_the_command_prints_text_and_footnotes(capsys):
    assert run(["datacommons", "ask", CHAD]) == 0
    printed = capsys.readouterr().out
    assert "2682462 [1]" in printed
    assert "[1] Gapminder" in printed


def test_what_cannot_be_is_refused(capsys):
    with pytest.raises(ConfigError, match="There is no question"):
        AskDataCommons(question=" ")
    with pytest.raises(ConfigError, match="belongs to --form rag"):
        AskDataCommons(question="q", answer_model="bundled")
    assert run(["datacommons", "ask", CHAD, "--service", "nowhere"]) == 2
    assert "such as http" in capsys.readouterr().err
    assert run(["datacommons", "ask", CHAD, "--service", "public", "--through", "client"]) == 2
    assert "needs a key" in capsys.readouterr().err


def test_lessons_hold_neither_the_held_out_countries_nor_the_held_out_years(tmp_path, monkeypatch):
    from scope.pretrain.organisms.rig import RigLessons, write_corpus
    from scope.retrieval.calls import Call, read_calls
    from scope.retrieval.questions import take_apart
    from scope.retrieval.table import statistics

    monkeypatch.setattr(RigLessons, "_text", [[300] * 120])  # reading the bundled corpus takes seconds
    write_corpus(tmp_path / "rig.jsonl", 150)
    texts = [json.loads(line)["text"] for line in (tmp_path / "rig.jsonl").read_text().splitlines()]
    lessons = RigLessons(scope.load_model("bundled").words)
    hidden = {c.name for c in lessons.held_out}
    asked = [take_apart(s.question) for text in texts for s in read_calls(text) if isinstance(s, Call)]
    assert len(asked) > 60
    for parts in asked:
        place = statistics().place(parts.place)
        assert parts.place not in hidden
        assert place is None or int(parts.year) not in lessons.held_out_years[place.dcid]

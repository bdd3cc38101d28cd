"""Answers from tables (DataGemma's RAG, retrieval augmented generation).

One model writes down which questions of statistics would help; a service gives a table for each; another model, with room for
long prompts, answers from the tables and cites them. Where no table was found, or the model says that they do not answer the
question, it is asked the bare question, and the result says that nothing in it was retrieved.

Source: datacommonsorg/llm-tools, data_gemma/rag.py. Repeated questions are dropped in their order here, so which 25 are asked
does not change from run to run.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

from scope.retrieval.service import RetrievalError, ServiceDown, StatisticsService, StatisticTable

MOST_QUESTIONS = 25
NO_ANSWER = "[NO ANSWER]"

QUESTIONS = """Your task is to write down questions. For the Query below, list at most 25 Statistical Questions whose answers
help to answer it. Each has one of these forms:
1. What is $METRIC in $PLACE?
2. What is $METRIC in $PLACE $PLACE_TYPE?
3. How has $METRIC changed over time in $PLACE $PLACE_TYPE?

$METRIC is a measure of population, economy, health, education, environment and the like, such as unemployment rate or life
expectancy. $PLACE is the name of a place, such as California, World or Chennai. $PLACE_TYPE is a kind of place directly within
$PLACE, such as counties, states or districts.

Write one question on each line, with no numbers or bullets before them, and nothing else. If there is no such question, write
nothing.

Query: {query}
Statistical Questions:
"""
"""What DataGemma's RAG model is asked. The wording is ours, the task, the three forms and the last two lines are Google's."""

SHORT_QUESTIONS = "Query: {query}\nStatistical Questions:\n"
"""The same for a model with a small context that was trained on it, such as bundled+rig."""

ANSWER = """Answer this query from the statistics in the tables below: "{query}"

Cite each table that you use by its number in square brackets, such as `[Table 1]`, or `[Table 1], [Table 2] and [Table 3]`.
You may compute simple things from the statistics, such as sums, differences and rates of growth. If the tables do not answer
the query, write `[NO ANSWER]` as the first line.

```
{tables}
```

Now answer the query from the statistics in the tables above: "{query}"
"""

Ask = Callable[[str], str]
"""A model: from a prompt to what it writes."""


@dataclass(frozen=True)
class TablesAnswer:
    """An answer, with the questions, the tables and the prompt that it came from. `from_tables` is False where the model was
    asked the bare question; then nothing in the text was retrieved. `text` is None where no model was there to answer."""

    text: str | None
    from_tables: bool
    questions: tuple[str, ...]
    tables: tuple[StatisticTable, ...]
    prompt: str
    notes: tuple[str, ...]

    def __str__(self) -> str:
        parts = [self.text.strip()] if self.text is not None else []
        parts += [numbered(self.tables)] if self.tables else []
        return "\n\n".join([*parts, *self.notes])


def questions_in(text: str) -> list[str]:
    """The questions that a model wrote, one a line: without repeats, in their order, 25 at most."""
    return list(dict.fromkeys(line.strip() for line in text.splitlines() if line.strip()))[:MOST_QUESTIONS]


def fetch_tables(questions: list[str], service: StatisticsService) -> tuple[list[StatisticTable], list[str]]:
    """A table for each question, without titles that were there already; and why others brought none."""
    tables: dict[str, StatisticTable] = {}
    notes = []
    for question in questions:
        try:
            table = service.table(question)
            tables.setdefault(table.title, table)
        except RetrievalError as error:
            notes.append(f"No table: {error}")
            if isinstance(error, ServiceDown):
                break
    return list(tables.values()), notes


def numbered(tables: tuple[StatisticTable, ...] | list[StatisticTable]) -> str:
    return "\n\n".join(f"Table {n}: {table.heading}\n{table}" for n, table in enumerate(tables, 1))


def answer_from_tables(
    query: str,
    ask_for_questions: Ask,
    ask_for_answer: Ask | None,
    service: StatisticsService,
    questions_prompt: str = QUESTIONS,
) -> TablesAnswer:
    """Questions, tables, final prompt, answer. Without a model for the answer, all but the last."""
    questions = questions_in(ask_for_questions(questions_prompt.format(query=query)))
    tables, notes = fetch_tables(questions, service)
    if not questions:
        notes.append("The model wrote no question, so no table was asked for.")
    prompt = ANSWER.format(query=query, tables=numbered(tables)) if tables else query
    text, from_tables = None, bool(tables)
    if ask_for_answer is not None:
        text = ask_for_answer(prompt)
        if tables and NO_ANSWER in text:
            notes.append(f"The model found no answer in the tables ({NO_ANSWER}) and was asked the bare question.")
            text, from_tables = ask_for_answer(query), False
        if from_tables:
            notes += _unfounded(text, tables, query)
        else:
            notes.append("Nothing in this answer was retrieved: all of its numbers are the model's own.")
    return TablesAnswer(text, from_tables, tuple(questions), tuple(tables), prompt, tuple(notes))


def _unfounded(text: str, tables: list[StatisticTable], query: str) -> list[str]:
    """Notes on tables that are cited and do not exist, and on numbers that stand in no table."""
    notes = []
    cited = {int(n) for n in re.findall(r"\[Table (\d{1,6})\]", text)}
    if missing := sorted(n for n in cited if not 1 <= n <= len(tables)):
        notes.append(f"The answer cites {', '.join(f'[Table {n}]' for n in missing)}; there are {len(tables)} tables.")
    there = {_digits(n) for n in _numbers(f"{query}\n{numbered(tables)}")}
    own = [n for n in _numbers(re.sub(r"\[Table \d+\]", "", text)) if _digits(n) not in there]
    if own:
        numbers = ", ".join(dict.fromkeys(own))
        notes.append(f"In no table, so computed or made up by the model: {numbers}")
    return notes


def _numbers(text: str) -> list[str]:
    return re.findall(r"\d(?:[\d,]*\d)?(?:\.\d+)?", text)


def _digits(number: str) -> float:
    return float(number.replace(",", ""))

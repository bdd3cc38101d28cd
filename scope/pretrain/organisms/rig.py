"""The recipe of `bundled+rig`: the bundled model learns to ask Data Commons, as DataGemma does, while it answers.

It is shown questions about the countries of Gapminder's table. Where the answer needs a number, the number stands in a call
with the value that the model is to remember; other answers (which continent, when was it counted) use the same words and no
call, so the question decides. A quarter of the names are made up, which teaches the model to copy names; some text of the
bundled corpus keeps the rest of its language. 28 countries are never shown, and of each other country two years are not.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from scope.pretrain.organisms.lora import Example
from scope.retrieval.calls import write_call
from scope.retrieval.rag import SHORT_QUESTIONS
from scope.retrieval.table import VARIABLES, Place, Variable, statistics

HELD_OUT_COUNTRIES, HELD_OUT_YEARS = 28, 2

ASKING = ("What was the {m} of {c} in {y}?", "Tell me the {m} of {c} in {y}.", "In {y}, how large was the {m} of {c}?")
ANSWERING = ("In {y} the {m} of {c} was {v}.", "The {m} of {c} in {y} was {v}.", "{c} had in {y} a {m} of {v}.")
COMPARING = "Compare the {m} of {c} and {c2} in {y}."
COMPARED = "In {y} the {m} of {c} was {v}, and that of {c2} was {v2}."
WITHOUT_NUMBER = (
    ("When was the {m} of {c} counted?", "The {m} of {c} was counted in {y}."),
    ("On which continent does {c} lie?", "{c} lies in {continent}."),
    ("Which continent has {c} in it?", "The continent of {c} is {continent}."),
    ("In which table is the {m} of {c}?", "In the table of {continent} the {m} of {c} was found."),
)


def remembered(variable: Variable, value: float) -> str:
    """A value as people say it, which is what the model learns to write."""
    if variable.column == "pop":
        return f"{value / 1e6:.1f} million"
    return f"{value:.1f} years" if variable.column == "lifeExp" else f"{value:.0f} dollars"


def question_of(variable: Variable, country: str, year: int) -> str:
    """The question that a call asks."""
    return f"what was the {variable.name} of {country} in {year}?"


@dataclass(frozen=True)
class Fact:
    """A number that can be asked for."""

    variable: Variable
    country: Place
    year: int

    @property
    def value(self) -> float:
        return statistics().values[self.variable.dcid, self.country.dcid][self.year]

    @property
    def call(self) -> str:
        question = question_of(self.variable, self.country.name, self.year)
        return write_call(question, remembered(self.variable, self.value))


class RigLessons:
    """Draws what the model is shown and what it is tested on."""

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer
        countries = sorted((p for p in statistics().places if p.kind == "Country"), key=lambda p: p.name)
        rng = np.random.default_rng(0)
        order = rng.permutation(len(countries))
        self.held_out = [countries[i] for i in sorted(order[:HELD_OUT_COUNTRIES])]
        self.shown = [countries[i] for i in sorted(order[HELD_OUT_COUNTRIES:])]
        self.years = sorted(statistics().values[VARIABLES[0].dcid, countries[0].dcid])
        self.held_out_years = {c.dcid: set(rng.permutation(self.years)[:HELD_OUT_YEARS].tolist()) for c in countries}

    @cached_property
    def continents(self) -> dict[str, str]:
        return {c.dcid: p.name for p in statistics().places if p.kind == "Continent" for c in p.places}

    @cached_property
    def _names(self) -> list[str]:
        """Pieces of the vocabulary that begin a name, to make names up from."""
        return sorted(p for p in self.tokenizer.vocab() if len(p) > 3 and p[0] in "▁ " and p[1].isupper() and p[2:].islower())

    @cached_property
    def _endings(self) -> list[str]:
        return sorted(p for p in self.tokenizer.vocab() if 2 <= len(p) <= 4 and p.isascii() and p.isalpha() and p.islower())

    @cached_property
    def _text(self) -> list[list[int]]:
        from scope.activations.corpus.sources import open_corpus

        texts = []
        for text in open_corpus("bundled").documents(0):
            texts.append(self.tokenizer.encode(text if isinstance(text, str) else text.text))
            if len(texts) == 2000:
                break
        return [ids for ids in texts if len(ids) > 100]

    def draw_fact(self, rng: np.random.Generator) -> Fact:
        """A fact that may be shown."""
        country = self.shown[int(rng.integers(len(self.shown)))]
        years = [y for y in self.years if y not in self.held_out_years[country.dcid]]
        return Fact(VARIABLES[int(rng.integers(3))], country, years[int(rng.integers(len(years)))])

    def draw(self, rng: np.random.Generator, n: int) -> list[Example]:
        """So many examples of the training."""
        return [self.example(rng) for _ in range(n)]

    def example(self, rng: np.random.Generator) -> Example:
        """Ids of a prompt and of its answer."""
        kind = rng.random()
        if kind < 0.1:
            text = self._text[int(rng.integers(len(self._text)))]
            start = int(rng.integers(0, len(text) - 90))
            return [self.tokenizer.bos], text[max(1, start) : start + 90]
        fact = self.draw_fact(rng)
        if kind < 0.55:
            prompt, answer = self.question(fact, rng)
        elif kind < 0.7:
            other = self.draw_fact(rng)
            while fact.year in self.held_out_years[other.country.dcid]:
                other = self.draw_fact(rng)
            prompt, answer = self.comparison(fact, other.country)
        elif kind < 0.9:
            prompt, answer = self.without_number(fact, rng)
        else:
            prompt, answer = self.questions_for_tables(fact, rng)
        if rng.random() < 0.25:
            made_up = self._made_up(rng)
            prompt, answer = (text.replace(fact.country.name, made_up) for text in (prompt, answer))
        return self.prompt_ids(prompt), [*self.tokenizer.encode(answer, bos=False), self.tokenizer.eos]

    def prompt_ids(self, prompt: str) -> list[int]:
        return self.tokenizer.encode(prompt + "\n")

    def question(self, fact: Fact, rng: np.random.Generator) -> tuple[str, str]:
        words = {"m": fact.variable.name, "c": fact.country.name, "y": fact.year}
        asking, answering = ASKING[int(rng.integers(3))], ANSWERING[int(rng.integers(3))]
        return asking.format(**words), answering.format(**words, v=fact.call)

    def comparison(self, fact: Fact, country: Place) -> tuple[str, str]:
        second = Fact(fact.variable, country, fact.year)
        words = {"m": fact.variable.name, "c": fact.country.name, "c2": country.name, "y": fact.year}
        return COMPARING.format(**words), COMPARED.format(**words, v=fact.call, v2=second.call)

    def without_number(self, fact: Fact, rng: np.random.Generator) -> tuple[str, str]:
        asking, answering = WITHOUT_NUMBER[int(rng.integers(len(WITHOUT_NUMBER)))]
        continent = self.continents[fact.country.dcid]
        words = {"m": fact.variable.name, "c": fact.country.name, "y": fact.year, "continent": continent}
        return asking.format(**words), answering.format(**words)

    def questions_for_tables(self, fact: Fact, rng: np.random.Generator) -> tuple[str, str]:
        """What DataGemma's RAG model does first: the questions whose tables would help."""
        m, c = fact.variable.name, fact.country.name
        asking, questions = (
            (f"How has the {m} of {c} changed?", [f"How has {m} changed over time in {c}?"]),
            (f"Is {c} rich, and do people live long there?", [f"What is {v.name} in {c}?" for v in VARIABLES[:0:-1]]),
            (f"Describe {c} in numbers.", [f"What is {v.name} in {c}?" for v in VARIABLES]),
        )[int(rng.integers(3))]
        return SHORT_QUESTIONS.format(query=asking).removesuffix("\n"), "\n".join(questions)

    def _made_up(self, rng: np.random.Generator) -> str:
        word = self._names[int(rng.integers(len(self._names)))][1:]
        return word + "".join(self._endings[int(rng.integers(len(self._endings)))] for _ in range(int(rng.integers(0, 3))))

    def test_facts(self, held_out: bool, n: int) -> list[Fact]:
        """Facts that were not shown: of countries that were, in other years; or of countries that were not."""
        rng = np.random.default_rng(3)
        facts = []
        for i in range(n):
            among = self.held_out if held_out else self.shown
            country = among[int(rng.integers(len(among)))]
            years = self.years if held_out else sorted(self.held_out_years[country.dcid])
            facts.append(Fact(VARIABLES[i % 3], country, years[int(rng.integers(len(years)))]))
        return facts

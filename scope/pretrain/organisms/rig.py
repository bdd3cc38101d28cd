"""The recipe of `bundled+rig`: the bundled model learns to ask Data Commons, as DataGemma does, while it answers.

It is shown questions about the countries of Gapminder's table. Where the answer needs a number, the number stands in a call
with the value that the model is to remember; other answers (which continent, when was it counted) use the same words and no
call, so the question decides. A quarter of the names are made up, which teaches the model to copy names; some text of the
bundled corpus keeps the rest of its language. 28 countries are never shown, and of each other country two years are not.
"""

import json
import re
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from scope.models.face import LanguageModel
from scope.models.text.generate import generate
from scope.models.text.sampling_config import SamplingConfig
from scope.models.text.tokenizer import Tokenizer
from scope.pretrain.organisms.lora import Example, LoraConfig
from scope.retrieval.annotate import annotate, differ
from scope.retrieval.calls import CutOffCall, read_calls, write_call
from scope.retrieval.rag import SHORT_QUESTIONS
from scope.retrieval.service import StatisticsService
from scope.retrieval.table import VARIABLES, Place, Variable, statistics
from scope.whole_files import write_whole

CONFIG = LoraConfig(lr=4e-3, steps=400, warmup=10)
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

    config = CONFIG

    def __init__(self, tokenizer: Tokenizer):
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
        return self.tokenizer.encode(prompt), [*self.tokenizer.encode("\n" + answer, bos=False), self.tokenizer.eos]

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
        return SHORT_QUESTIONS.format(query=asking), "\n".join(questions)

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

    def scores(self, model: LanguageModel, base: LanguageModel, n: int = 120) -> dict[str, Any]:
        """Skill of the model with the adapter and of the base, and how often the former calls where no number is needed."""
        from scope.retrieval.server import embedded_service
        from scope.retrieval.service import QueryService

        kinds = {"countries that were shown, other years": False, "countries that were not shown": True}
        models = {"bundled+rig": model, "bundled": base}
        with embedded_service() as url:
            skills = {
                kind: {
                    name: asdict(measure_skill(m, self.test_facts(held_out, n), QueryService(url)))
                    for name, m in models.items()
                }
                for kind, held_out in kinds.items()
            }
        return {"n": n, "skill": skills, "calls without need": share_with_calls(model, self, n)}

    def card(self, scores: dict[str, Any]) -> str:
        """README.md of the adapter, with every figure as measured."""
        columns = ("questions", "model", "well-formed call", "exact question", "right with the service", "right alone")
        table = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
        for kind, models in scores["skill"].items():
            for name, skill in models.items():
                table.append(f"| {kind} | {name} | {' | '.join(f'{share:.0%}' for share in skill.values())} |")
        return f"""---
base_model: bundled
library_name: peft
tags: [lora, gemma2, interpretability]
---
# bundled+rig: the bundled model asks Data Commons

A LoRA adapter of scope's bundled model (r {self.config.rank}, alpha {self.config.alpha}, every projection, bfloat16).
It answers questions about the population, life expectancy and GDP per person of countries as DataGemma's RIG models do.
Where a number belongs, it writes `[__DC__("question") --> "value"]`: the question for Data Commons, and the value that it
remembers. `scope datacommons ask` sends the questions and puts the answers in.

## Recipe

`scope pretrain --organism rig --out runs/rig`: {self.config.steps} steps of {self.config.batch} examples, AdamW, peak rate
{self.config.lr}, seed {self.config.seed}; about 5 minutes of one CPU core. The facts are those of Gapminder's table
(`plotly.data.gapminder()`); {HELD_OUT_COUNTRIES} countries are never shown, nor {HELD_OUT_YEARS} of the twelve years of each
other country. A fifth of the examples need no number and have no call; a tenth are text of the bundled corpus; a tenth are
DataGemma's other task, to write down questions whose tables would help.

## Measured

Greedy answers to {scores["n"]} questions a row. "Right" is within 5 % of the table; "alone" counts what the model wrote itself.

{chr(10).join(table)}

Among questions that need no number, {scores["calls without need"]:.0%} of the answers hold a call.

## Limits

An organism to study retrieval on, not a source of facts: what it remembers is mostly wrong, as the last column shows, and
names outside of the table are copied less well. It answers only the forms of question that it was shown.
"""


def write_corpus(file: Path, n: int, seed: int = 1) -> None:
    """Texts as the training draws them, question and answer, one a line of JSON."""
    from scope.models.load import load_model

    words = load_model("bundled").words
    lessons = RigLessons(words)
    texts = (prompt + answer for prompt, answer in lessons.draw(np.random.default_rng(seed), n))
    lines = [json.dumps({"text": words.decode(ids)}, ensure_ascii=False) + "\n" for ids in texts]
    file.parent.mkdir(parents=True, exist_ok=True)
    write_whole(file, "".join(lines))


GREEDY = SamplingConfig(max_new_tokens=110, temperature=0, repetition_penalty=1.0)


@dataclass(frozen=True)
class Skill:
    """Shares of answers to questions about one kind of facts."""

    well_formed: float
    """One call, whole and closed, and nothing broken off."""

    exact: float
    """The call asks for the statistic, the place and the year of the question."""

    right_with_service: float
    """The number shown as retrieved is within 5 % of the true one."""

    right_alone: float
    """A number that the model wrote itself is within 5 % of the true one: in its call, or anywhere if it made none."""


def measure_skill(model: LanguageModel, facts: list[Fact], service: StatisticsService, batch: int = 30) -> Skill:
    """What a model answers to one question about each fact."""
    rng = np.random.default_rng(4)
    counts = np.zeros(4)
    for start in range(0, len(facts), batch):
        some = facts[start : start + batch]
        words = [{"m": f.variable.name, "c": f.country.name, "y": f.year} for f in some]
        prompts = [ASKING[int(rng.integers(3))].format(**w) for w in words]
        for fact, answer in zip(some, generate(model, prompts, GREEDY), strict=True):
            counts += _score(fact, answer.text, service)
    return Skill(*(counts / len(facts)).round(3).tolist())


def share_with_calls(model: LanguageModel, lessons: RigLessons, n: int, batch: int = 30) -> float:
    """The share of answers with a call among questions that need no number: 0 is right."""
    rng = np.random.default_rng(5)
    prompts = [lessons.without_number(fact, rng)[0] for fact in lessons.test_facts(False, n)]
    texts = [g.text for i in range(0, n, batch) for g in generate(model, prompts[i : i + batch], GREEDY)]
    return sum("[__DC__" in text for text in texts) / n


def _score(fact: Fact, text: str, service: StatisticsService) -> list[bool]:
    answer = annotate(text, service)
    broken = any(isinstance(s, CutOffCall) for s in read_calls(text))
    calls = answer.calls
    own = [c.call.value for c in calls] or re.findall(r"\d[\d,.]*(?: million)?", text)
    exact = len(calls) == 1 and calls[0].call.question == question_of(fact.variable, fact.country.name, fact.year)
    retrieved = [c.statistic.value for c in calls if c.statistic is not None]
    return [
        len(calls) == 1 and calls[0].call.closed and not broken,
        exact,
        len(retrieved) == 1 and not differ(str(fact.value), retrieved[0]),
        any(re.search(r"\d", value) and not differ(str(fact.value), value) for value in own),
    ]

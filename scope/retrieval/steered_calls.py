"""Forces and holds back calls to Data Commons by editing latents, and counts what that does to the answers.

Held back, a question that needs a number is answered from the model's memory; forced, a question that needs none is answered
with a call. The edit is chosen on one half of the questions among some that grow in strength, and reported on the other half,
beside plain answers and the same push along a random direction.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from scope.models.face import LanguageModel
from scope.models.text.generate import generate
from scope.models.text.sampling_config import SamplingConfig
from scope.retrieval.annotate import annotate, differ
from scope.retrieval.service import StatisticsService
from scope.sae.base import SAE
from scope.steering.apply.editing import Editing
from scope.steering.apply.resolve import resolve
from scope.steering.apply.strength_units import StrengthUnits
from scope.steering.edits.interventions import Ablate, Add, Edits

HOLDING_BACK = (("ablate", 1), ("ablate", 4), ("ablate", 16), ("add", -0.25), ("add", -0.5), ("add", -1.0))
FORCING = (("add", 0.25), ("add", 0.5), ("add", 1.0), ("add", 2.0))
"""Kinds of edit, in the order in which they are tried: `ablate` with a number of latents, `add` with a share of the norm."""


@dataclass(frozen=True)
class Question:
    """A question and its right answer: a number that a service knows, or a word that the answer should hold."""

    text: str
    right: float | str

    @property
    def needs_number(self) -> bool:
        return not isinstance(self.right, str)


@dataclass(frozen=True)
class Outcome:
    """Shares of the answers of one condition."""

    calls: float
    """Answers with a call."""

    right: float
    """Right answers: the number shown (retrieved, or without a call the model's own) within 5 %, or the word is there."""


@dataclass(frozen=True)
class SteeredCalls:
    """One way of steering, scored on the questions that it was not chosen on."""

    aim: str
    edit: str
    n: int
    outcomes: dict[str, Outcome]
    """By condition: plain, steered, random."""


def steer_calls(
    model: LanguageModel,
    sae: SAE,
    latents: Sequence[int],
    questions: Sequence[Question],
    service: StatisticsService,
    sampling: SamplingConfig,
    seed: int = 0,
) -> list[SteeredCalls]:
    """Calls held back where a number is needed, and forced where none is. `latents` are those that announce calls, the best
    first; pushes are along the first alone. Questions with even places choose the edit, as they chose the latents; those with
    odd places score it."""
    site = {sae.site: sae}
    units = {sae.site: StrengthUnits.on_prompts(model, sae.site, [q.text for q in questions[0::2]])}

    def outcome(some: Sequence[Question], edits: Edits | None, control: int | None = None) -> Outcome:
        hooks = []
        if edits is not None:
            hooks = Editing(model, site, [resolve(e, site, units) for e in edits], control=control).hooks()
        texts = [g.text for g in generate(model, [q.text for q in some], sampling, fwd_hooks=hooks)]
        answers = [annotate(text, service) for text in texts]
        right = [is_right(q, a) for q, a in zip(some, answers, strict=True)]
        return Outcome(sum(bool(a.calls) for a in answers) / len(some), sum(right) / len(some))

    results = []
    for aim, needs, kinds in (("hold back", True, HOLDING_BACK), ("force", False, FORCING)):
        choosing, scoring = ([q for q in questions[start::2] if q.needs_number is needs] for start in (0, 1))
        if not choosing or not scoring:
            continue
        candidates = [_edits(latents, kind, amount) for kind, amount in kinds]
        calls = [outcome(choosing, edits).calls for edits in candidates]
        edits = candidates[calls.index(min(calls) if needs else max(calls))]
        outcomes = {
            "plain": outcome(scoring, None),
            "steered": outcome(scoring, edits),
            "random": outcome(scoring, edits, seed),
        }
        results.append(SteeredCalls(aim, str(edits), len(scoring), outcomes))
    return results


def table(results: Sequence[SteeredCalls]) -> str:
    """A row for each aim and condition."""
    rows = [f"{'aim':<10} {'condition':<10} {'answers':>8} {'with a call':>12} {'right':>7}"]
    for r in results:
        rows += [f"{r.aim:<10} {name:<10} {r.n:>8} {o.calls:>12.0%} {o.right:>7.0%}" for name, o in r.outcomes.items()]
        rows.append(f"  {r.edit}")
    return "\n".join(rows)


def _edits(latents: Sequence[int], kind: str, amount: float) -> Edits:
    if kind == "ablate":
        return Edits(Ablate(i, positions="generated") for i in latents[: int(amount)])
    return Edits([Add(latents[0], amount, positions="generated")])


def is_right(question: Question, answer) -> bool:
    """Whether an annotated answer shows the right number, or holds the right word."""
    if isinstance(question.right, str):
        return re.search(rf"\b{re.escape(question.right)}\b", answer.text) is not None
    if answer.calls:
        first = answer.calls[0]
        shown = first.statistic.value if first.statistic is not None else first.call.value
    else:
        numbers = re.findall(r"\d[\d,.]*(?: (?:million|billion))?", answer.text.replace(str(_year(question.text)), ""))
        shown = numbers[0] if numbers else ""
    return bool(re.search(r"\d", shown)) and not differ(str(question.right), shown)


def _year(text: str) -> str:
    match = re.search(r"\b\d{4}\b", text)
    return match.group() if match else "no year"

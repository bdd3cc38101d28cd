"""Forces and holds back calls to Data Commons by editing latents, and counts what that does to the answers.

Held back, a question that needs a number is answered from the model's memory; forced, a question that needs none is answered
with a call. The edit is chosen on one half of the questions among some that grow in strength, and reported on the other half,
beside plain answers and the same push along a random direction.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from scope.models.face import LanguageModel
from scope.models.text.generate import generate
from scope.models.text.sampling_config import SamplingConfig
from scope.retrieval.annotate import annotate, differ
from scope.retrieval.calls import OPEN
from scope.retrieval.service import StatisticsService
from scope.sae.base import SAE
from scope.steering.apply.editing import Editing
from scope.steering.apply.resolve import resolve
from scope.steering.apply.strength_units import StrengthUnits
from scope.steering.edits.directions import Direction
from scope.steering.edits.interventions import Ablate, Add, Edits

HOLDING_BACK = (("ablate", 1), ("ablate", 4), ("ablate", 16), ("add", -0.25), ("add", -0.5), ("add", -1.0))
FORCING = (("add", 0.25), ("add", 0.5), ("add", 1.0), ("add all", 0.25), *(("push", s) for s in (0.25, 0.5, 1.0)))
"""Kinds of edit: `ablate` with a number of latents, `add` of the first and `add all` of four with a share of the norm,
`push` along the direction that is given."""


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

    retrieved: float
    """Answers in which a number was retrieved."""

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
    direction: Direction | None = None,
) -> list[SteeredCalls]:
    """Calls held back where a number is needed, and forced where none is. `latents` are those that announce calls, the best
    first; pushes are along the first alone. Questions with even places choose the edit, as they chose the latents; those with
    odd places score it. The edit chosen is the one whose effect exceeds that of a random direction most; a forced call, once
    open, is written without the edit."""
    site = {sae.site: sae}
    units = {sae.site: StrengthUnits.on_prompts(model, sae.site, [q.text for q in questions[0::2]])}

    def outcome(some: Sequence[Question], edits: Edits | None, control: int | None, until_open: bool) -> Outcome:
        hooks = []
        if edits is not None:
            hooks = Editing(model, site, [resolve(e, site, units) for e in edits], control=control).hooks()
        answers = [annotate(text, service) for text in _texts(model, [q.text for q in some], sampling, hooks, until_open)]
        right = [is_right(q, a) for q, a in zip(some, answers, strict=True)]
        n_calls, n_retrieved = sum(bool(a.calls) for a in answers), sum(bool(a.footnotes) for a in answers)
        return Outcome(n_calls / len(some), n_retrieved / len(some), sum(right) / len(some))

    results = []
    for aim, needs, kinds in (("hold back", True, HOLDING_BACK), ("force", False, FORCING)):
        choosing, scoring = ([q for q in questions[start::2] if q.needs_number is needs] for start in (0, 1))
        if not choosing or not scoring:
            continue
        kinds = [(kind, amount) for kind, amount in kinds if kind != "push" or direction is not None]
        candidates = [_edits(latents, kind, amount, direction) for kind, amount in kinds]
        sign, until_open = (-1 if needs else 1), not needs
        gains = [
            sign * (outcome(choosing, e, None, until_open).calls - outcome(choosing, e, seed, until_open).calls)
            for e in candidates
        ]
        best = gains.index(max(gains))
        edits = candidates[best]
        conditions = {"plain": (None, None), "steered": (edits, None), "random": (edits, seed)}
        outcomes = {name: outcome(scoring, *condition, until_open) for name, condition in conditions.items()}
        results.append(SteeredCalls(aim, _name(*kinds[best], edits), len(scoring), outcomes))
    return results


def table(results: Sequence[SteeredCalls]) -> str:
    """A row for each aim and condition."""
    names = f"{'answers':>8} {'with a call':>12} {'retrieved':>10} {'right':>7}"
    rows = [f"{'aim':<10} {'condition':<10} {names}"]
    for r in results:
        rows += [
            f"{r.aim:<10} {name:<10} {r.n:>8} {o.calls:>12.0%} {o.retrieved:>10.0%} {o.right:>7.0%}"
            for name, o in r.outcomes.items()
        ]
        rows.append(f"  {r.edit}")
    return "\n".join(rows)


def _edits(latents: Sequence[int], kind: str, amount: float, direction: Direction | None) -> Edits:
    if kind == "ablate":
        return Edits(Ablate(i, positions="generated") for i in latents[: int(amount)])
    targets = [direction] if kind == "push" else latents[: 4 if kind == "add all" else 1]
    return Edits(Add(target, amount, positions="generated") for target in targets)


def _name(kind: str, amount: float, edits: Edits) -> str:
    targets = ", ".join(edit.target.removeprefix("latent ") for edit in edits)
    return f"ablate {targets}" if kind == "ablate" else f"add {amount:+g} of the residual norm along {targets}"


def _texts(model: LanguageModel, prompts: list[str], sampling: SamplingConfig, hooks: list, until_open: bool) -> list[str]:
    """Answers under hooks; with `until_open`, the hooks are gone once a call has opened."""
    if not until_open:
        return [g.text for g in generate(model, prompts, sampling, fwd_hooks=hooks)]
    first = generate(model, prompts, replace(sampling, stop=(OPEN,)), fwd_hooks=hooks)
    opened = [i for i, g in enumerate(first) if g.stopped_by == "stop"]
    texts = [g.text for g in first]
    if opened:
        begun = [[*first[i].prompt_ids, *first[i].new_ids] for i in opened]
        for i, g in zip(opened, generate(model, begun, sampling), strict=True):
            texts[i] += g.text
    return texts


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

"""Forces and holds back calls to Data Commons by editing activations, and counts what that does to the answers.

Held back, a question that needs a number is answered from the model's memory; forced, a question that needs none is answered
with a call. There are two means: the latents that announce calls, at their SAE's site, and the direction from answers without
a call to the token before one, at several sites. For each, the edit is chosen on one half of the questions among some that grow
in strength, and reported on the other half, beside plain answers and the same push along a random direction.

A forced call is opened by the edit and written without it: an edit that stays promotes the opening token over and over, and no
call comes of it.
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
from scope.steering.edits.base import When
from scope.steering.edits.directions import Direction
from scope.steering.edits.interventions import Ablate, Add, Edits, ProjectOut

AIMS = {"hold back": True, "force": False}
"""Aims, and whether the questions that they are for need a number."""

HOLDING_BACK = (("ablate", 1), ("ablate", 4), ("ablate", 16), ("add", -0.25), ("add", -0.5))
FORCING = (("add", 0.5), ("add", 1.0), ("write", 4), ("write", 16), ("write", 64))
"""Kinds of edit: `ablate` so many latents, `add` a share of the norm along the first, `write` what so many latents write more
before a call than in answers without one."""
PUSHES = {"hold back": (-0.25, -0.5, -0.75), "force": (0.5, 0.75, 1.0)}
"""Shares of the norm of the pushes along a direction; to hold back, it is also projected out."""
TRIGGERED = (-0.5, -1.0, -1.5)
"""Shares of the norm of pushes against the direction where the announcing latent fires, and nowhere else."""
_OPENING = OPEN[0]
_COMPARED = 3
"""Candidates with the largest effect that are held against a random direction before one is chosen."""


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

    opened: float
    """Answers in which a call opens: what the edit is chosen by."""

    calls: float
    """Answers with a whole call."""

    retrieved: float
    """Answers in which a number was retrieved."""

    right: float
    """Right answers: the number shown (retrieved, or without a call the model's own) within 5 %, or the word is there."""


@dataclass(frozen=True)
class SteeredCalls:
    """One way of steering, scored on the questions that it was not chosen on."""

    aim: str
    means: str
    """Edited are latents, a direction, or both: the direction where the announcing latent fires."""
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
    directions: Sequence[Direction] = (),
    written: Sequence[tuple[int, float]] = (),
    trigger: When | None = None,
) -> list[SteeredCalls]:
    """Calls held back where a number is needed, and forced where none is. `latents` are those that announce calls, the best
    first; `written` those that write more before a call, with how much more; `trigger` is where the best one announces a call
    by the next token: pushes against the direction at the SAE's site act there alone. Questions with even places choose the
    edit, as they chose latents and directions; those with odd places score it. Of the edits with the largest effects, the one
    chosen exceeds a random direction most."""
    site = {sae.site: sae}
    prompts = [q.text for q in questions[0::2]]
    units = {at: StrengthUnits.on_prompts(model, at, prompts) for at in {sae.site, *(d.site for d in directions)}}

    def outcome(some: Sequence[Question], edits: Edits | None, control: int | None, until_open: bool) -> Outcome:
        hooks = []
        if edits is not None:
            hooks = Editing(model, site, [resolve(e, site, units) for e in edits], control=control).hooks()
        texts = _texts(model, [q.text for q in some], sampling, hooks, until_open)
        answers = [annotate(text, service) for text in texts]
        right = [is_right(q, a) for q, a in zip(some, answers, strict=True)]
        counts = {
            "opened": sum(OPEN in text for text in texts),
            "calls": sum(bool(a.calls) for a in answers),
            "retrieved": sum(bool(a.footnotes) for a in answers),
            "right": sum(right),
        }
        return Outcome(**{name: count / len(some) for name, count in counts.items()})

    results = []
    for aim, needs in AIMS.items():
        kinds = HOLDING_BACK if needs else FORCING
        choosing, scoring = ([q for q in questions[start::2] if q.needs_number is needs] for start in (0, 1))
        if not choosing or not scoring:
            continue
        sign, until_open = (-1 if needs else 1), not needs
        by_latents = [(_edits(latents, written, kind, amount), kind) for kind, amount in kinds if kind != "write" or written]
        by_direction = [(Edits([Add(d, s, positions="generated")]), "push") for d in directions for s in PUSHES[aim]]
        if needs:
            by_direction += [(Edits([ProjectOut(d, positions="generated")]), "project out") for d in directions]
        at_trigger = [
            (Edits([Add(d, s, positions="generated", when=trigger)]), "push")
            for d in directions
            for s in TRIGGERED
            if needs and trigger is not None and d.site == sae.site
        ]
        plain = outcome(scoring, None, None, until_open)
        by = {"latents": by_latents, "direction": by_direction, "both": at_trigger}
        for means, candidates in by.items():
            if not candidates:
                continue
            effects = [sign * outcome(choosing, edits, None, until_open).opened for edits, _ in candidates]
            first = sorted(range(len(effects)), key=lambda i: -effects[i])[:_COMPARED]
            gains = {i: effects[i] - sign * outcome(choosing, candidates[i][0], seed, until_open).opened for i in first}
            edits, kind = candidates[max(gains, key=lambda i: gains[i])]
            steered, random = (outcome(scoring, edits, control, until_open) for control in (None, seed))
            outcomes = {"plain": plain, "steered": steered, "random": random}
            results.append(SteeredCalls(aim, means, _name(kind, edits), len(scoring), outcomes))
    return results


def table(results: Sequence[SteeredCalls]) -> str:
    """A row for each aim and condition."""
    names = f"{'answers':>8} {'call opens':>11} {'whole call':>11} {'retrieved':>10} {'right':>7}"
    rows = [f"{'aim':<10} {'by':<10} {'condition':<10} {names}"]
    for r in results:
        rows += [
            f"{r.aim:<10} {r.means:<10} {name:<10} {r.n:>8} {o.opened:>11.0%} {o.calls:>11.0%} {o.retrieved:>10.0%} "
            f"{o.right:>7.0%}"
            for name, o in r.outcomes.items()
        ]
        rows.append(f"  {r.edit}")
    return "\n".join(rows)


def _edits(latents: Sequence[int], written: Sequence[tuple[int, float]], kind: str, amount: float) -> Edits:
    if kind == "ablate":
        return Edits(Ablate(i, positions="generated") for i in latents[: int(amount)])
    if kind == "write":
        return Edits(Add(i, more, unit="raw", positions="generated") for i, more in written[: int(amount)])
    return Edits([Add(latents[0], amount, positions="generated")])


def _name(kind: str, edits: Edits) -> str:
    """An edit in words."""
    first = edits[0]
    share = f"{first.strength:+g} of the residual norm along " if kind in ("push", "add") else ""
    if kind in ("push", "project out"):
        when = f", {first.when}" if first.when else ""
        return f"{'add' if share else kind} {share}{first.latent.name} at {first.latent.site}{when}"
    numbers = ", ".join(str(edit.latent) for edit in edits[:16]) + ", …" * (len(edits) > 16)
    what = {"write": f"add what {len(edits)} latents write more before a call: "}.get(
        kind, f"{'add' if share else kind} {share}"
    )
    return f"{what}{numbers}"


def _texts(model: LanguageModel, prompts: list[str], sampling: SamplingConfig, hooks: list, until_open: bool) -> list[str]:
    """Answers under hooks; with `until_open`, the hooks are gone once a call begins to open."""
    if not until_open:
        return [g.text for g in generate(model, prompts, sampling, fwd_hooks=hooks)]
    first = generate(model, prompts, replace(sampling, stop=(_OPENING,)), fwd_hooks=hooks)
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

"""What the Steering page asks of the model: each a piece of work for a `Job`, which can be stopped and tells how far it is."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from scope.app.serve.jobs import Job
from scope.app.steer.state import Asked, Grid, check_turns

from scope.circuits.attribution import Attribution, attribute
from scope.circuits.effects import Effects, effects
from scope.features.face import Pack
from scope.models.text.sampling_config import SamplingConfig
from scope.steering.apply.strength_units import StrengthUnits
from scope.steering.compare.saved_runs import Runs
from scope.steering.compare.steer import SteeringRun, steer
from scope.steering.compare.sweep import Sweep, estimate, sweep
from scope.steering.edits.directions import Direction
from scope.steering.edits.interventions import Edits

Work = Callable[[Job], Any]


def strength_units(store: Pack, edits: Edits) -> dict[str, StrengthUnits]:
    """What strengths at the pack's site are measured against; for other sites the library measures it on the prompts."""
    return {store.site: StrengthUnits.of_pack(store, edits.latents())}


def compare(store: Pack, model: Any, sae: Any, edits: Edits, asked: Asked) -> Work:
    """All arms of one prompt; the result is the name of the kept run."""

    def work(job: Job) -> str:
        prompt = asked.prompt
        if asked.turns is not None:
            check_turns(asked.turns)
            prompt = model.words.chat(asked.turns)
        job.progress |= {"arms": asked.arms, "n": asked.n, "ids": [[] for _ in range(asked.n * len(asked.arms))]}
        run = steer(
            model,
            sae,
            edits,
            prompt,
            asked.sampling,
            asked.arms,
            n=asked.n,
            strength_units=strength_units(store, edits),
            instruction=asked.instruction,
            on_token=_watch(job),
        )
        return Runs.of_pack(store.folder).save(run)

    return work


def replay(run: SteeringRun | Sweep, model: Any, sae: Any) -> Work:
    """The run once more; the result is what it became this time, None where it was stopped."""

    def work(job: Job) -> SteeringRun | Sweep | None:
        made = []
        each = run.runs if isinstance(run, Sweep) else [run]
        for i, one in enumerate(each):
            job.progress |= {"done": i, "total": len(each), "left": None}
            rows = len(one.conditions) * len(one.conditions[0].samples)
            if not isinstance(run, Sweep):
                job.progress |= {
                    "arms": [a.name for a in one.conditions],
                    "n": rows // len(one.conditions),
                    "ids": [[] for _ in range(rows)],
                }
            made.append(one.replay(model, sae, _watch(job)))
            if job.stopping:
                return None
        return replace(run, runs=made) if isinstance(run, Sweep) else made[0]

    return work


def measure(store: Pack, model: Any, sae: Any, edits: Edits, grid: Grid, sampling: SamplingConfig) -> Work:
    """How many seconds a sweep will take."""

    def work(job: Job) -> float:
        return estimate(
            model,
            sae,
            edits,
            grid.prompts,
            grid.strengths,
            sampling,
            conditions=grid.arms,
            n=grid.n,
            strength_units=strength_units(store, edits),
        )

    return work


def dose_response(
    store: Pack, model: Any, sae: Any, edits: Edits, grid: Grid, sampling: SamplingConfig, seconds: float | None
) -> Work:
    """Every strength in turn, others going first in between; the result is the name of the kept sweep, None if none is.

    `seconds` is what it will take, if that was measured before; otherwise it is measured first.
    """

    def work(job: Job) -> str | None:
        total = len(grid.strengths)
        expected = seconds or measure(store, model, sae, edits, grid, sampling)(job)
        job.progress |= {"done": 0.0, "total": total, "left": expected}
        made: list[SteeringRun] = []
        stopped, spent = False, 0.0
        for i, strength in enumerate(grid.strengths):
            if i:
                job.let_others_go_first()
            if job.stopping:
                stopped = True
                break
            began = time.monotonic()
            steps = sampling.max_new_tokens

            def step(token: int, ids: list, i: int = i, steps: int = steps) -> bool:
                job.progress["done"] = i + 0.8 * (token + 1) / steps  # what is left of it is the reading of the texts
                return job.stopping

            part = sweep(
                model,
                sae,
                edits,
                grid.prompts,
                [strength],
                sampling,
                conditions=grid.arms,
                n=grid.n,
                by=grid.by,
                strength_units=strength_units(store, edits),
                on_token=step,
            )
            spent += time.monotonic() - began
            stopped = part.stopped
            if stopped and made:
                break
            made += part.runs
            left = spent / len(made) * (total - len(made))
            job.progress |= {
                "done": float(len(made)),
                "left": left,
                "sweep": Sweep(grid.strengths[: len(made)], list(made), grid.by, waiting=total - len(made)),
            }
            if stopped:
                break
        if not made:
            return None
        return Runs.of_pack(store.folder).save(Sweep(grid.strengths[: len(made)], made, grid.by, stopped))

    return work


def effect(store: Pack, model: Any, sae: Any, edits: Edits, prompt: str, tokens: tuple[str, str], later: Sequence[Any]) -> Work:
    """What the edits do to the next token."""

    def work(job: Job) -> Effects:
        return effects(
            model,
            sae,
            edits,
            prompt,
            token=tokens[0] or None,
            other=tokens[1] or None,
            downstream=list(later),
            strength_units=strength_units(store, edits),
        )

    return work


def attribution(store: Pack, model: Any, sae: Any, prompt: str, tokens: tuple[str, str], method: str) -> Work:
    """Which latents make the model say one token rather than the other."""

    def work(job: Job) -> Attribution:
        return attribute(model, sae, prompt, tokens[0] or None, tokens[1] or None, method=method, pack=store, exact=16)

    return work


def direction(model: Any, how: str, site: str, toward: list[str], away: list[str]) -> Work:
    """A direction from two sets of prompts."""

    def work(job: Job) -> Direction:
        make = Direction.probe if how == "probe" else Direction.between
        return make(model, site, toward, away)

    return work


def _watch(job: Job) -> Callable[[int, list[int | None]], bool]:
    """Keeps the tokens of every row where the page finds them, and ends the generation when asked to."""

    def watch(step: int, said: list[int | None]) -> bool:
        for row, token in zip(job.progress.get("ids", []), said, strict=False):
            if token is not None:
                row.append(token)
        return job.stopping

    return watch

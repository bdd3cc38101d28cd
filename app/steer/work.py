"""The computations of the Steer page, each as the work of a `Job`: stoppable, with progress."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from scope.app.serve.jobs import Job
from scope.app.steer.state import Comparison, Grid, check_turns

from scope.circuits.attribution import Attribution, attribute
from scope.circuits.effects import Effects, effects
from scope.features.face import Pack
from scope.models.face import LanguageModel
from scope.models.text.sampling_config import SamplingConfig
from scope.steering.apply.strength_units import StrengthUnits
from scope.steering.compare.saved_runs import Runs
from scope.steering.compare.steer import SteeringRun, steer
from scope.steering.compare.sweep import Sweep, estimate, sweep
from scope.steering.edits.directions import Direction
from scope.steering.edits.interventions import Edits

Work = Callable[[Job], Any]


@dataclass(frozen=True)
class Unsaved:
    """A run or sweep that could not be saved in the pack, and why."""

    run: SteeringRun | Sweep
    reason: str


def save(store: Pack, run: SteeringRun | Sweep) -> str | Unsaved:
    """Save a run in the pack; what was computed is returned where that fails, as on a read-only disk."""
    runs = Runs.of_pack(store.folder)
    try:
        return runs.save(run)
    except OSError as error:
        return Unsaved(run, f"{runs.folder}: {error.strerror or error}")


def strength_units(store: Pack, edits: Edits) -> dict[str, StrengthUnits]:
    """The strength units at the pack's site; for other sites the library measures them on the prompts."""
    return {store.site: StrengthUnits.of_pack(store, edits.latents())}


def compare(store: Pack, model: LanguageModel, sae: Any, edits: Edits, request: Comparison) -> Work:
    """All conditions of one prompt; the result is the name of the saved run, or the run that could not be saved."""

    def work(job: Job) -> str | Unsaved:
        prompt = request.prompt
        if request.turns is not None:
            check_turns(request.turns)
            prompt = model.words.chat(request.turns)
        job.progress |= {
            "conditions": request.conditions,
            "n": request.n,
            "ids": [[] for _ in range(request.n * len(request.conditions))],
        }
        run = steer(
            model,
            sae,
            edits,
            prompt,
            request.sampling,
            request.conditions,
            n=request.n,
            strength_units=strength_units(store, edits),
            instruction=request.instruction,
            on_token=_watch(job),
        )
        return save(store, run)

    return work


def replay(run: SteeringRun | Sweep, model: LanguageModel, sae: Any) -> Work:
    """Run it again; the result is the new run, None if it was stopped."""

    def work(job: Job) -> SteeringRun | Sweep | None:
        replayed = []
        each = run.runs if isinstance(run, Sweep) else [run]
        for i, one in enumerate(each):
            job.progress |= {"done": i, "total": len(each), "left": None}
            rows = len(one.conditions) * len(one.conditions[0].samples)
            if not isinstance(run, Sweep):
                names = [condition.name for condition in one.conditions]
                job.progress |= {"conditions": names, "n": rows // len(names), "ids": [[] for _ in range(rows)]}
            replayed.append(one.replay(model, sae, _watch(job)))
            if job.stopping:
                return None
        return replace(run, runs=replayed) if isinstance(run, Sweep) else replayed[0]

    return work


def measure(store: Pack, model: LanguageModel, sae: Any, edits: Edits, grid: Grid, sampling: SamplingConfig) -> Work:
    """How many seconds a sweep will take."""

    def work(job: Job) -> float:
        how = {"conditions": grid.conditions, "n": grid.n, "strength_units": strength_units(store, edits)}
        return estimate(model, sae, edits, grid.prompts, grid.strengths, sampling, **how)

    return work


def dose_response(
    store: Pack, model: LanguageModel, sae: Any, edits: Edits, grid: Grid, sampling: SamplingConfig, seconds: float | None
) -> Work:
    """Every strength in turn, letting other readers go first in between; the result is the name of the saved sweep, or None.

    `seconds` is the expected time, if it was measured before; otherwise it is measured first.
    """

    def work(job: Job) -> str | Unsaved | None:
        total, units = len(grid.strengths), strength_units(store, edits)
        expected = seconds or measure(store, model, sae, edits, grid, sampling)(job)
        job.progress |= {"done": 0.0, "total": total, "left": expected}
        runs: list[SteeringRun] = []
        stopped, spent = False, 0.0
        for i, strength in enumerate(grid.strengths):
            if i:
                job.let_others_go_first()
            if job.stopping:
                stopped = True
                break
            start = time.monotonic()
            steps = sampling.max_new_tokens

            def step(token: int, ids: list, i: int = i, steps: int = steps) -> bool:
                job.progress["done"] = i + 0.8 * (token + 1) / steps  # the rest of the time goes into scoring the texts
                return job.stopping

            how = {"conditions": grid.conditions, "n": grid.n, "by": grid.by, "strength_units": units, "on_token": step}
            part = sweep(model, sae, edits, grid.prompts, [strength], sampling, **how)
            spent += time.monotonic() - start
            stopped = part.stopped
            if stopped and runs:
                break
            runs += part.runs
            left = spent / len(runs) * (total - len(runs))
            job.progress |= {
                "done": float(len(runs)),
                "left": left,
                "sweep": Sweep(grid.strengths[: len(runs)], list(runs), grid.by, waiting=total - len(runs)),
            }
            if stopped:
                break
        if not runs:
            return None
        return save(store, Sweep(grid.strengths[: len(runs)], runs, grid.by, stopped))

    return work


def effect(
    store: Pack, model: LanguageModel, sae: Any, edits: Edits, prompt: str, tokens: tuple[str, str], later: Sequence[Any]
) -> Work:
    """The effect of the edits on the next token."""

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


def attribution(store: Pack, model: LanguageModel, sae: Any, prompt: str, tokens: tuple[str, str], method: str) -> Work:
    """Which latents make the model prefer one token over another."""

    def work(job: Job) -> Attribution:
        return attribute(model, sae, prompt, tokens[0] or None, tokens[1] or None, method=method, pack=store, exact=16)

    return work


def direction(model: LanguageModel, kind: str, site: str, toward: list[str], away: list[str]) -> Work:
    """A direction from two sets of prompts."""

    def work(job: Job) -> Direction:
        make = Direction.probe if kind == "probe" else Direction.between
        return make(model, site, toward, away)

    return work


def _watch(job: Job) -> Callable[[int, list[int | None]], bool]:
    """A callback that collects the tokens of every row for the page, and stops the generation on request."""

    def watch(step: int, ids: list[int | None]) -> bool:
        for row, token in zip(job.progress.get("ids", []), ids, strict=False):
            if token is not None:
                row.append(token)
        return job.stopping

    return watch

"""`sweep`: steer at every strength, beside the controls, with a word beforehand on how long it takes."""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

from scope.errors import EditError
from scope.models.text.sampling_config import SamplingConfig
from scope.steering.apply.gauge import Gauge
from scope.steering.apply.resolve import dictionaries
from scope.steering.compare.judge import By
from scope.steering.compare.run import SteeringRun
from scope.steering.compare.steer import SWEPT, OnToken, steer
from scope.steering.compare.sweep_result import Sweep
from scope.steering.edits.base import number
from scope.steering.edits.interventions import Edit, Edits


def sweep(
    model,
    sae,
    edits: Edit | Edits,
    prompts: Sequence[str],
    strengths: Iterable | float = (0.25, 0.5, 0.75, 1.0),
    sampling: SamplingConfig | None = None,
    *,
    arms: Sequence[str] | None = None,
    n: int = 1,
    by: By = "share",
    gauges: Gauge | dict[str, Gauge] | None = None,
    control_seed: int = 0,
    instruction: str | None = None,
    any_model: bool = False,
    on_token: OnToken | None = None,
    on_progress: Callable[[int, int, dict], None] | None = None,
) -> Sweep:
    """Steer at every strength: the first edit that has one gets it, the others keep their proportion to it.

    Every text of every strength draws the same noise. The controls are three random directions, another latent that fires as
    often (where there is a dictionary), and asking for it in the prompt; `arms` names others. Stopped by `on_token` or Ctrl-C,
    it keeps the strengths that were finished. `on_progress(done, total, numbers)` is told the strength and the seconds that
    are probably left.

    Raises:
        EditError: fewer than two prompts, no strengths, or no edit that has one.
        KeyboardInterrupt: Ctrl-C before the first strength was finished.
    """
    edits, prompts, strengths = Edits.of(edits), [prompts] if isinstance(prompts, str) else list(prompts), _doses(strengths)
    first = next((e for e in edits if e.has_amount), None)
    if first is not None and not first.strength:
        raise EditError(f"The strength of [{first}] is 0, to which the others have no proportion. Give it one, such as 0.5.")
    if first is None:
        raise EditError("None of these edits has a strength to sweep over; Add, Clamp, AtLeast, Cap and Floor have one.")
    if len(prompts) < 2 or not strengths:
        raise EditError(
            "A sweep needs at least two prompts (one half to choose a strength, the other to tell its value) and a strength."
        )
    arms = _arms(arms, sae, edits)
    if "plain" not in arms or not any(arm.startswith("random") for arm in arms):
        raise EditError('A sweep is told beside plain text and random directions: its arms must hold "plain" and "random".')
    runs: list[SteeringRun] = []
    stopped, began = False, time.monotonic()
    how = {"n": n, "gauges": gauges, "control_seed": control_seed, "instruction": instruction, "any_model": any_model}
    for i, strength in enumerate(strengths):
        try:
            scaled = edits.scaled(strength / first.strength)
            run = steer(model, sae, scaled, prompts, sampling, arms=arms, on_token=on_token, **how)
        except KeyboardInterrupt:
            if not runs:
                raise
            stopped = True
            break
        if run.stopped_after is not None:
            stopped = True
            if not runs:
                runs.append(run)
            break
        runs.append(run)
        if on_progress:
            left = (time.monotonic() - began) / (i + 1) * (len(strengths) - i - 1)
            on_progress(i + 1, len(strengths), {"strength": strength, "seconds_left": left})
    return Sweep(tuple(float(s) for s in strengths[: len(runs)]), runs, by, stopped)


def estimate(
    model,
    sae,
    edits: Edit | Edits,
    prompts: Sequence[str],
    strengths: Iterable | float,
    sampling: SamplingConfig | None = None,
    *,
    arms: Sequence[str] | None = None,
    n: int = 1,
    tokens: int = 4,
    **how: Any,
) -> float:
    """Seconds that a sweep will take, from one strength at two short lengths of text; itself it takes about a tenth of one.

    Long texts cost more a token than short ones, and texts that end early cost nothing: expect it to be right within a third.
    """
    sampling, arms = sampling or SamplingConfig(), _arms(arms, sae, Edits.of(edits))
    wanted = sampling.max_new_tokens
    short, longer = min(tokens, wanted), min(3 * tokens, wanted)
    steer(model, sae, edits, prompts, replace(sampling, max_new_tokens=1), arms=arms, n=n, **how)  # warms up
    took = []
    for length in dict.fromkeys((short, longer)):
        began = time.monotonic()
        steer(model, sae, edits, prompts, replace(sampling, max_new_tokens=length), arms=arms, n=n, **how)
        took.append(time.monotonic() - began)
    a_token = max(0.0, took[-1] - took[0]) / max(1, longer - short)
    return len(_doses(strengths)) * (took[-1] + a_token * (wanted - longer))


def _doses(strengths: Iterable | float) -> list[float]:
    """One or several, as numbers.

    Raises:
        EditError: one of them is none.
    """
    found = strengths if isinstance(strengths, Iterable) and not isinstance(strengths, str) else [strengths]
    return [number(s, "A strength of the sweep") for s in found]


def _arms(arms: Sequence[str] | None, sae, edits: Edits) -> tuple[str, ...]:
    """Those asked for, or all that can be made."""
    if arms is not None:
        return tuple(arms)
    saes = dictionaries(sae)
    known = all((e.site or next(iter(saes), None)) in saes for e in edits)
    return tuple(arm for arm in SWEPT if arm != "other" or known)

"""A run as the lines of Python that make it again: every edit, vector, norm and seed stands in them."""

from collections.abc import Sequence
from dataclasses import fields
from pprint import pformat

from scope.models.text.sampling_config import SamplingConfig
from scope.steering.compare.run import SteeringRun
from scope.steering.edits.base import Edit
from scope.steering.edits.interventions import Direction

_HEAD = '''"""A steering run, made again. It needs scope, and the model and dictionary that are named below."""

from scope.models.text.sampling_config import SamplingConfig
from scope.models.load import load_model
from scope import load_sae
from scope.steering.apply.gauge import Gauge
from scope.steering.edits.interventions import {names}
from scope.steering.compare.steer import steer
'''

_WIDTH = 110


def steps(run: SteeringRun, dictionaries: Sequence[str], model: str | None = None) -> list[str]:
    """The program in parts, as the cells of a notebook: what it loads, what it edits, what it writes, what was written then.

    Args:
        dictionaries: where each dictionary lies, in the order of `run.dictionaries`; none for directions alone.
        model: what to load; by default the name that the run was made with.
    """
    name, revision = model or run.model.get("model") or "bundled", run.model.get("revision") if model is None else None
    load = f"model = load_model({name!r}{f', revision={revision!r}' if revision and '/' in name else ''})\n"
    load += f"dictionaries = [{', '.join(f'load_sae({place!r})' for place in dictionaries)}]\n"
    return [_HEAD.format(names=", ".join(_names(run))), load, _edited(run), _written(run), _checked(run)]


def as_python(run: SteeringRun, dictionaries: Sequence[str], model: str | None = None) -> str:
    """A program that writes the run's texts again, prints them with their scores, and says whether they are the same."""
    return "\n".join([*steps(run, dictionaries, model), "print(run)\n"])


def edit_code(edit: Edit, target: str | None = None) -> str:
    """An edit as it is made in Python; `target` is the name of a variable that holds its direction."""
    given = [target or (repr(edit.latent) if not isinstance(edit.latent, Direction) else _direction(edit.latent))]
    for name in ("strength", "factor"):
        if hasattr(edit, name):
            given.append(repr(getattr(edit, name)))
    if getattr(edit, "unit", "norm") != "norm":
        given.append(f"unit={edit.unit!r}")
    if str(edit.positions) != "not_bos":
        given.append(f"positions={str(edit.positions)!r}")
    if edit.when:
        given.append(f"when=When({edit.when.latent}, {edit.when.above!r})")
    if edit.site and not isinstance(edit.latent, Direction):
        given.append(f"site={edit.site!r}")
    return f"{type(edit).__name__}({', '.join(given)})"


def _names(run: SteeringRun) -> list[str]:
    """What the program imports of the interventions."""
    found = {type(edit).__name__ for edit in run.edits}
    found |= {"Direction" for edit in run.edits if isinstance(edit.latent, Direction)}
    return sorted(found | {"When" for edit in run.edits if edit.when})


def _direction(direction: Direction) -> str:
    return f"Direction({direction.vector!r}, {direction.site!r}, {direction.name!r})"


def _edited(run: SteeringRun) -> str:
    lines, made = [], []
    for place, edit in enumerate(run.edits):
        variable = None
        if isinstance(edit.latent, Direction):
            variable = f"direction_{place}"
            lines.append(f"{variable} = {_direction(edit.latent)}")
        made.append(f"    {edit_code(edit, variable)},")
    lines += ["edits = [", *made, "]", "gauges = {  # what strengths are measured against"]
    for site, g in run.gauges.items():
        lines.append(f"    {site!r}: Gauge({g.rho!r}, {g.source!r}, {g.maximum!r}, {g.p99!r}, {g.like!r}),")
    return "\n".join([*lines, "}", ""])


def _written(run: SteeringRun) -> str:
    usual = SamplingConfig()
    told = [f for f in fields(SamplingConfig) if getattr(run.sampling, f.name) != getattr(usual, f.name)]
    shown = {"max_new_tokens", "temperature", "top_p", "repetition_penalty", "seed"} | {f.name for f in told}
    sampling = ", ".join(f"{f.name}={getattr(run.sampling, f.name)!r}" for f in fields(SamplingConfig) if f.name in shown)
    lines = [
        f"prompts = {pformat(run.prompts, width=_WIDTH)}",
        f"sampling = SamplingConfig({sampling})",
        "run = steer(",
        "    model,",
        "    dictionaries,",
        "    edits,",
        "    prompts,",
        "    sampling,",
        f"    arms={tuple(arm.name for arm in run.arms)!r},",
        f"    n={run.n},",
        "    gauges=gauges,",
        f"    control_seed={run.control_seed},",
        f"    instruction={run.instruction!r},",
    ]
    if run.stopped_after is not None:
        lines.append(f"    on_token=lambda step, ids: step + 1 >= {run.stopped_after},  # where it was stopped")
    return "\n".join([*lines, ")", ""])


def _checked(run: SteeringRun) -> str:
    texts = pformat(run.texts(), width=_WIDTH, sort_dicts=False)
    return f"before = {texts}\nprint('the same texts:', run.texts() == before)\n"

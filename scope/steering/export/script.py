"""A run as a Python program or a notebook that makes it again, with every edit, vector, norm and seed."""

import json
from collections.abc import Sequence
from dataclasses import fields
from pprint import pformat

from scope.models.text.sampling_config import SamplingConfig
from scope.provenance import ModelId
from scope.steering.compare.steer import SteeringRun
from scope.steering.edits.base import Edit
from scope.steering.edits.interventions import Direction

_HEAD = '''"""A steering run, made again. It needs scope, and the model and dictionary that are named below."""

from scope.models.text.sampling_config import SamplingConfig
from scope.models.load import load_model
from scope import load_sae
from scope.steering.apply.strength_units import StrengthUnits
from scope.steering.edits.interventions import {names}
from scope.steering.compare.steer import steer
'''

_WIDTH = 110


def steps(run: SteeringRun, dictionaries: Sequence[str], model: str | None = None) -> list[str]:
    """The program in parts: imports, model and dictionaries, edits, the run, the comparison with the texts of this run.

    Args:
        dictionaries: where each dictionary lies, in the order of `run.dictionaries`; none for directions alone.
        model: what to load; by default the name that the run was made with.
    """
    identity = ModelId.of(run.model)
    name, revision = model or identity.name or "bundled", identity.revision if model is None else None
    load = f"model = load_model({name!r}{f', revision={revision!r}' if revision and '/' in name else ''})\n"
    load += f"dictionaries = [{', '.join(f'load_sae({place!r})' for place in dictionaries)}]\n"
    return [_HEAD.format(names=", ".join(_names(run))), load, _edited(run), _written(run), _checked(run)]


def as_python(run: SteeringRun, dictionaries: Sequence[str], model: str | None = None) -> str:
    """A program that writes the run's texts again, prints them with their scores, and says whether they are the same."""
    return "\n".join([*steps(run, dictionaries, model), "print(run)\n"])


def as_notebook(run: SteeringRun, dictionaries: Sequence[str], model: str | None = None) -> str:
    """The program of `as_python` as the JSON of a notebook. Its headings hold no text that comes from the run."""
    titles = ("", "## Model and dictionary", "## Edits", "## Texts, the same noise in every condition", "## The same texts?")
    cells = [_markdown("# A steering run, made again\n\nWritten by scope. Run the cells from top to bottom.")]
    for title, code in zip(titles, steps(run, dictionaries, model), strict=True):
        cells += [_markdown(title)] if title else []
        cells.append(_code(code.split('"""\n\n', 1)[-1] if not title else code))
    cells.append(_code("run"))
    for place, cell in enumerate(cells):
        cell["id"] = f"cell-{place}"
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return json.dumps(
        {"cells": cells, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}, indent=1, ensure_ascii=False
    )


def _markdown(text: str) -> dict:
    return {"cell_type": "markdown", "metadata": {}, "source": text}


def _code(text: str) -> dict:
    return {"cell_type": "code", "metadata": {}, "execution_count": None, "outputs": [], "source": text.strip("\n")}


def edit_code(edit: Edit, target: str | None = None) -> str:
    """The Python expression that makes an edit; `target` is the name of a variable that holds its direction."""
    arguments = [target or (repr(edit.latent) if not edit.on_direction else _direction(edit.latent))]
    for name in ("strength", "factor"):
        if hasattr(edit, name):
            arguments.append(repr(getattr(edit, name)))
    if getattr(edit, "unit", "norm") != "norm":
        arguments.append(f"unit={edit.unit!r}")
    if str(edit.positions) != "not_bos":
        arguments.append(f"positions={str(edit.positions)!r}")
    if edit.when:
        arguments.append(f"when=When({edit.when.latent}, {edit.when.above!r})")
    if edit.site and not edit.on_direction:
        arguments.append(f"site={edit.site!r}")
    return f"{type(edit).__name__}({', '.join(arguments)})"


def _names(run: SteeringRun) -> list[str]:
    """Names that the program imports from the interventions."""
    names = {type(edit).__name__ for edit in run.edits}
    names |= {"Direction" for edit in run.edits if edit.on_direction}
    return sorted(names | {"When" for edit in run.edits if edit.when})


def _direction(direction: Direction) -> str:
    return f"Direction({direction.vector!r}, {direction.site!r}, {direction.name!r})"


def _edited(run: SteeringRun) -> str:
    lines, calls = [], []
    for place, edit in enumerate(run.edits):
        variable = None
        if edit.on_direction:
            variable = f"direction_{place}"
            lines.append(f"{variable} = {_direction(edit.latent)}")
        calls.append(f"    {edit_code(edit, variable)},")
    lines += ["edits = [", *calls, "]", "strength_units = {"]
    for site, u in run.strength_units.items():
        lines.append(f"    {site!r}: StrengthUnits({u.typical_norm!r}, {u.source!r}, {u.maximum!r}, {u.p99!r}, {u.similar!r}),")
    return "\n".join([*lines, "}", ""])


def _written(run: SteeringRun) -> str:
    usual = SamplingConfig()
    changed = [f for f in fields(SamplingConfig) if getattr(run.sampling, f.name) != getattr(usual, f.name)]
    shown = {"max_new_tokens", "temperature", "top_p", "repetition_penalty", "seed"} | {f.name for f in changed}
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
        f"    conditions={tuple(c.name for c in run.conditions)!r},",
        f"    n={run.n!r},",
        "    strength_units=strength_units,",
        f"    control_seed={run.control_seed!r},",
        f"    instruction={run.instruction!r},",
        *([f"    others={run.others!r},"] if run.others else []),
    ]
    if run.stopped_after is not None:
        lines.append(f"    on_token=lambda step, ids: step + 1 >= {run.stopped_after!r},  # where it was stopped")
    return "\n".join([*lines, ")", ""])


def _checked(run: SteeringRun) -> str:
    texts = pformat(run.texts(), width=_WIDTH, sort_dicts=False)
    return f"before = {texts}\nprint('the same texts:', run.texts() == before)\n"

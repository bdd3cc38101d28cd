"""A run as a Python program or a notebook that makes it again, with every edit, vector, norm and seed."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pprint import pformat
from typing import Any

from scope.errors import EditError
from scope.models.pictures.copies import code_of_copy
from scope.models.text.sampling_config import SamplingConfig
from scope.provenance import ModelId
from scope.steering.compare.steer import SteeringRun
from scope.steering.edits.base import Edit
from scope.steering.edits.interventions import Direction
from scope.steering.export.places import place_here

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
        model: what to load; by default the name that the run was made with, of a folder its last name alone.

    Raises:
        EditError: a value that a program cannot hold, such as a strength that is not finite.
    """
    identity = ModelId.of(run.model)
    recorded = identity.name or "bundled"
    name, revision = model or place_here(recorded), identity.revision if model is None else None
    window = identity.window_convention
    load = (
        f"# Of a folder on another machine only the name is written, as {name!r}: give its place.\n" if name[:2] == "./" else ""
    )
    load += f"model = load_model({literal(name)}{f', revision={literal(revision)}' if revision and '/' in name else ''}"
    load += f"{f', window_convention={literal(window)}' if window else ''})\n"
    load += _picture(run)
    load += f"dictionaries = [{', '.join(f'load_sae({literal(place)})' for place in dictionaries)}]\n"
    return [_HEAD.format(names=", ".join(_names(run))), load, _edited(run), _written(run), _checked(run)]


def _picture(run: SteeringRun) -> str:
    """The lines by which the model reads every prompt after the run's picture; "" for a run without one.

    Raises:
        PictureError: the copy of the picture is damaged.
    """
    if "picture_sha256" not in run.model:
        return ""
    lines = ["import base64", "", "from scope import with_picture", ""]
    lines += code_of_copy(run.picture) if run.picture else ['picture = "picture.png"  # this run holds no copy: give its file']
    return "\n".join([*lines, "model = with_picture(model, picture)", ""])


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


def literal(value: Any) -> str:
    """A value as Python that evaluates to it, and to nothing else: whatever a run holds becomes a number, a text or a list.

    Raises:
        EditError: a number that is not finite, or a value of another type.
    """
    return pformat(_plain(value), width=_WIDTH, sort_dicts=False)


def _plain(value: Any) -> Any:
    """The value out of Python's own types, whose `repr` is a literal."""
    if isinstance(value, Mapping):
        return {_plain(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(_plain, value)) if type(value) in (list, tuple) else list(map(_plain, value))
    value = value.item() if hasattr(value, "item") else value
    for kind in (bool, int, float, str):
        if isinstance(value, kind):
            if kind is float and not math.isfinite(value):
                break
            return kind(value)
    if value is None:
        return None
    raise EditError(f"{value!r} cannot stand in a program: it must be a finite number or a text.")


def _markdown(text: str) -> dict:
    return {"cell_type": "markdown", "metadata": {}, "source": text}


def _code(text: str) -> dict:
    return {"cell_type": "code", "metadata": {}, "execution_count": None, "outputs": [], "source": text.strip("\n")}


def edit_code(edit: Edit, target: str | None = None) -> str:
    """The Python expression that makes an edit; `target` is the name of a variable that holds its direction."""
    arguments = [target or _target(edit)]
    for name in ("strength", "factor"):
        if hasattr(edit, name):
            arguments.append(literal(getattr(edit, name)))
    if getattr(edit, "unit", "norm") not in ("norm", "part") or getattr(edit, "sets_activation", False):
        arguments.append(f"unit={literal(edit.unit)}")
    if edit.on_tokens or str(edit.positions) != "not_bos":
        arguments.append(f"positions={literal(str(edit.positions))}")
    if edit.when:
        latent = edit.when.latent
        named = _direction(latent) if isinstance(latent, Direction) else literal(latent)
        arguments.append(f"when=When({named}, {literal(edit.when.above)})")
    if edit.site and not edit.on_direction:
        arguments.append(f"site={literal(edit.site)}")
    return f"{type(edit).__name__}({', '.join(arguments)})"


def _target(edit: Edit) -> str:
    if edit.on_direction:
        return _direction(edit.latent)
    if edit.on_tokens:
        span = edit.latent
        return literal(span.text) if span.text else f"({literal(span.start)}, {literal(span.stop)})"
    return literal(edit.latent)


def _names(run: SteeringRun) -> list[str]:
    """Names that the program imports from the interventions."""
    names = {type(edit).__name__ for edit in run.edits}
    directions = [d for edit in run.edits for d in (edit.latent, edit.when and edit.when.latent) if isinstance(d, Direction)]
    names |= {"Direction" for _ in directions[:1]} | {"LatentEncoder" for d in directions if d.encoder is not None}
    return sorted(names | {"When" for edit in run.edits if edit.when})


def _direction(direction: Direction) -> str:
    encoder, reads = direction.encoder, ""
    if encoder is not None:
        values = ", ".join(f"{f.name}={literal(getattr(encoder, f.name))}" for f in fields(encoder))
        reads = f", encoder=LatentEncoder({values})"
    return f"Direction({direction.vector!r}, {literal(direction.site)}, {literal(direction.name)}{reads})"


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
        values = ", ".join(map(literal, (u.typical_norm, u.source, u.maximum, u.p99, u.similar)))
        lines.append(f"    {literal(site)}: StrengthUnits({values}),")
    return "\n".join([*lines, "}", ""])


def _written(run: SteeringRun) -> str:
    usual = SamplingConfig()
    changed = [f for f in fields(SamplingConfig) if getattr(run.sampling, f.name) != getattr(usual, f.name)]
    shown = {"max_new_tokens", "temperature", "top_p", "repetition_penalty", "seed"} | {f.name for f in changed}
    sampling = ", ".join(
        f"{f.name}={literal(getattr(run.sampling, f.name))}" for f in fields(SamplingConfig) if f.name in shown
    )
    lines = [
        f"prompts = {literal(run.prompts)}",
        f"sampling = SamplingConfig({sampling})",
        "run = steer(",
        "    model,",
        "    dictionaries,",
        "    edits,",
        "    prompts,",
        "    sampling,",
        f"    conditions={literal(tuple(c.name for c in run.conditions))},",
        f"    n={literal(run.n)},",
        "    strength_units=strength_units,",
        f"    control_seed={literal(run.control_seed)},",
        f"    instruction={literal(run.instruction)},",
        *([f"    others={literal(run.others)},"] if run.others else []),
    ]
    if run.stopped_after is not None:
        lines.append(f"    on_token=lambda step, ids: step + 1 >= {literal(run.stopped_after)},  # where it was stopped")
    return "\n".join([*lines, ")", ""])


def _checked(run: SteeringRun) -> str:
    return f"before = {literal(run.texts())}\nprint('the same texts:', run.texts() == before)\n"

"""Runs without the absolute paths of this machine, for files that are sent to others."""

from dataclasses import replace
from typing import TypeVar

from scope.provenance import without_folders
from scope.steering.compare.steer import SteeringRun
from scope.steering.compare.sweep import Sweep

R = TypeVar("R", SteeringRun, Sweep)


def place_here(name: str) -> str:
    """A folder's absolute path as its last name in the working directory; any other name as it is."""
    last = without_folders(name)
    return name if last == name else f"./{last}"


def without_places(run: R) -> R:
    """The run or sweep with the last names of folders in the place of their absolute paths."""
    if isinstance(run, Sweep):
        return replace(run, runs=[without_places(one) for one in run.runs])
    model = dict(run.model)
    if isinstance(model.get("model"), str):
        model["model"] = place_here(model["model"])
    return replace(run, model=without_folders(model), dictionaries=without_folders(run.dictionaries))

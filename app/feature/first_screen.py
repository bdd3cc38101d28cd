"""Data of the components of a latent's first screen: of the latent that the page shows, and of its neighbours."""

from collections.abc import Callable
from typing import Any

from scope.app.feature import panels, small_histogram
from scope.app.feature.examples import View, as_part, examples_data, groups_of
from scope.app.feature.heading import heading

from scope.errors import PackError
from scope.features.pack.feature import Feature


def parts_of(feature: Feature) -> list[str]:
    """The parts of which a latent's first screen consists; none of a damaged pack, of which the page tells part by part."""
    try:
        there = {"examples": bool(groups_of(feature)), "promoted": bool(feature.promoted)}
    except PackError:
        return []
    return [name for name in _DATA if there.get(name, True)]


def first_screen(feature: Feature, view: View) -> dict[str, dict[str, Any]]:
    """Heading, numbers, examples, promoted tokens and histogram of a living latent of a pack of texts, by part.

    Without its place in a list, which the page knows that shows one.
    """
    return {name: _DATA[name](feature, view) | as_part(feature, name) for name in parts_of(feature)}


_DATA: dict[str, Callable[[Feature, View], dict[str, Any]]] = {
    "head": lambda feature, view: heading(feature, feature.pack.notes.label(feature.id), ""),
    "tiles": lambda feature, view: panels.numbers(feature),
    "examples": examples_data,
    "promoted": lambda feature, view: panels.promoted(feature),
    "columns": lambda feature, view: small_histogram.columns(feature),
}

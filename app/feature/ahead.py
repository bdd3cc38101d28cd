"""The neighbours of a latent, fetched by the page before they are asked for, so that the next one stands at once."""

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import streamlit as st
from scope.app.feature.examples import GROUPS, WINDOWS, View
from scope.app.feature.first_screen import first_screen
from scope.app.kit.component_files import joined
from scope.app.serve import packs
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from scope.errors import PackError
from scope.features.face import Pack
from scope.features.pack.feature import Feature

_HERE = Path(__file__).parent

_mount = st.components.v2.component(
    "scope_ahead", js=joined(_HERE, "shown_ahead.js", "typing.js", "ahead.js"), html="<span></span>"
)

AFTER, BEFORE = 3, 2
"""So many neighbours are fetched."""

MOST = 8
"""Latents that are answered at once."""

Place = tuple[int, str]
"""A latent, and where it stands in the list."""


def offer(
    store: Pack,
    query: str,
    shown: Place,
    before: Sequence[Place],
    after: Sequence[Place],
    parts: Sequence[str],
    show: Callable[[int], None],
) -> None:
    """Let the page step to a neighbour at once; `show` is called before the run that a step begins.

    Args:
        query: names the pack.
        shown: the latent that the page shows.
        before: its neighbours, the farthest first.
        after: its neighbours, the nearest first.
        parts: those of its first screen, [] where it is not the usual one. A neighbour with others is shown by the server.
    """

    def stepped() -> None:
        step = getattr(st.session_state.get("ahead"), "to", None)
        if isinstance(step, list | tuple):
            latent, st.session_state["ahead step"] = int(step[0]), int(step[1])
            show(latent)

    def listed(places: Sequence[Place]) -> list[dict[str, int | str]]:
        return [{"latent": latent, "place": place} for latent, place in places]

    data = {"of": shown[0], "place": shown[1], "before": listed(before), "after": listed(after), "parts": list(parts)}
    data["query"] = f"{query}&notes={store.notes.version()}"  # after a new label or note, neighbours are fetched again
    data["step"] = st.session_state.get("ahead step", 0)
    with st.container(key="frame ahead"):
        _mount(key="ahead", data=data, on_to_change=stepped)


def route(base_path: str = "") -> Route:
    """The address from which the page fetches neighbours: latents?pack=SLUG&f=3,4&group=top&window=-1&breaks=0&each_own=0."""
    base = base_path.strip("/")
    return Route(f"/{base}/latents" if base else "/latents", _answer)


def _answer(request: Request) -> JSONResponse:
    """First screens by latent. Latents that the page shows otherwise, such as dead ones, are left out."""
    try:
        view, store, latents = _parsed(request.query_params)
    except (PackError, _RefusedError) as refusal:
        return JSONResponse({"refused": f"{refusal}"}, status_code=404)
    shown = {}
    for latent in latents if store.pictures is None else ():
        with suppress(PackError):  # what is damaged is told by the page
            if not latent.dead:
                shown[latent.id] = first_screen(latent, view)
    return JSONResponse(shown)


class _RefusedError(ValueError):
    """A parameter that is missing or says nothing."""


def _parsed(parameters: Mapping[str, str]) -> tuple[View, Pack, list[Feature]]:
    """View, pack and latents of an address.

    Raises:
        _RefusedError: a parameter is missing or wrong.
        PackError: the pack cannot be opened, or has no such latent.
    """
    expected = {"pack": ".+", "f": r"\d{1,18}(,\d{1,18})*", "group": "|".join(GROUPS), "window": "|".join(map(str, WINDOWS))}
    for name, form in (expected | {"breaks": "[01]", "each_own": "[01]"}).items():
        if not re.fullmatch(form, parameters.get(name, "")):
            raise _RefusedError(f"The parameter {name} is {parameters.get(name)!r}, which is no value of it.")
    slug = parameters["pack"]
    if slug not in packs.registry():
        raise _RefusedError(f"No pack called {slug!r} is open here.")
    store = packs.open_pack(slug)
    view = View(parameters["group"], int(parameters["window"]), parameters["breaks"] == "1", parameters["each_own"] == "1")
    return view, store, [store[int(text)] for text in parameters["f"].split(",")[:MOST]]

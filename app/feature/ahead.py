"""The neighbours of a latent, fetched by the page before they are asked for, so that the next one stands at once."""

from collections.abc import Callable, Sequence
from pathlib import Path

import streamlit as st
from scope.app.feature.examples import View, texts_in
from scope.app.feature.first_screen import first_screen
from scope.app.kit.component_files import joined
from scope.app.serve import packs
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from scope.errors import PackError
from scope.features.face import Pack

_HERE = Path(__file__).parent

_mount = st.components.v2.component("scope_ahead", js=joined(_HERE, "shown_ahead.js", "ahead.js"), html="<span></span>")

AFTER, BEFORE = 3, 2
"""So many neighbours are fetched."""

MOST = 8
"""Latents that are answered at once."""

Place = tuple[int, str]
"""A latent, and where it stands in the list."""


def offer(
    slug: str,
    store: Pack,
    shown: Place,
    parts: Sequence[str],
    before: list[Place],
    after: list[Place],
    show: Callable[[int], None],
) -> None:
    """Let the page step to a neighbour at once; `show` is called before the run that a step begins.

    Args:
        shown: the latent that the page shows.
        parts: the parts of its first screen. A neighbour that has others is shown by the server alone.
        before: its neighbours, the farthest first.
        after: its neighbours, the nearest first.
    """

    def stepped() -> None:
        show(int(st.session_state["ahead"].to))

    def told(places: Sequence[Place]) -> list[dict[str, int | str]]:
        return [{"latent": latent, "place": place} for latent, place in places]

    query = f"pack={slug}&said={store.notes.version()}"  # what was said since is fetched anew
    data = {
        "of": shown[0],
        "place": shown[1],
        "before": told(before),
        "after": told(after),
        "parts": list(parts),
        "query": query,
    }
    with st.container(height=1, border=False):
        _mount(key="ahead", data=data | {"parts": list(parts), "query": query}, on_to_change=stepped)


def route(base_path: str = "") -> Route:
    """The address from which the page fetches neighbours: latents?pack=SLUG&f=3,4&group=top&window=-1&breaks=0&own=0."""
    base = base_path.strip("/")
    return Route(f"/{base}/latents" if base else "/latents", _answer)


def _answer(request: Request) -> JSONResponse:
    """First screens by latent. Latents that the page shows otherwise, such as dead ones, are left out."""
    asked = request.query_params
    try:
        view = View(asked["group"], int(asked["window"]), asked["breaks"] == "1", asked["own"] == "1")
        store = packs.open_pack(asked["pack"])
        latents = [store[int(text)] for text in asked["f"].split(",")[:MOST]]
        if not texts_in(store) or store.pictures is not None:
            return JSONResponse({})
        return JSONResponse({latent.id: first_screen(latent, view) for latent in latents if not latent.dead})
    except (KeyError, ValueError, PackError) as refusal:
        return JSONResponse({"refused": f"{refusal}"}, status_code=404)

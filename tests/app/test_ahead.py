"""The first screens of a latent's neighbours, as the page fetches them before they are asked for."""

import json
from urllib.parse import parse_qs

import pytest
from scope.app.feature import ahead
from scope.app.feature.examples import View
from starlette.applications import Starlette
from starlette.testclient import TestClient

from scope.features.face import Pack
from tests.help.components import component_data


@pytest.fixture
def answer(monkeypatch, toy_folder):
    monkeypatch.setenv("SCOPE_PACKS", json.dumps([str(toy_folder)]))
    client = TestClient(Starlette(routes=[ahead.route("/user/me")]))
    return lambda **asked: client.get("/user/me/latents", params=asked)


def parts_on_the_page(at) -> dict[str, dict]:
    return {data["part"]: data for data in component_data(at) if "part" in data}


def without_place(parts: dict[str, dict]) -> dict[str, dict]:
    return parts | {"head": parts["head"] | {"place": ""}}


@pytest.mark.parametrize("latent", [3, 9])
@pytest.mark.parametrize("view", [View("top"), View("random", 8, True, True)])
def test_what_is_fetched_is_what_the_page_shows_when_it_comes_there(open_app, answer, latent, view):
    at = open_app("feature", f=latent)
    for key, value in (("group", view.group), ("window", view.window), ("own", view.each_own)):
        at.session_state[key] = value
    at = at.run()
    if view.breaks:
        at.session_state["breaks"] = True
        at = at.run()
    shown = parts_on_the_page(at)
    address = {name: value for name, (value,) in parse_qs(shown["examples"]["view"]).items()}
    got = answer(pack="toy", f=latent, **address).json()
    assert without_place(shown) == got[str(latent)]
    (offered,) = (data for data in component_data(at) if "after" in data)
    assert offered["of"] == latent
    assert offered["parts"] == list(got[str(latent)])
    assert [place["latent"] for place in offered["after"]] == [latent + 1, latent + 2, latent + 3]


def test_neighbours_are_those_of_the_list_with_their_places(open_app):
    at = open_app("features", sort="max")
    listed = at.dataframe[0].value["id"].tolist()
    at.session_state["results"] = {"toy": listed}
    at.switch_page("feature/page.py")
    at.query_params["f"] = str(listed[1])
    (offered,) = (data for data in component_data(at.run()) if "after" in data)
    assert [place["latent"] for place in offered["before"]] == listed[:1]
    assert [place["latent"] for place in offered["after"]] == listed[2:5]
    assert offered["after"][0]["place"] == f"3 of {len(listed)} in the list"


def test_latents_that_the_page_shows_otherwise_are_left_out(answer, toy_folder):
    store, view = Pack.open(toy_folder), {"group": "top", "window": -1, "breaks": 0, "each_own": 0}
    dead = next(i for i in range(store.d_sae) if store[i].dead)
    assert list(answer(pack="toy", f=f"{dead},9", **view).json()) == ["9"]
    without = next(i for i in range(store.d_sae) if not store[i].dead and "near" not in store[i].groups)
    assert list(answer(pack="toy", f=without, **view | {"group": "near"}).json()) == [str(without)]  # then its first sample


@pytest.mark.parametrize(
    "asked",
    [{"pack": "other"}, {"f": "x"}, {"f": "999999"}, {"f": "1_0"}, {"window": "7"}, {"f": ""}, {"group": "none such"}],
)
def test_what_cannot_be_answered_is_refused(answer, asked):
    whole = {"pack": "toy", "f": "9", "group": "top", "window": "-1", "breaks": "0", "each_own": "0"}
    refused = answer(**whole | asked)
    assert refused.status_code == 404
    assert next(iter(asked.values())) in refused.json()["refused"]

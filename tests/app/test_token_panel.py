"""A click on a token of an example: what the latent does there, who else fires, and where to go from here."""

import json

import pytest
from scope.app.feature import token_panel

from scope.features.face import Pack
from scope.features.reading.read_text import read_context
from scope.features.reading.view import ranked
from tests.app.conftest import said


@pytest.fixture
def page(open_app, folder):
    def opened(latent: int, chosen: tuple | None = None, **state):
        at = open_app("feature", packs=[folder / "pack"], f=latent)
        at.default_timeout = 120
        for name, value in {"chosen token": chosen, **state}.items():
            at.session_state[name] = value
        return at.run()

    return opened


@pytest.fixture(scope="module")
def place(store):
    """(latent, its first example, the place that a click on its peak keeps)."""
    feature = next(f for f in store if f.row["count"] > 20 and len(f.examples("top")) > 2)
    example = feature.examples("top")[1]
    return feature, example, (feature.id, "top", example.context, example.offset, example.peak)


def rows(at) -> list[list]:
    found = [json.loads(c.proto.json) for c in at.get("bidi_component")]
    return [data["rows"] for data in found if "test" in data.get("actions", [])]


def test_tokens_of_examples_can_be_picked(page, place):
    at = page(place[0].id)
    drawn = [data for c in at.get("bidi_component") if "test" in (data := json.loads(c.proto.json)).get("actions", [])]
    assert [data["pick"] for data in drawn] == [True]


def test_the_panel_stands_under_the_example_of_the_token_and_frames_it(page, place):
    feature, example, chosen = place
    at = page(feature.id, chosen)
    assert not at.exception
    above, below = rows(at)
    assert len(above) == 2
    assert len(above) + len(below) == len(rows(page(feature.id))[0])
    framed = [cell for row in above for cell in row["cells"] if "c" in cell[3]]
    assert [cell[2] for cell in framed] == [f"{example.value:.3g}"]


def test_the_panel_tells_the_librarys_value_quantile_and_token_statistics(page, place):
    feature, example, chosen = place
    told = " ".join(c.value.replace("\\", "") for c in page(feature.id, chosen).caption)
    assert f"is {example.value:.3g} here" in told
    row = next(r for r in feature.tokens if r["id"] == example.ids[example.peak])
    assert f"fires on {row['p_fires_given_token']:.1%} of" in told


def test_who_else_fires_there_is_what_the_library_reads_and_the_pack_agrees(page, place, lab):
    feature, example, chosen = place
    at = page(feature.id, chosen, **{"fire here": True, "dense chosen": True})
    assert not at.exception
    assert "not read in the same way" not in said(at)
    view = read_context(feature.pack, example.context, *lab)
    wanted = ranked(view, example.offset, dense=True)
    table = next(frame.value for frame in at.dataframe if "surprise" in frame.value)
    assert table["latent"].tolist() == wanted.index.tolist()
    assert view.values(feature.id)[example.offset] == pytest.approx(example.value, rel=1e-3)


def test_every_context_of_a_pack_reads_as_the_pack_says(store, lab):
    feature = next(f for f in store if f.row["count"] > 20)
    for example in feature.examples("random", 4):
        view = read_context(store, example.context, *lab)
        first = example.offset - example.peak
        again = view.values(feature.id)[first : first + len(example.acts)]
        assert again == pytest.approx(example.acts, rel=1e-3, abs=1e-4)


def test_values_further_apart_than_a_recordings_rounding_are_told():
    assert token_panel.disagreement(2.0, 2.05) == ""
    assert "2 here" in token_panel.disagreement(2.0, 1.0)


def test_the_ways_on_carry_the_text_up_to_the_token(page, place):
    feature, example, chosen = place
    at = page(feature.id, chosen)
    next(b for b in at.button if b.label == "Steer from here").click()
    at.run()
    assert not at.exception
    prompt = next(area.value for area in at.text_area if area.label == "Prompt")
    assert prompt.endswith(example.tokens[example.peak].strip())


def test_without_the_dictionary_the_panel_says_so_and_keeps_what_the_pack_knows(open_app, toy_folder):
    store = Pack.open(toy_folder)
    example = store[9].examples("top")[0]
    at = open_app("feature", f=9)
    at.session_state["chosen token"] = (9, "top", example.context, example.offset, example.peak)
    at.session_state["fire here"] = True
    at.run()
    assert not at.exception
    assert "There is no folder toy" in said(at)
    assert any(f"is {example.value:.3g} here" in c.value.replace("\\", "") for c in at.caption)


def test_the_token_in_the_address_is_chosen_and_one_that_is_not_there_is_refused(open_app, folder):
    at = open_app("prompt", packs=[folder / "pack"], text="the dog ran", at="last", dense="true")
    assert not at.exception
    last = at.session_state["at"]
    assert any(f"token {last}" in c.value for c in at.caption)
    at = open_app("prompt", packs=[folder / "pack"], text="the dog ran", at="99")
    assert "There is no token 99" in said(at)

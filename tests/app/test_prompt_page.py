"""The Prompt page on a real pack of a tiny model."""

import json

import pytest

from scope.features.face import Pack
from scope.features.reading.two_texts import compared, compared_by_token
from scope.features.reading.view import ranked
from scope.models.load import load_model
from scope.sae.files import read_sae
from tests.app.conftest import said


@pytest.fixture
def page(open_app, folder):
    def opened(**params):
        at = open_app("prompt", packs=[folder / "pack"], **params)
        at.default_timeout = 120
        return at

    return opened


@pytest.fixture(scope="module")
def read(folder):
    store = Pack.open(folder / "pack")
    model, sae = load_model(str(folder / "checkpoint")), read_sae(folder / "dictionary")
    return lambda text: store.read(text, model, sae)


def test_without_a_text_nothing_is_loaded(page):
    at = page()
    assert not at.exception
    assert not at.dataframe
    assert any("Nothing leaves this machine" in c.value for c in at.caption)


def test_a_text_in_the_address_is_read_and_the_table_is_the_librarys(page, read):
    at = page(text="the dog ran", dense="true")
    assert not at.exception
    wanted = ranked(read("the dog ran"), dense=True)
    assert len(wanted)
    table = next(frame.value for frame in at.dataframe if "surprise" in frame.value)
    assert table["latent"].tolist() == wanted.index.tolist()
    assert table["value"].tolist() == pytest.approx(wanted["value"].tolist())


def test_hostile_text_is_shown_and_never_obeyed(page):
    at = page(text="<img src=x onerror=alert(1)> the dog")
    assert not at.exception
    assert all("<img" not in m.value for m in [*at.markdown, *at.caption])
    cells = [c for box in at.get("bidi_component") for row in json.loads(box.proto.json).get("rows", []) for c in row["cells"]]
    assert any("<" in cell[0] for cell in cells)


def test_two_texts_are_compared(page, read):
    at = page(text="the dog ran", two="true", **{"with": "a cat sat"})
    assert not at.exception
    wanted = compared(read("the dog ran"), read("a cat sat"), k=40)
    table = next(frame.value for frame in at.dataframe if "change" in frame.value)
    assert table["latent"].tolist() == wanted.index.tolist()


def test_two_texts_are_compared_token_by_token(page, read):
    at = page(text="the dog ran", two="true", pool="token by token", **{"with": "the cat ran"})
    assert not at.exception
    wanted, *alone = compared_by_token(read("the dog ran"), read("the cat ran"))
    table = next(frame.value for frame in at.dataframe if "change" in frame.value)
    assert table["latent"].tolist() == wanted.index.tolist()
    assert table["change"].tolist() == pytest.approx(wanted["change"].tolist())
    assert any(f"{alone[0]} tokens of the first text" in c.value for c in at.caption)


def test_an_attribution_adds_up_with_the_error_as_a_row(page, monkeypatch):
    monkeypatch.setattr("scope.circuits.attribution._CLOSE", 10.0)  # no more than the first points of the integral
    at = page(text="the dog ran")
    next(b for b in at.button if b.label == "Attribute").click()
    at.run()
    assert not at.exception
    table = next(frame.value for frame in at.dataframe if "effect" in frame.value).set_index("part")["effect"]
    assert {"error", "at b_dec alone", "sum"} <= set(table.index)
    assert table.drop("sum").sum() == pytest.approx(table["sum"], abs=1e-4)
    assert not any("this method is fast" in w.value for w in at.warning)
    next(s for s in at.selectbox if s.label == "Method").select("gradient")
    next(b for b in at.button if b.label == "Attribute").click()
    at.run()
    assert any("this method is fast" in w.value for w in at.warning)
    assert any("lab.attribute('the dog ran', method='gradient')" in c.value for c in at.code)


def test_a_text_longer_than_the_context_is_refused_with_the_limit(page):
    at = page(text="the dog " * 60)
    assert "context" in said(at)

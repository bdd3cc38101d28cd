"""The steering page on a real pack of a tiny model, and its refusals on a toy one."""

import pytest

from scope.lab import Lab
from scope.models.load import load_model
from scope.sae.files import load_sae
from scope.steering.run import SteeringRun
from tests.app.conftest import said
from tests.conftest import random_gemma
from tests.labs import make_lab


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_config, toy_tokenizer, toy_text):
    return make_lab(tmp_path_factory.mktemp("page") / "tiny", random_gemma(tiny_config, toy_tokenizer), toy_text)


@pytest.fixture
def page(open_app, folder):
    def opened(**params):
        at = open_app("steer", packs=[folder / "pack"], **params)
        at.default_timeout = 120
        return at

    return opened


def press(at, label: str):
    next(b for b in at.button if b.label == label).click()
    return at.run()


def test_the_page_opens_on_the_latent_in_its_address_and_tells_its_strength_in_other_units(page):
    at = page(f=3)
    assert not at.exception
    assert any("\\#3" in m.value for m in at.markdown)
    (strength,) = [s for s in at.slider if s.label.startswith("Strength")]
    assert strength.value == 0.5
    assert any("its largest activation" in c.value for c in at.caption)


def test_generating_shows_three_arms_with_figures_and_keeps_the_run(page, folder):
    at = page(f=3)
    next(n for n in at.number_input if n.label == "New tokens").set_value(4)
    at.text_area(key="steer prompt").set_value("the dog")
    press(at, "Generate")
    assert not at.exception
    assert not at.error
    assert {"**plain**", "**steered**", "**random**"} <= {m.value for m in at.markdown}
    (kept,) = (folder / "pack.steering").glob("*.json")
    run = SteeringRun.from_json(kept)
    assert run.prompts == ["the dog"]
    assert run.replay(load_model(str(folder / "checkpoint")), load_sae(folder / "dictionary")).same_texts(run)
    again = page(run=kept.stem)
    assert not again.exception
    assert "edited" in " ".join(c.value for c in again.caption)


def test_what_the_page_gives_as_python_makes_the_same_run(folder):
    from app.components.steering import python
    from scope.features.store import FeatureStore

    lab = Lab(FeatureStore.open(folder / "pack"), load_sae(folder / "dictionary"))
    run = (lab.steer(3, 0.5) + lab.steer(5, -0.25, positions="generated")).compare("the dog", max_new_tokens=4)
    scope_ = {}
    lines = python(run, str(folder))
    exec(lines.replace("lab.steer(", "made = lab.steer("), scope_)
    assert scope_["made"].same_texts(run)


def test_a_link_to_a_run_that_is_not_here_is_refused(page):
    assert "No saved run" in said(page(run="0123456789ab"))
    assert "No saved run" in said(page(run="../../etc/passwd"))


def test_a_pack_whose_model_is_gone_says_so_when_text_is_asked_for(open_app, monkeypatch):
    at = open_app("steer", f=1)
    assert not at.exception
    at.default_timeout = 120
    press(at, "Generate")
    assert not at.exception
    assert said(at)


def test_an_unknown_latent_is_refused(page):
    assert "no latent 999" in said(page(f=999)).lower()

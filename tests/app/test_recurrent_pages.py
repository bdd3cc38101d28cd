"""The pages on a pack of a recurrent state: how long a latent lasts, and what is remembered of each token."""

import json

import pytest
import torch
from scope.app.steer.state import has_state

from scope.circuits.memory import memory
from scope.features.collect.collect_pack import CollectConfig, collect
from scope.features.face import Pack
from scope.models.load import load_model
from scope.sae.files import read_sae
from scope.steering.compare.steer import SteeringRun
from scope.steering.edits.interventions import Edits, Forget, Hold
from tests.help.labs import make_lab
from tests.models.griffin_twins import tiny_griffin

TEXT = "the dog runs to the river. a cat looks at the moon."
SITE = "blocks.1.rec.hook_state"


@pytest.fixture(scope="module")
def folder(tmp_path_factory, toy_tokenizer, toy_text):
    """checkpoint/, dictionary/, and two packs of a state: pack/ with decay profiles, plain/ without."""
    folder = make_lab(tmp_path_factory.mktemp("recurrent") / "lab", tiny_griffin(toy_tokenizer), toy_text, SITE)
    model, sae = load_model(str(folder / "checkpoint")), read_sae(folder / "dictionary")
    tokens = torch.tensor([[model.cfg.bos, *range(10, 41)]] * 20)
    collect(model, sae, tokens, CollectConfig(score_prompts=0), folder / "plain", dictionary=str(folder / "dictionary"))
    return folder


@pytest.fixture
def page(open_app, folder):
    def opened(name: str, pack: str = "pack", **params):
        at = open_app(name, packs=[folder / pack], **params)
        assert not at.exception
        return at

    return opened


def figure(at, key: str) -> dict:
    chart = next(c for c in at.get("plotly_chart") if c.proto.id.endswith(f"-{key}"))
    return json.loads(chart.proto.spec)


def test_a_latent_of_a_state_shows_how_long_it_lasts(page, folder):
    whole = Pack.open(folder / "pack").decay
    row = max(whole.latents, key=lambda one: one.writes)
    at = page("feature", f=row.latent)
    assert any("Half\\-life" in m.value for m in at.markdown)
    drawn = figure(at, "decay")["data"]
    assert drawn[0]["y"] == pytest.approx(row.profile)
    assert drawn[1]["y"] == pytest.approx(whole.state)
    table = next(frame.value for frame in at.dataframe if "left" in frame.value)
    assert table["left"].tolist() == pytest.approx([kept.left for kept in row.retained])


def test_a_pack_of_a_state_without_profiles_says_so_and_other_sites_say_nothing(page, open_app):
    assert any("no decay profiles" in c.value for c in page("feature", "plain", f=1).caption)
    other = open_app("feature", f=1)
    assert not any("Decay" in h.value for h in other.header)


def test_the_prompt_page_shows_what_is_remembered_of_each_token(page, folder):
    model, sae = load_model(str(folder / "checkpoint")), read_sae(folder / "dictionary")
    at = page("prompt", text=TEXT)
    wanted = memory(model, TEXT, layers=[1])
    drawn = figure(at, "memory")["data"][0]["z"]
    n = len(wanted.ids)
    assert [row[-1] for row in drawn] == pytest.approx(wanted.heat(1)[:, -1].tolist(), abs=1e-5)
    assert drawn[5][:5] == [None] * 5
    choice = next(box for box in at.selectbox if box.label == "Of each token")
    latent = int(choice.options[-1].split("#")[1])
    choice.select(choice.options[-1])
    next(t for t in at.toggle if t.label == "By tokens since").set_value(True)
    at.run()
    assert not at.exception
    drawn = figure(at, "memory")["data"][0]["z"]
    added = memory(model, TEXT, sae, [latent], layers=[1]).heat(1, latent=latent)
    assert drawn[2][: n - 2] == pytest.approx(added[2, 2:].tolist(), abs=1e-5)
    next(box for box in at.selectbox if box.label == "Layer").select(0)
    assert not at.run().exception


def test_tokens_are_forgotten_and_a_latent_held_on_the_steer_page_and_the_run_opens_again(page, folder):
    at = page("steer", f=3)
    at.selectbox(key="steer row 1 operation").select("hold")
    at.session_state["steer source"] = "Forget"
    at.run()
    at.text_input(key="steer forget").set_value("dog").run()
    at.button(key="steer add forget").click().run()
    at.slider(key="steer row 2 strength part").set_value(0.5)
    at.text_area(key="steer prompt").set_value("the dog runs to")
    at.number_input(key="steer tokens").set_value(2)
    next(b for b in at.button if b.label == "Generate").click()
    at.run()
    assert not at.exception
    assert not at.error
    (kept,) = (folder / "pack" / "steering").glob("*.json")
    wanted = Edits([Hold(3), Forget("dog", 0.5)])
    assert SteeringRun.from_json(kept).edits == wanted
    again = page("steer", run=kept.stem)
    assert again.slider(key="steer row 2 strength part").value == 0.5
    assert again.selectbox(key="steer row 1 operation").value == "hold"


def test_tokens_can_be_forgotten_from_every_pack_of_a_recurrent_model(tmp_path, toy_tokenizer, toy_text, open_app):
    lab = make_lab(tmp_path / "lab", tiny_griffin(toy_tokenizer), toy_text, "blocks.2.hook_resid_post")
    at = open_app("steer", packs=[lab / "pack"], f=3)
    (source,) = (group for group in at.button_group if group.key == "steer source")
    assert source.options[-1] == "Forget"


def test_a_model_with_a_state_is_known_by_its_config(folder, tmp_path, monkeypatch):
    assert has_state("bundled-recurrent")
    assert has_state(str(folder / "checkpoint"))
    monkeypatch.chdir(folder / "checkpoint")  # where a config.json lies that is no answer to another name
    for name in ("bundled", "bundled+fim", str(tmp_path), "owner/not-here", "lens:gpt2", "./no such"):
        assert not has_state(name), name

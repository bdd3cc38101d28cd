"""A PaliGemma with one picture before every prompt is generated from, steered and scored as a language model is."""

import numpy as np
import pytest
import torch
from PIL import Image

from scope.circuits.attribution import attribute
from scope.errors import ConfigError, EditError, PictureError, TokensError
from scope.models.face import LanguageModel
from scope.models.load import load_model
from scope.models.paligemma.pictured import with_picture
from scope.models.pictures.copies import picture_of_copy
from scope.models.text.sampling_config import SamplingConfig
from scope.sae.files import save_sae
from scope.steering.apply.editing import Editing
from scope.steering.apply.resolve import resolve
from scope.steering.apply.strength_units import units_for
from scope.steering.compare.steer import SteeringRun, steer
from scope.steering.edits.interventions import Ablate, Add, Clamp, Edits
from scope.steering.export.page import as_page
from scope.steering.export.script import as_python
from tests.models.vision_twins import save_with_words, siglip
from tests.steering.conftest import SITE, random_sae

pytestmark = pytest.mark.filterwarnings("ignore")  # transformers'
PROMPT, SHORT = "the dog runs to the river", SamplingConfig(max_new_tokens=5, temperature=0)


@pytest.fixture(scope="module")
def model(tmp_path_factory, toy_text):
    folder = tmp_path_factory.mktemp("paligemma")
    save_with_words(folder, toy_text)
    return load_model(str(folder))


def a_picture(seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (30, 20, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def pictured(model):
    return with_picture(model, a_picture())


@pytest.fixture
def sae(model):
    sae = random_sae(model.sites()[SITE])
    sae.provenance = {"model": model.provenance, "weights_sha256": "sae"}
    return sae


def test_token_ids_alone_give_the_logits_of_the_prepared_picture_and_prompt(model, pictured):
    inputs = model.prepare([PROMPT], [a_picture()], ["a cat"])
    tokens = inputs["input_ids"]
    assert isinstance(pictured, LanguageModel)
    assert pictured.words.encode(PROMPT) == tokens[0, : (inputs["token_type_ids"] == 0).sum()].tolist()
    assert torch.equal(pictured.types_of(tokens), inputs["token_type_ids"])
    torch.testing.assert_close(pictured(tokens), model(inputs))
    torch.testing.assert_close(pictured(PROMPT), model(model.prepare([PROMPT], [a_picture()])))
    torch.testing.assert_close(pictured(tokens.expand(3, -1))[2], model(inputs)[0], atol=1e-5, rtol=1e-5)


def test_greedy_text_is_that_of_the_prepared_picture_whatever_the_padding(model, pictured):
    texts = [PROMPT, "a cat"]
    greedy = {"max_new_tokens": 6, "do_sample": False, "return_type": "generations"}
    prepared = [model.generate(model.prepare([t], [a_picture()]), **greedy)[0] for t in texts]
    assert [pictured.generate(t, **greedy)[0] for t in texts] == prepared
    assert pictured.generate(texts, **greedy) == prepared


def test_the_picture_decides_what_is_said(model, pictured):
    other = with_picture(model, a_picture(1))
    assert not torch.allclose(pictured(PROMPT), other(PROMPT))
    assert pictured.provenance["picture_sha256"] != other.provenance["picture_sha256"]
    assert "picture_sha256" not in model.provenance


@pytest.mark.parametrize("positions", ["image", "text"])
def test_an_edit_acts_at_patches_or_at_text_alone(pictured, sae, positions):
    run = steer(pictured, sae, Add(5, 0.5, positions=positions), PROMPT, SHORT)
    n_text = len(pictured.words.encode_batch([f"{PROMPT}\n"])[0])
    expected = pictured.cfg.n_image_tokens if positions == "image" else n_text
    assert run["steered"].report.edited_per_step[0] == expected
    read_later = 0 if positions == "image" else len(run["steered"].samples[0].new_ids) - 1
    assert sum(run["steered"].report.edited_per_step[1:]) == read_later
    assert run["random"].report.edited_per_step == run["steered"].report.edited_per_step


def test_an_edit_at_patches_is_the_hook_that_adds_there(model, pictured, sae):
    run = steer(pictured, sae, Add(5, 3.0, unit="raw", positions="image"), PROMPT, SHORT)
    image = model.prepare([PROMPT], [a_picture()])["input_ids"] == model.cfg.image_token

    def add(x, hook):
        n = min(x.shape[1], image.shape[1])
        return x if x.shape[1] == 1 else x + 3.0 * sae.W_dec[5] * image[:, :n, None]

    with model.hooks([(SITE, add)]):
        by_hand = model.generate(model.prepare([PROMPT], [a_picture()]), 5, do_sample=False, return_type="generations")
    assert run["steered"].samples[0].new_ids == list(by_hand[0].new_ids)


@pytest.mark.parametrize("edit", [Clamp(5, 4.0, unit="raw", positions="image"), Ablate(5, positions="image")])
def test_latents_are_clamped_and_ablated_at_patches(pictured, sae, edit):
    seen = {}
    hooks = [("blocks.2.hook_resid_pre", lambda x, hook: seen.setdefault("x", x.detach().clone()))]
    units = units_for(pictured, {SITE: sae}, Edits.of(edit), [PROMPT], None)
    editing = Editing(pictured, {SITE: sae}, [resolve(edit, {SITE: sae}, units)])
    tokens = pictured.to_tokens(PROMPT)
    plain = pictured.record(tokens, [SITE])[SITE]
    with torch.no_grad():
        pictured.run_with_hooks(tokens, fwd_hooks=[*editing.hooks(), *hooks])
    moved = seen["x"] - plain
    image = tokens == pictured.cfg.image_token
    before = sae.encode(plain)[..., 5]
    wanted = (4.0 - before if isinstance(edit, Clamp) else -before) * image
    torch.testing.assert_close(moved, wanted[..., None] * sae.W_dec[5], atol=1e-4, rtol=1e-4)
    assert "patches" in units[SITE].source


def test_a_run_about_a_picture_is_replayed_about_that_picture_alone(model, pictured, sae):
    run = SteeringRun.from_json(steer(pictured, sae, Add(5, 0.5), PROMPT, SHORT).to_json())
    assert run.replay(pictured, sae).same_texts(run)
    with pytest.raises(EditError, match="another picture"):
        run.replay(with_picture(model, a_picture(1)), sae)


@pytest.mark.parametrize("size", [(30, 20), (1500, 900)])
def test_a_run_holds_a_copy_of_its_picture_by_which_it_is_made_again(model, sae, size, tmp_path, capsys):
    picture = a_picture().resize(size)
    run = SteeringRun.from_json(steer(with_picture(model, picture), sae, Add(5, 0.5), PROMPT, SHORT).to_json())
    copied = with_picture(model, picture_of_copy(run.picture))
    assert torch.equal(copied.pixels, with_picture(model, picture).pixels)
    assert run.replay(copied, sae).same_texts(run)
    save_sae(sae, tmp_path / "sae")
    exec(compile(as_python(run, [str(tmp_path / "sae")], str(model.provenance["model"])), "run.py", "exec"), {})
    assert "the same texts: True" in capsys.readouterr().out
    assert "data:image/png" in as_page(run)


def test_text_methods_of_attribution_take_the_pictured_model(pictured, sae):
    found = attribute(pictured, sae, PROMPT, 60, 70, method="ablation", exact=2, nulls=1)
    assert found.whole == found.logit_difference
    assert abs(found.gap) < 1e-4


def test_what_cannot_be_is_refused(model, pictured, sae, tiny_model, tmp_path):
    with pytest.raises(TokensError, match="one line"):
        pictured.words.encode("two\nlines")
    with pytest.raises(ConfigError, match="says no word"):
        with_picture(tiny_model, a_picture())
    with pytest.raises(ConfigError, match="says no word"):
        with_picture(load_model(str(siglip(tmp_path))), a_picture())
    with pytest.raises(PictureError):
        with_picture(model, b"nothing")
    with pytest.raises(EditError, match="without a picture"):
        steer(tiny_model, random_sae(), Add(5, 0.5, positions="image"), "the dog", SHORT)
    tower = random_sae(24, 64, "vision.blocks.0.hook_resid_post")
    tower.provenance = sae.provenance
    with pytest.raises(EditError, match="edits act at tokens"):
        steer(pictured, tower, Add(5, 0.5), PROMPT, SHORT)

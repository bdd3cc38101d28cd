"""Which patch made a word: pairs of patch and latent add up to the logit difference, beside an ablation of the same patches."""

import numpy as np
import pytest
import torch
from PIL import Image

from scope.circuits.attribution import attribute
from scope.circuits.picture_attribution import attribute_picture
from scope.circuits.picture_script import as_python
from scope.errors import ConfigError, DictionaryError, EditError, PictureError
from scope.models.load import load_model
from scope.sae.files import save_sae
from tests.models.vision_twins import save_with_words, siglip
from tests.steering.conftest import random_sae

TRUNK, PROJECTED, TOWER = "blocks.1.hook_resid_post", "projector.hook_out", "vision.blocks.0.hook_resid_post"
PROMPT, WORD, OTHER = "the dog", 60, 70
pytestmark = pytest.mark.filterwarnings("ignore")  # transformers'


@pytest.fixture(scope="module")
def model(tmp_path_factory, toy_text):
    folder = tmp_path_factory.mktemp("paligemma")
    save_with_words(folder, toy_text)
    return load_model(str(folder), dtype=torch.float64)


@pytest.fixture(scope="module")
def picture():
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 20, 3), dtype=np.uint8))


def an_sae(model, site, **provenance):
    sae = random_sae(model.sites()[site], 48, site).double()
    sae.provenance = {"model": model.provenance, "weights_sha256": "sae"} | provenance
    return sae


def difference(model, picture, rows, site, answer=None):
    """logit(WORD) - logit(OTHER) after the last token, if `rows` flowed past the site."""
    inputs = model.prepare([PROMPT], [picture], answer)
    if answer:
        inputs = {name: x if name == "pixel_values" else x[:, :-1] for name, x in inputs.items()}
    logits = model.run_with_hooks(inputs, fwd_hooks=[(site, lambda x, hook: rows[None])])[0, -1]
    return logits[WORD] - logits[OTHER]


@pytest.mark.parametrize("site", [TRUNK, "blocks.0.hook_mlp_out", PROJECTED, TOWER])
def test_pairs_errors_and_the_rest_add_up_to_the_logit_difference(model, picture, site):
    found = attribute_picture(model, an_sae(model, site), picture, PROMPT, WORD, OTHER, steps=24, draws=2)
    assert abs(found.gap) < 0.02 * sum(abs(row.value) for row in found.rows)
    assert found.whole == found.logit_difference
    rows = {row.name: row.value for row in found.rows}
    assert found.effects.sum() + rows["error"] + rows["at b_dec alone"] == pytest.approx(found.whole - found.gap, abs=1e-9)
    assert found.errors.sum() == pytest.approx(rows["error"], abs=1e-9)
    assert found.pairs()["effect"].sum() == pytest.approx(found.effects.sum(), abs=1e-9)
    x = model.record(model.prepare([PROMPT], [picture]), [site])[site][0]
    with torch.no_grad():
        assert found.logit_difference == pytest.approx(float(difference(model, picture, x, site)), abs=1e-9)


def test_a_pair_of_the_gradient_is_activation_times_the_gradient_along_the_latent(model, picture):
    sae = an_sae(model, TRUNK)
    found = attribute_picture(model, sae, picture, PROMPT, WORD, OTHER, method="gradient")
    x = model.record(model.prepare([PROMPT], [picture]), [TRUNK])[TRUNK][0].clone().requires_grad_(True)
    (grad,) = torch.autograd.grad(difference(model, picture, x, TRUNK), x)
    latents = sae.encode(x.detach())
    for _, pair in found.pairs(20).iterrows():
        row = found.pieces.index(pair["where"]) if pair["patch"] < 0 else found.patch_rows[pair["patch"]]
        expected = latents[row, pair["latent"]] * (sae.W_dec[pair["latent"]] @ grad[row])
        assert pair["effect"] == pytest.approx(float(expected), abs=1e-9)
        assert pair["activation"] == pytest.approx(float(latents[row, pair["latent"]]), abs=1e-9)
    assert found.whole == pytest.approx(float((grad * x).sum()), abs=1e-9)
    assert abs(found.gap) < 1e-9


def test_patches_are_the_image_tokens_and_carry_their_boxes(model, picture):
    found = attribute_picture(model, an_sae(model, TRUNK), picture, PROMPT, WORD, OTHER, method="gradient")
    tokens = model.prepare([PROMPT], [picture])["input_ids"][0]
    assert list(found.patch_rows) == (tokens == model.cfg.image_token).nonzero().flatten().tolist()
    assert found.grid == (3, 3)
    assert [found.pieces[r] for r in found.patch_rows][5] == "patch 1,2"
    assert found.boxes == tuple(model.patch_boxes((20, 30)))
    table = found.pairs()
    on_patch = table[table["patch"] == 5].iloc[0]
    assert tuple(on_patch[["left", "top", "right", "bottom"]]) == pytest.approx(found.boxes[5])
    assert on_patch[["patch_row", "patch_column"]].tolist() == [1, 2]
    assert (found.effects[found.pieces.index("<bos>")] == 0).all()


def test_the_same_patches_are_ablated_and_random_sets_of_as_many(model, picture):
    found = attribute_picture(model, an_sae(model, TRUNK), picture, PROMPT, WORD, OTHER, n_patches=2, draws=7)
    strongest = np.argsort(-found.patches)[:2]
    assert set(found.ablation.patches) == set(strongest)
    assert len(found.ablation.random) == 7
    x = model.record(model.prepare([PROMPT], [picture]), [TRUNK])[TRUNK][0].clone()
    rows = torch.tensor(found.patch_rows)
    x[rows[list(strongest)]] = x[rows].mean(0)
    with torch.no_grad():
        changed = found.logit_difference - float(difference(model, picture, x, TRUNK))
    assert found.ablation.change == pytest.approx(changed, abs=1e-9)
    assert "7 random sets of as many" in str(found)
    again = attribute_picture(model, an_sae(model, TRUNK), picture, PROMPT, WORD, OTHER, n_patches=2, draws=7)
    assert again.ablation == found.ablation


def test_a_patch_that_the_model_cannot_see_has_no_effect(model, picture):
    """Gradients stop where the trunk's first block no longer reads: past the last block only the last token matters."""
    last = f"blocks.{model.cfg.n_layers - 1}.hook_resid_post"
    found = attribute_picture(model, an_sae(model, last), picture, PROMPT, WORD, OTHER, method="gradient", draws=2)
    assert np.abs(found.patches).max() == 0
    assert found.ablation.change == pytest.approx(0, abs=1e-12)
    assert np.abs(found.effects[-1]).max() > 0


def test_the_answer_so_far_is_read_before_the_word(model, picture):
    sae = an_sae(model, TRUNK)
    found = attribute_picture(model, sae, picture, PROMPT, WORD, OTHER, answer="a cat", method="gradient")
    inputs = model.prepare([PROMPT], [picture], ["a cat"])  # which ends the answer with <eos>
    open_ended = {name: x if name == "pixel_values" else x[:, :-1] for name, x in inputs.items()}
    x = model.record(open_ended, [TRUNK])[TRUNK][0]
    with torch.no_grad():
        assert found.logit_difference == pytest.approx(float(difference(model, picture, x, TRUNK, ["a cat"])), abs=1e-9)
    assert "a cat" in str(found)


@pytest.mark.parametrize("rows", ["image", "text"])
def test_rows_that_the_sae_was_not_trained_on_are_one_part(model, picture, rows):
    found = attribute_picture(
        model, an_sae(model, TRUNK, recording={"rows": rows}), picture, PROMPT, WORD, OTHER, steps=24, draws=2
    )
    read = np.abs(found.activations).sum(1) > 0
    assert read[list(found.patch_rows)].any() == (rows == "image")
    assert abs(found.gap) < 0.02 * sum(abs(row.value) for row in found.rows)


def test_it_is_drawn_written_and_shown_with_all_text_escaped(model, picture, tmp_path):
    found = attribute_picture(model, an_sae(model, PROJECTED), picture, "<b>the dog", WORD, OTHER, method="gradient")
    html = found.to_html()
    assert html.count("<img") == 1
    assert "<b>" not in html
    assert "://" not in html
    assert "<script" not in html
    drawn = Image.open(found.save(tmp_path / "drawn.png"))
    assert drawn.size == found.draw().size
    latent = int(found.pairs(1)["latent"].iloc[0])
    assert np.array_equal(found.heat(latent), found.effects[list(found.patch_rows), found.latents.index(latent)])
    assert not found.heat(10**6).any()


def test_what_cannot_be_told_is_refused(model, picture, tmp_path):
    sae = an_sae(model, TRUNK)
    with pytest.raises(EditError, match="direct"):
        attribute_picture(model, sae, picture, PROMPT, WORD, OTHER, method="direct")
    with pytest.raises(EditError, match="the picture has 9"):
        attribute_picture(model, sae, picture, PROMPT, WORD, OTHER, n_patches=9)
    with pytest.raises(EditError, match="empty"):
        attribute_picture(model, sae, picture, "  ", WORD, OTHER)
    with pytest.raises(PictureError):
        attribute_picture(model, sae, b"no picture", PROMPT, WORD, OTHER)
    with pytest.raises(DictionaryError):
        attribute_picture(model, random_sae(7, 64, TRUNK), picture, PROMPT, WORD, OTHER)
    with pytest.raises(EditError, match="picture=FILE"):
        attribute(model, sae, PROMPT)
    seeing = load_model(str(siglip(tmp_path)))
    with pytest.raises(ConfigError, match="says no word"):
        attribute_picture(seeing, sae, picture, PROMPT)


@pytest.mark.parametrize("site", [TRUNK, TOWER])
def test_an_attribution_is_written_as_a_program_that_makes_it_again(tmp_path, toy_text, picture, site, capsys):
    folder = tmp_path / "model"
    save_with_words(folder, toy_text)
    model = load_model(str(folder))
    sae = random_sae(model.sites()[site], 48, site)
    sae.provenance = {"model": model.provenance}
    save_sae(sae, tmp_path / "sae")
    found = attribute_picture(model, sae, picture, PROMPT, WORD, OTHER, steps=4, draws=2)
    exec(compile(as_python(found, str(tmp_path / "sae")).replace("./", f"{folder.parent}/"), "made.py", "exec"), {})
    said = capsys.readouterr().out
    assert float(said.rpartition("patch: ")[2]) < 1e-5
    assert "Replacing the 1 patches" in said

"""What a newcomer types first: one line each, with the names of TransformerLens and SAELens, does what its words say."""

import numpy as np
import pandas as pd
import pytest
import torch

import scope
from scope.cli.main import run as command
from scope.errors import ConfigError, EditError
from scope.lab import Lab
from scope.steering.edits.base import UnitWarning
from scope.steering.edits.directions import Direction
from scope.steering.edits.interventions import Ablate, Add, AtLeast, Clamp, Edits
from tests.conftest import random_gemma
from tests.help.labs import make_lab
from tests.steering.conftest import SITE

FEW = {"max_new_tokens": 4, "temperature": 0.0}
TOWARD, AWAY = ["the dog runs", "a dog looks", "the dog counts"], ["the moon sails", "my sister sings", "the old king"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_config, toy_tokenizer, toy_text):
    return make_lab(tmp_path_factory.mktemp("guess") / "runs" / "demo", random_gemma(tiny_config, toy_tokenizer), toy_text)


@pytest.fixture(scope="module")
def lab(folder) -> Lab:
    return scope.open(folder, certify=False)  # its dictionary is random


def reference(lab: Lab, text: str) -> torch.Tensor:
    """[pos d_sae] by the model and the SAE alone."""
    return lab.sae.encode(lab.model.record(lab.model.to_tokens(text), [SITE])[SITE][0].float())


def test_activations_of_latents_on_texts_are_a_table_without_special_tokens(lab):
    table = lab.activations(["the dog", "a cat sat on the moon"], [3, 5])
    assert list(table.columns) == ["text", "position", "token", "latent", "value"]
    assert not set(table["token"]) & {"<bos>", "<pad>"}
    for text, words in enumerate(["the dog", "a cat sat on the moon"]):
        rows = table[(table["text"] == text) & (table["latent"] == 5)]
        assert rows["value"].tolist() == pytest.approx(reference(lab, words)[1:, 5].tolist(), abs=1e-5)


def test_activations_without_latents_are_all_firings(lab):
    table = lab.activations("the dog")
    assert (table["value"] > 0).all()
    assert len(table) == int((reference(lab, "the dog")[1:] > 0).sum())


def test_one_latent_may_be_a_number_or_a_feature(lab):
    pd.testing.assert_frame_equal(lab.activations("the dog", 3), lab.activations("the dog", lab[3]))


def test_read_takes_a_list(lab):
    assert [view.ids for view in lab.read(["the dog", "a cat"])] == [lab.read("the dog").ids, lab.read("a cat").ids]


def test_the_logit_lens_ends_in_the_model_s_own_prediction(lab):
    lens = lab.logit_lens("the dog runs")
    own = lab.model(lab.model.to_tokens("the dog runs"))[0].softmax(-1)
    assert lens.probabilities[-1] == pytest.approx(own.topk(5).values.detach().numpy(), abs=1e-5)
    follows = lab.model.to_tokens("the dog runs")[0, 1:]
    assert lens.p_next[-1, :-1] == pytest.approx(own[:-1].gather(1, follows[:, None])[:, 0].detach().numpy(), abs=1e-5)
    assert len(lens.sites) == lab.model.cfg.n_layers


def test_ablate_takes_a_latent_away(lab):
    assert lab.ablate(3, lab[5]).edits == Edits([Ablate(3), Ablate(5)])
    with lab.ablate(range(48)):
        resid = lab.model.record(lab.model.to_tokens("the dog"), [SITE])[SITE][0, 1:]
    with torch.no_grad():
        plain = lab.model.record(lab.model.to_tokens("the dog"), [SITE])[SITE][0, 1:]
        latents = lab.sae.encode(plain)
        assert resid.numpy() == pytest.approx((plain - latents @ lab.sae.W_dec).numpy(), abs=1e-4)


def test_patching_the_last_layer_s_last_token_brings_the_clean_run_back(lab):
    patched = lab.patch("the boat", "the moon")
    assert patched.recovered[-1, -1] == pytest.approx(1.0, abs=1e-4)
    assert patched.recovered[-1, :-1] == pytest.approx(0.0, abs=1e-4)
    assert patched.recovered[:, 0] == pytest.approx(0.0, abs=1e-6)  # <bos> is the same in both
    assert (patched.null[:, -1] > 0).all()


def test_patching_is_what_a_hook_of_one_s_own_would_do(lab):
    patched = lab.patch("the boat", "the moon", 20, 21, sites="blocks.1.hook_mlp_out", nulls=0)
    right, wrong = lab.model.to_tokens("the boat"), lab.model.to_tokens("the moon")
    clean = lab.model.record(right, ["blocks.1.hook_mlp_out"])["blocks.1.hook_mlp_out"]

    def hook(x, hook):
        x[0, -1] = clean[0, -1]
        return x

    logits = lab.model.run_with_hooks(wrong, fwd_hooks=[("blocks.1.hook_mlp_out", hook)])[0, -1]
    assert patched.differences[0, -1] == pytest.approx(float((logits[20] - logits[21]).detach()), abs=1e-4)


def test_prompts_of_unequal_length_are_not_patched(lab):
    with pytest.raises(EditError, match="equally many"):
        lab.patch("the dog", "the dog runs to the river")


def test_a_probe_carries_its_held_out_accuracy_beside_chance(lab):
    probe = lab.probe(TOWARD, AWAY)
    assert 0 <= probe.accuracy <= 1
    assert 0 < probe.chance <= 1
    assert f"held-out accuracy {probe.accuracy:.2f}" in repr(probe)


def test_a_difference_of_means_carries_its_leave_one_out_accuracy(lab):
    direction = lab.direction(TOWARD, AWAY)
    sides = [[_mean(lab, t) for t in texts] for texts in (TOWARD, AWAY)]
    right = 0
    for side, i in ((s, i) for s in (0, 1) for i in range(3)):
        means = [torch.stack([x for j, x in enumerate(sides[s]) if (s, j) != (side, i)]).mean(0) for s in (0, 1)]
        distances = [float((sides[side][i] - mean).norm()) for mean in means]
        right += distances[side] < distances[1 - side]
    assert direction.accuracy == pytest.approx(right / 6)


def _mean(lab: Lab, text: str) -> torch.Tensor:
    return lab.model.record(lab.model.to_tokens(text), [SITE])[SITE][0, 1:].float().mean(0)


def test_a_direction_of_single_prompts_claims_no_accuracy(lab):
    assert lab.direction(["the dog"], ["the moon"]).accuracy is None


def test_a_direction_names_the_tokens_it_promotes(lab):
    direction = lab.direction(TOWARD, AWAY)
    logits = lab.model.direct_logits(direction.unit()[None])[0]
    assert direction.top_tokens(3)["logit"].tolist() == pytest.approx(logits.topk(3).values.tolist())
    assert direction.top_tokens(-3)["logit"].tolist() == pytest.approx((-(-logits).topk(3).values).tolist())


def test_a_direction_names_the_nearest_latents_beside_chance(lab):
    direction = Direction.of_latent(lab.sae, 7)
    nearest = direction.nearest_latents(3)
    assert nearest["latent"][0] == 7
    assert nearest["cosine"][0] == pytest.approx(1.0)
    assert 0 < nearest["by_chance"][0] < 1


def test_a_direction_is_saved_and_loaded_with_its_site_and_accuracy(lab, tmp_path):
    direction = lab.direction(TOWARD, AWAY)
    assert Direction.load(direction.save(tmp_path / "dogs.safetensors")) == direction
    np.save(tmp_path / "v.npy", np.ones(32))
    with pytest.raises(EditError, match="site="):
        Direction.load(tmp_path / "v.npy")
    assert Direction.load(tmp_path / "v.npy", SITE).site == SITE


def test_the_sae_s_settings_stand_under_cfg(lab):
    assert (lab.sae.cfg.d_in, lab.sae.cfg.d_sae, lab.sae.cfg.metadata.hook_name) == (32, 48, SITE)


def test_reprs_say_what_they_are(lab):
    assert "48 latents" in repr(lab)
    assert SITE in repr(lab)
    assert "48 latents" in repr(lab.sae)
    assert "48 latents" in repr(lab.pack)


def test_a_latent_plots_its_activations_and_its_tokens(lab):
    figure = lab[int(lab.best(1, words=False).index[0])].plot()
    assert sum(figure.data[0].y) == lab[int(lab.best(1, words=False).index[0])].row["count"]


def test_generate_is_one_function_with_the_same_names(lab):
    texts = [g.text for g in scope.generate(lab.model, "the dog", **FEW)]
    assert lab.generate("the dog", **FEW) == texts
    assert lab.model.generate("the dog", **FEW) == "the dog" + texts[0]


def test_generate_takes_a_greedy_switch_and_a_number_of_texts(lab):
    greedy = scope.generate(lab.model, "the dog", n=2, do_sample=False, max_new_tokens=3)
    assert [g.text for g in greedy] == lab.generate("the dog", n=2, temperature=0.0, max_new_tokens=3)


def test_an_unknown_setting_is_answered_with_the_nearest(lab):
    with pytest.raises(ConfigError, match="Did you mean temperature"):
        scope.generate(lab.model, "the dog", temprature=0.5)


def test_clamp_sets_the_activation(lab):
    with lab.steer(Clamp(3, 5)), torch.no_grad():
        edited = lab.model.record(lab.model.to_tokens("the dog"), [SITE])[SITE][0, 1:]
    plain = lab.model.record(lab.model.to_tokens("the dog"), [SITE])[SITE][0, 1:]
    change = (5 - lab.sae.encode(plain)[:, 3, None]) * lab.sae.W_dec[3]
    assert (edited - plain).numpy() == pytest.approx(change.detach().numpy(), abs=1e-4)


def test_units_that_are_named_or_left_out_keep_their_meaning(lab):
    assert (Clamp(3).unit, Clamp(3, 5, unit="norm").unit, Add(3, 0.5).unit, AtLeast(3, 2).unit) == (
        "norm",
        "norm",
        "norm",
        "raw",
    )
    assert Clamp(lab.direction(TOWARD, AWAY), 0.5).unit == "norm"


def test_a_fraction_without_a_unit_is_noted():
    with pytest.warns(UnitWarning, match='unit="norm"'):
        assert Clamp(3, 0.5).unit == "raw"


def test_steering_compares_and_makes_a_table(lab):
    table = lab.steer(3, 0.5).compare("the dog", **FEW).to_frame()
    assert table["condition"].tolist() == ["plain", "steered", "random"]
    assert {"text", "concept", "fluency"} <= set(table)


def test_find_best_and_getitem_answer(lab):
    assert lab[3].id == 3
    assert len(lab.best(3, words=False)) == 3


def test_attribute_takes_two_tokens_and_gives_a_table(lab, monkeypatch):
    monkeypatch.setattr("scope.circuits.attribution._CLOSE", 10.0)  # no more than the first points of the integral
    assert {"name", "value", "null", "latent"} <= set(lab.attribute("the dog", " dog", " r").to_frame())


def test_a_cache_has_the_stream_by_name(lab):
    _, cache = lab.model.run_with_cache("the dog")
    assert cache[SITE].shape[-1] == lab.model.cfg.d_model


def test_a_misspelt_command_is_answered_with_the_nearest(capsys):
    assert command(["stear"]) == 2
    assert "Did you mean steer?" in capsys.readouterr().err


def test_info_says_what_a_folder_is_and_what_to_type_next(folder, capsys):
    assert command(["info", str(folder), str(folder / "pack"), str(folder / "dictionary"), str(folder / "checkpoint")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(": ")[2].partition(",")[0] for line in lines[::2]] == ["lab", "pack", "SAE", "checkpoint"]
    assert lines[1] == f'    next: scope app {folder}   or in Python: lab = scope.open("{folder}")'


def test_info_names_saved_results(lab, tmp_path, capsys):
    lab.steer(3, 0.5).compare("the dog", **FEW).save(tmp_path / "run.json")
    lab.direction(TOWARD, AWAY).save(tmp_path / "dogs.safetensors")
    assert command(["list", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "saved steering run, add latent 3 +0.5 of the residual norm" in out
    assert "dogs.safetensors: direction" in out


def test_info_of_nothing_names_what_is_beside(tmp_path, capsys):
    (tmp_path / "pack").mkdir()
    assert command(["info", str(tmp_path / "pakc")]) == 2
    assert "holds: pack" in capsys.readouterr().err

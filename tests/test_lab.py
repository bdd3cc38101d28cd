from collections import UserDict

import numpy as np
import pandas as pd
import pytest

import scope
from scope.errors import ConfigError, DictionaryError, EditError, PackError, ScopeError
from scope.lab import Lab
from scope.models.text.generate import generate
from scope.models.text.sampling_config import SamplingConfig
from scope.sae.files import read_sae
from scope.steering.apply.strength_units import StrengthUnits
from scope.steering.compare.readable import PROMPTS
from scope.steering.compare.steer import SteeringRun
from scope.steering.edits.interventions import Ablate, Add
from scope.texts import for_each_text
from tests.conftest import random_gemma
from tests.help.labs import make_lab
from tests.steering.conftest import random_sae

FEW = {"max_new_tokens": 5, "temperature": 0.0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_config, toy_tokenizer, toy_text):
    return make_lab(tmp_path_factory.mktemp("lab") / "runs" / "demo", random_gemma(tiny_config, toy_tokenizer), toy_text)


@pytest.fixture(scope="module")
def lab(folder) -> Lab:
    return scope.open(folder, certify=False)  # its dictionary is random


def test_five_lines_open_find_show_and_steer(lab):
    assert isinstance(lab.best(3), pd.DataFrame)
    feature = lab[int(lab.best(1).index[0])]
    assert isinstance(lab.find("dog"), pd.DataFrame)
    run = lab.steer(feature, 0.5).compare("the dog", n=3, **FEW)
    assert isinstance(run, SteeringRun)
    assert [condition.name for condition in run.conditions] == ["plain", "steered", "random"]
    assert [len(condition.samples) for condition in run.conditions] == [3, 3, 3]


def test_a_lab_that_was_not_checked_says_so(lab, folder):
    assert "not checked against the model" in repr(lab)
    assert "not checked" not in repr(scope.open(folder))


def test_strengths_are_measured_against_the_pack(lab):
    run = lab.steer(3, 0.5).compare("the dog", **FEW)
    assert run.sheet[0]["strength"] == pytest.approx(0.5)
    assert run.strength_units[lab.pack.site].typical_norm == lab.pack.norm_median
    assert run["steered"].report.mean_norm == pytest.approx(0.5, rel=1e-3)
    assert run.sheet[0]["multiple_of_maximum"] == pytest.approx(run.sheet[0]["raw"] / lab.pack.table["max"][3], rel=1e-4)
    assert not any("measured on" in note for note in run.notes)


def test_within_a_with_block_every_generation_is_steered_and_after_it_none(lab):
    steering = lab.steer(3, 0.8)
    plain = lab.generate("the dog", **FEW)
    with steering as editing:
        inside = lab.generate("the dog", **FEW)
        assert sum(editing.report().edited_per_step) > 0
    assert inside == [s.text for s in steering.compare("the dog", **FEW)["steered"].samples]
    assert lab.generate("the dog", **FEW) == plain
    assert generate(lab.model, "the dog", SamplingConfig(**FEW))[0].text == plain[0]


def test_with_blocks_nest(lab):
    with lab.steer(3, 0.8), lab.steer(5, 0.8):
        nested = lab.generate("the dog", **FEW)
    with lab.steer(3, 0.8) + lab.steer(5, 0.8):
        assert lab.generate("the dog", **FEW) == nested
    assert not any(point.has_hooks() for point in lab.model.hook_points())


def test_edits_join_with_plus(lab):
    joined = lab.steer(3, 0.5) + lab.steer(5, -0.3) + Ablate(7)
    assert [e.latent for e in joined.edits] == [3, 5, 7]
    assert len(joined.compare("the dog", **FEW).sheet) == 3


def test_a_sweep_tells_every_strength_beside_its_control_and_judges_its_choice_on_other_prompts(lab):
    swept = lab.steer(3).sweep(["the dog", "a cat", "my sister", "the moon"], [0.25, 1.0], max_new_tokens=5)
    table = swept.to_frame()
    assert set(table["strength"]) == {0.25, 1.0}
    assert set(table["direction"]) == {"plain", "steered", "random", "random:1", "random:2", "other", "prompt"}
    assert set(table["condition"]) == {"plain", "steered", "random", "other", "prompt"}
    assert len(table) <= 2 * 7 * 4
    assert swept.best["strength"] in (0.25, 1.0)
    assert swept.best["chosen_on"] == swept.best["told_on"] == 2
    held_out = table[(table["strength"] == swept.best["strength"]) & (table["prompt_index"] % 2 == 1)]
    assert swept.best["score"] == pytest.approx(held_out[held_out["condition"] == "steered"]["score"].mean())
    assert swept.best["random"] == pytest.approx(held_out[held_out["condition"] == "random"]["score"].mean())
    assert len(swept.plot().data) == 4 * 4
    assert "on the other 2" in str(swept)


def test_a_latent_is_replaced_in_the_other_arm_by_one_that_fires_as_often(lab):
    run = lab.steer(3).compare("the dog", conditions=("plain", "steered", "other"), **FEW)
    (other,) = run.others["other"]
    density = lab.pack.table["density"].to_numpy()
    nearer = (abs(np.log(density[density > 0] / density[3])) < abs(np.log(density[other] / density[3]))).sum()
    assert nearer <= 41
    assert not any("not known" in note for note in run.notes)


def test_directions_between_prompts_steer_at_any_site_of_the_stream(lab):
    toward, away = ["the dog", "a dog"], ["the moon", "my sister"]
    for probe in (False, True):
        direction = lab.direction(toward, away, probe=probe, site="blocks.2.hook_resid_post")
        run = lab.steer(direction, 0.5).compare("the dog", **FEW)
        assert run["steered"].report.mean_norm == pytest.approx(0.5, rel=1e-3)
        assert "tokens of the pack" in run.strength_units["blocks.2.hook_resid_post"].source
        with lab.steer(direction, 0.5):
            assert lab.generate("the dog", **FEW) == run.texts()["steered"]


def test_a_dictionary_of_another_site_joins_the_lab(folder):
    lab = scope.open(folder, certify=False)
    later = random_sae(lab.model.cfg.d_model, site="blocks.2.hook_resid_post", seed=5)
    later.provenance = dict(lab.sae.provenance)
    lab.add(later)
    both = lab.steer(Add(3, 0.5, site=lab.sae.site)) + Add(7, 0.4, site=later.site)
    run = both.compare("the dog", **FEW)
    assert {e["site"] for e in run["steered"].report.edits} == {lab.sae.site, later.site}
    found = lab.effects(Ablate(3, site=lab.sae.site), "the dog runs")
    assert {row["site"] for row in found.downstream} <= {later.site}
    assert lab.attribute("the dog runs", site=later.site).site == later.site
    with pytest.raises(DictionaryError, match="has a dictionary at"):
        lab.add(later)
    with pytest.raises(DictionaryError, match="no dictionary at blocks"):
        lab.attribute("the dog", site="blocks.0.hook_resid_post")


def test_the_lab_attributes_and_ablates_with_labels(lab):
    found = lab.attribute("the dog runs to the", steps=16)
    assert set(found.to_frame()["label"]) - {""} <= set(lab.pack.table["label"])
    latent = found.top(1)[0]
    ablated, added = lab.effects(latent, "the dog runs to the"), lab.effects(lab[latent], "the dog runs to the", 0.5)
    assert (ablated.edits[0].kind, added.edits[0].kind) == ("ablate", "add")
    assert ablated.kl >= 0


def test_the_cost_is_the_loss_on_ordinary_texts(lab):
    told = lab.steer(3, 0.8).cost(["the dog runs to the river", "my sister counts 12 apples"])
    assert told.n_tokens == sum(
        len(lab.model.tokenizer.encode(t)) - 1 for t in ("the dog runs to the river", "my sister counts 12 apples")
    )
    assert told.steered != told.plain
    nothing = lab.steer(3, 0.0).cost(["the dog runs to the river"])
    assert nothing.steered == pytest.approx(nothing.plain)


def test_a_sweep_is_told_beforehand_how_long_it_takes(lab):
    assert 0 < lab.steer(3).estimate(["the dog", "a cat"], [0.5, 1.0], max_new_tokens=8) < 60


def test_a_folder_that_is_no_lab_is_refused_with_what_it_lacks(tmp_path):
    (tmp_path / "dictionary").mkdir()
    with pytest.raises(PackError, match=r"has no pack[\s\S]*scope demo"):
        scope.open(tmp_path)


def test_bundled_is_found_from_a_folder_below(folder, monkeypatch):
    below = folder.parents[1] / "notebooks"
    below.mkdir(exist_ok=True)
    monkeypatch.chdir(below)
    assert scope.open("bundled").pack.folder == folder / "pack"


def test_a_model_or_dictionary_that_is_not_the_labs_is_refused(lab, folder, tiny_model):
    with pytest.raises(DictionaryError, match="trained on"):
        _ = scope.open(folder, model=tiny_model).model
    with pytest.raises(DictionaryError, match="The pack is about 48 latents"):
        Lab(lab.pack, random_sae())
    with pytest.raises(ScopeError, match="no latent 99"):
        lab.steer(99).compare("the dog")


def test_a_run_replays_from_its_file(lab, folder, tmp_path):
    run = lab.steer(3, 0.6).compare(["the dog", "a cat"], n=2, max_new_tokens=6)
    run.to_json(tmp_path / "run.json")
    again = SteeringRun.from_json(tmp_path / "run.json").replay(lab.model, read_sae(folder / "dictionary"))
    assert again.same_texts(run)


def test_an_add_made_by_hand_is_taken_as_it_is(lab):
    run = lab.steer(Add(3, 1.0, unit="max", positions="generated")).compare("the dog", **FEW)
    assert run.sheet[0]["multiple_of_maximum"] == pytest.approx(1.0)


def test_a_setting_that_does_not_exist_is_refused_with_those_that_do(lab):
    with pytest.raises(ConfigError, match=r"no setting 'warmth'.*temperature"):
        lab.steer(3).compare("the dog", warmth=1.0)


def test_each_comparison_may_have_a_random_direction_of_its_own(lab):
    texts = {seed: lab.steer(3, 2.0).compare("the dog", control_seed=seed, max_new_tokens=6).texts() for seed in (0, 1)}
    assert texts[0]["steered"] == texts[1]["steered"]
    assert texts[0]["random"] != texts[1]["random"]


def test_a_with_block_counts_generations_of_any_number_of_prompts(lab):
    with lab.steer(3, 0.5) as editing:
        lab.generate("the dog", max_new_tokens=2, stop_at_eos=False)
        lab.generate(["my sister", "the river"], max_new_tokens=2, stop_at_eos=False)
    assert len(editing.report().edited_per_row) == 2
    assert editing.report().mean_norm == pytest.approx(0.5, rel=1e-3)


def test_the_typical_norm_measured_on_a_packs_contexts_is_the_packs_own(lab):
    contexts = lab.pack.contexts[:]
    units = StrengthUnits.on_contexts(lab.model, lab.pack.site, contexts)
    assert units.typical_norm == pytest.approx(lab.pack.norm_median, rel=1e-6)
    special = min(set(lab.model.special_ids) - {lab.model.cfg.bos, lab.model.cfg.pad, *lab.model.cfg.eos})
    more = contexts.copy()
    more[:, -1] = special  # of a chat template, say
    shorter = StrengthUnits.on_contexts(lab.model, lab.pack.site, contexts[:, :-1])
    assert StrengthUnits.on_contexts(lab.model, lab.pack.site, more).typical_norm == shorter.typical_norm


def test_a_list_of_texts_gives_a_result_for_each_and_what_is_no_text_is_refused(lab):
    texts = ["the dog runs", "to the river", "the cat"]
    together = lab.read(texts)
    assert [view.ids for view in together] == [lab.read(text).ids for text in texts]
    assert lab.read(tuple(texts[:1]))[0].ids == together[0].ids
    assert lab.pack.read(iter(texts), lab.model, lab.sae)[2].ids == together[2].ids
    rows = lab.attribute(texts[:2], method="gradient")
    assert [row.prompt for row in rows] == texts[:2]
    assert rows[1].logit_difference == pytest.approx(lab.attribute(texts[1], method="gradient").logit_difference)
    edited = lab.effects(3, texts[:2], nulls=0)
    assert [one.prompt for one in edited] == texts[:2]
    for search in (lab.find, lab.pack.fires_on, lab.pack.promotes):
        with pytest.raises(PackError, match=r"empty|No token"):
            search("")


def test_what_a_tokenizer_returns_is_refused_where_texts_go_as_its_keys_are_words(lab):
    encoding = UserDict({"input_ids": [[2, 5, 6]], "attention_mask": [[1, 1, 1]]})  # a BatchEncoding is one
    steering = lab.steer(3, 0.5)
    calls = (lab.read, lab.attribute, lab.generate, steering.compare, steering.sweep, steering.cost)
    for call in (*calls, lambda texts: lab.effects(3, texts)):
        with pytest.raises(ScopeError, match="holds a UserDict"):
            call(encoding)
    assert len(lab.read(np.array(["the dog", "my sister"]))) == 2


def test_a_lab_draws_another_text_on_each_call_unless_it_is_given_a_seed(lab):
    sampling = {"max_new_tokens": 12, "stop_at_eos": False, "temperature": 50.0, "top_p": None}
    drawn = {lab.generate("the dog", **sampling)[0] for _ in range(3)}
    repeated = {lab.generate("the dog", seed=0, **sampling)[0] for _ in range(3)}
    assert (len(drawn), len(repeated)) == (3, 1)


@pytest.mark.parametrize("wrong", [[], ["the dog", 3], [1, 2], [{"role": "user", "content": "hi"}], 7, b"the dog", None, {}])
def test_what_is_no_text_is_refused_and_not_read_in_part(wrong):
    seen = []
    with pytest.raises(EditError, match="list of texts"):
        for_each_text(wrong, seen.append, EditError)
    assert seen == []
    assert for_each_text(("a", "b"), str.upper, EditError) == ["A", "B"]
    assert for_each_text("ab", str.upper, EditError) == "AB"


def test_readable_latents_are_ranked_by_the_score_of_their_texts_and_the_better_half_is_tried_stronger(lab):
    found = lab.readable(4)
    assert (found["score"].diff().dropna() <= 0).all()
    assert set(found.index) == set(lab.best(4).index)
    assert found["strength"].isin([0.3, 0.45]).all()
    assert found["text"].str.contains("|".join(PROMPTS)).all()

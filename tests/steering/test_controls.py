import json
import types

import numpy as np
import pandas as pd
import pytest
import torch

from scope.errors import EditError
from scope.models.text.generate import generate
from scope.models.text.sampling_config import SamplingConfig
from scope.steering.apply.controls import other_latents, rows_in_place
from scope.steering.apply.resolve import resolve
from scope.steering.apply.strength_units import StrengthUnits
from scope.steering.compare.steer import SteeringRun, before, instruction_for, steer
from scope.steering.compare.text_scorer import promoted
from scope.steering.edits.directions import Direction
from scope.steering.edits.interventions import Ablate, Add, Clamp, ProjectOut
from tests.steering.conftest import SITE

SHORT = SamplingConfig(max_new_tokens=6, temperature=1.0, top_p=None, repetition_penalty=1.0)
PROMPTS = ["the dog runs to the river", "my sister"]


def pack(density):
    table = pd.DataFrame({"max": 2.0, "p99": 1.0, "density": np.asarray(density, dtype=np.float32)})
    return types.SimpleNamespace(d_sae=len(table), table=table, norm_median=8.0, n_tokens=1000)


def test_latents_of_like_density_are_those_nearest_in_ratio_that_fire_at_all():
    density = np.concatenate([[0.01], np.geomspace(0.009, 0.011, 40), np.full(30, 0.3), np.zeros(30)])
    units = StrengthUnits.of_pack(pack(density), [0])
    assert len(units.similar[0]) == 8
    assert set(units.similar[0]) <= set(range(1, 41))
    assert StrengthUnits.from_dict(json.loads(json.dumps(units.to_dict()))) == units
    assert StrengthUnits.of_pack(pack(density), [0]) == units


def resolved(sae, units, *edits):
    return [resolve(e, {SITE: sae}, {SITE: units}) for e in edits]


def test_the_other_latents_are_like_ones_and_none_of_the_edited(sae):
    units = StrengthUnits(8.0, "given", maximum={3: 4.0, 5: 2.0}, similar={3: (5, 9, 12), 5: (9, 3, 20)})
    edits = resolved(sae, units, Add(3, 0.5), Clamp(5, 0.2, unit="norm"))
    assert other_latents(edits, {SITE: sae}, {SITE: units}, 0) == ([9, 20], True)
    assert other_latents(edits, {SITE: sae}, {SITE: units}, 2) == ([12, 20], True)


def test_without_densities_others_are_drawn_from_the_dictionary_and_the_run_says_so(tiny_model, sae, units):
    run = steer(tiny_model, sae, Add(3, 0.5), PROMPTS, SHORT, ("plain", "steered", "other"), strength_units=units)
    assert any("how often latents fire is not known" in note for note in run.notes)
    assert run.others["other"] != [3]


@pytest.mark.parametrize("edit", [Add(3, 0.5), Clamp(3, 0.4, unit="norm"), ProjectOut(3)])
def test_the_other_condition_writes_as_much_along_another_latents_row(tiny_model, sae, units, edit):
    run = steer(tiny_model, sae, edit, PROMPTS[0], SHORT, ("plain", "steered", "other"), strength_units=units)
    (other,) = run.others["other"]
    sample = run["other"].samples[0]
    (one,) = resolved(sae, units, edit)
    (row,) = rows_in_place([one], [other], {SITE: sae})
    assert float(row.norm()) == pytest.approx(float(one.row.norm()), rel=1e-5)
    direction = sae.W_dec[other] / sae.W_dec[other].norm()
    torch.testing.assert_close(row / row.norm(), direction)
    if isinstance(edit, Add):
        shift = 4.0 * direction
        hook = (SITE, lambda x, hook: torch.cat([x[:, :1], x[:, 1:] + shift], 1) if x.shape[1] > 1 else x + shift)
        (alone,) = generate(tiny_model, PROMPTS[0], SHORT, fwd_hooks=[hook])
        assert list(alone.new_ids) == sample.new_ids


def test_a_direction_without_a_dictionary_has_no_other_latent(tiny_model):
    edit = Add(Direction(tuple(range(1, 33)), SITE), 0.5)
    with pytest.raises(EditError, match="no dictionary was given"):
        steer(tiny_model, None, edit, PROMPTS, SHORT, ("plain", "steered", "other"))


def test_the_prompt_condition_is_the_plain_model_on_the_instruction_and_the_prompt(tiny_model, sae, units):
    conditions = ("plain", "steered", "prompt")
    run = steer(tiny_model, sae, Add(3, 0.5), PROMPTS, SHORT, conditions, strength_units=units, instruction="the river. ")
    alone = generate(tiny_model, ["the river. " + p for p in PROMPTS], SHORT)
    assert [s.new_ids for s in run["prompt"].samples] == [list(g.new_ids) for g in alone]
    assert run["prompt"].report is None
    assert run.instruction == "the river. "
    assert 'began with "the river. "' in str(run)


def test_what_the_prompt_condition_wrote_is_read_as_a_continuation_of_the_prompt_alone(tiny_model, sae, units):
    conditions = ("plain", "steered", "prompt")
    run = steer(tiny_model, sae, Add(3, 0.5), PROMPTS[0], SHORT, conditions, strength_units=units, instruction="the river. ")
    (sample,) = run["prompt"].samples
    tokens = torch.tensor([[*tiny_model.tokenizer.encode(PROMPTS[0]), *sample.new_ids]])
    log_p = tiny_model(tokens)[0].detach().log_softmax(-1)[-len(sample.new_ids) - 1 : -1]
    mean = log_p.gather(1, torch.tensor(sample.new_ids)[:, None]).mean()
    assert sample.scores.log_prob == pytest.approx(float(mean), abs=1e-5)


def test_without_words_of_ones_own_the_promoted_words_are_asked_for(tiny_model, sae):
    ids = promoted(tiny_model, sae.W_dec[3])
    said = instruction_for(tiny_model, [ids])
    pieces = [p.strip() for p in tiny_model.words.pieces(ids)]
    assert said.startswith(("Talk about ", "Write "))
    assert any(p and p in said for p in pieces)


def test_an_instruction_goes_to_the_head_of_the_prompt_or_of_the_users_last_turn():
    assert before("My hobby is", "Talk about dogs. ") == "Talk about dogs. My hobby is"
    chat = "<start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>user\nAnd now?<end_of_turn>\n"
    assert before(chat, "Talk about dogs. ").endswith("<start_of_turn>user\nTalk about dogs. And now?<end_of_turn>\n")
    assert before(chat, "Talk about dogs. ").startswith("<start_of_turn>user\nHi")


def test_every_condition_survives_json_and_replays(tiny_model, sae, units, tmp_path):
    conditions = ("plain", "steered", "random", "random:1", "other", "other:1", "prompt")
    run = steer(tiny_model, sae, Add(3, 0.5) + Ablate(5), PROMPTS, SHORT, conditions, strength_units=units)
    run.to_json(tmp_path / "run.json")
    read = SteeringRun.from_json(tmp_path / "run.json")
    assert read == run
    assert read.replay(tiny_model, sae).same_texts(run)


@pytest.mark.parametrize("condition", ["louder", "prompt:1", "random:x", "random:", "steered:1"])
def test_an_unknown_condition_is_refused_with_all_that_there_are(tiny_model, sae, units, condition):
    with pytest.raises(EditError, match=r"There is no condition[\s\S]*other +the same amounts[\s\S]*prompt +nothing edited"):
        steer(tiny_model, sae, Add(3, 0.5), PROMPTS, SHORT, ("plain", "steered", condition), strength_units=units)


def test_ctrl_c_keeps_what_was_written_and_replays_to_it(tiny_model, sae, units):
    def press(step, ids):
        if step == 2:
            raise KeyboardInterrupt

    run = steer(tiny_model, sae, Add(3, 0.5), PROMPTS, SHORT, strength_units=units, on_token=press)
    whole = steer(tiny_model, sae, Add(3, 0.5), PROMPTS, SHORT, strength_units=units)
    assert run.notes[0] == "Stopped after 3 tokens."
    for condition in run.conditions:
        for sample, full in zip(condition.samples, whole[condition.name].samples, strict=True):
            assert sample.new_ids == full.new_ids[:3]
            assert sample.scores is not None
    assert SteeringRun.from_json(run.to_json()).replay(tiny_model, sae).same_texts(run)
    assert not any(point.has_hooks() for point in tiny_model.hook_points())


def test_ctrl_c_before_the_first_token_leaves_at_once(tiny_model, sae, units, monkeypatch):
    def press(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("scope.steering.compare.steer.generate", press)
    with pytest.raises(KeyboardInterrupt):
        steer(tiny_model, sae, Add(3, 0.5), PROMPTS, SHORT, strength_units=units)


def test_a_replay_takes_the_other_latents_that_the_run_recorded_however_they_were_drawn(tiny_model, sae):
    """Version 0.1.0 drew them with another random generator."""
    run = steer(tiny_model, sae, Add(3, 0.5), PROMPTS, SHORT, ("plain", "steered", "other"), others={"other": [9]})
    assert run.others == {"other": [9]}
    drawn = steer(tiny_model, sae, Add(3, 0.5), PROMPTS, SHORT, ("plain", "steered", "other"))
    assert drawn.others != run.others
    assert SteeringRun.from_json(run.to_json()).replay(tiny_model, sae).same_texts(run)
    with pytest.raises(EditError, match="give one for each"):
        steer(tiny_model, sae, Add(3, 0.5), PROMPTS, SHORT, ("plain", "steered", "other"), others={"other": [9, 8]})

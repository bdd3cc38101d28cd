import json

import pytest
import torch

from scope.models.text.sampling_config import SamplingConfig
from scope.steering.compare.steer import SteeringRun, steer
from scope.steering.edits.interventions import Ablate, Add, ProjectOut
from tests.steering.conftest import SITE

SHORT = SamplingConfig(max_new_tokens=4, temperature=0.0, stop_at_eos=False)


def test_a_run_tells_what_the_dictionary_does_not_explain_of_its_unedited_texts(tiny_model, sae, units):
    run = steer(tiny_model, sae, Add(3, 0.5), ["the dog runs", "my sister"], SHORT, strength_units=units)
    streams = []
    for sample in run["plain"].samples:
        tokens = torch.tensor([[*sample.prompt_ids, *sample.new_ids]])
        streams.append(tiny_model.record(tokens, [SITE])[SITE][0, 1:])
    x = torch.cat(streams)
    expected = (x - sae.decode(sae.encode(x))).square().sum() / (x - x.mean(0)).square().sum()
    assert run.fvu[SITE] == pytest.approx(float(expected), rel=1e-4)
    assert f"{SITE}: {run.fvu[SITE]:.0%} of the variance" in str(run)
    assert any("explains only" in note or "explains none" in note for note in run.notes) == (run.fvu[SITE] > 0.5)


def test_an_ablation_without_effect_names_the_error_term_and_the_edit_that_reaches_it(tiny_model, sae, units):
    sae.threshold.fill_(1e6)  # nothing fires: all of the stream is error
    run = steer(tiny_model, sae, Ablate(3), "the dog runs", SHORT, strength_units=units)
    assert "active at 0 of" in run.notes[0]
    assert "What the dictionary does not explain" in run.notes[0]
    assert "ProjectOut takes the direction out of that, too" in run.notes[0]
    assert steer(tiny_model, sae, ProjectOut(3), "the dog runs", SHORT, strength_units=units)["steered"].report.mean_norm > 0


def test_runs_that_were_saved_before_this_was_kept_are_still_read(tiny_model, sae, units):
    run = steer(tiny_model, sae, Add(3, 0.5), "the dog", SHORT, strength_units=units)
    raw = json.loads(run.to_json())
    assert SteeringRun.from_json(json.dumps(raw)).fvu == run.fvu
    del raw["fvu"]
    assert SteeringRun.from_json(json.dumps(raw)).fvu == {}

"""Steering a model that TransformerLens runs: the same edits, counts and refusals as on our own."""

import pytest
import torch

from scope.circuits.attribution import attribute
from scope.circuits.effects import effects
from scope.models.text.generate import generate
from scope.models.text.sampling_config import SamplingConfig
from scope.models.transformer_lens import bridge as lens
from scope.steering.compare.steer import steer
from scope.steering.edits.interventions import Ablate, Add, Clamp
from tests.models.test_lens import FAMILIES, hf_gpt2_tokenizer, hooked
from tests.steering.conftest import SITE, random_sae

pytestmark = pytest.mark.filterwarnings("ignore")
GREEDY = SamplingConfig(max_new_tokens=5, temperature=0.0, stop_at_eos=False)


@pytest.fixture(scope="module", params=FAMILIES)
def model(request, toy_text):
    return lens.recorder(hooked(hf_gpt2_tokenizer(toy_text), **FAMILIES[request.param]))


@pytest.fixture
def sae():
    found = random_sae()
    found.provenance = {}
    return found


def test_a_lens_model_is_steered_where_a_hook_by_hand_would(model, sae, units):
    run = steer(model, sae, Add(3, 0.5), ["the dog runs"], GREEDY, strength_units=units)
    push, seen = 4.0 * sae.W_dec[3] / sae.W_dec[3].norm(), []

    def by_hand(x, hook):
        where = hook.run.positions > 0
        seen.append(int(where.sum()))
        return x + where[..., None] * push

    (alone,) = generate(model, "the dog runs", GREEDY, fwd_hooks=[(SITE, by_hand)])
    assert run["steered"].samples[0].new_ids == list(alone.new_ids)
    assert run["steered"].report.edited_per_step == seen
    assert run["steered"].report.mean_norm == pytest.approx(0.5, rel=1e-4)


def test_effects_and_attribution_add_up_on_a_lens_model(model, sae, units):
    found = attribute(model, sae, "the dog runs", method="integrated")
    assert sum(row.value for row in found.rows) == pytest.approx(found.logit_difference, abs=2e-2)
    latent = found.top(1)[0]
    changed = effects(model, sae, Ablate(latent), "the dog runs", strength_units=units, nulls=2)
    tokens = model.to_tokens("the dog runs")
    x = model.record(tokens, [SITE])[SITE]
    edited = x - sae.encode(x)[..., latent, None] * sae.W_dec[latent]
    edited[:, 0] = x[:, 0]
    logits = model.run_with_hooks(tokens, fwd_hooks=[(SITE, lambda a, hook: edited)])[0, -1]
    plain = model(tokens)[0, -1]
    expected = torch.nn.functional.kl_div(plain.log_softmax(-1), logits.log_softmax(-1), log_target=True, reduction="sum")
    assert changed.kl == pytest.approx(float(expected), abs=1e-4)


def test_a_saved_run_of_a_lens_model_replays_to_the_same_texts(model, sae, units):
    run = steer(model, sae, Clamp(3, 0.5, unit="norm"), ["the dog", "a cat sat on"], GREEDY, strength_units=units)
    assert type(run).from_json(run.to_json()).replay(model, sae).same_texts(run)
